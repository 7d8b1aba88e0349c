"""What the scheduler is told, and what it asks for."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Generated:
    """A started sample has its answer, of so many tokens; its slot is free."""

    prompt_index: int
    sample: int
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Scored:
    """The reward of a generated sample; None when no score could be found."""

    prompt_index: int
    sample: int
    score: float | None


@dataclass(frozen=True, slots=True)
class Lost:
    """What was generating a started sample is gone; it has to start again."""

    prompt_index: int
    sample: int


@dataclass(frozen=True, slots=True)
class Launch:
    """Draw the next prompt of the stream, which gets this index."""

    prompt_index: int


@dataclass(frozen=True, slots=True)
class Start:
    """Generate a sample; `tokens` is how long its answer is expected to be."""

    prompt_index: int
    sample: int
    tokens: float


@dataclass(frozen=True, slots=True)
class Score:
    """Find the reward of a generated sample."""

    prompt_index: int
    sample: int


@dataclass(frozen=True, slots=True)
class Abort:
    """Stop what runs of this prompt's samples, and forget them: it cannot be selected any more."""

    prompt_index: int


@dataclass(frozen=True, slots=True)
class StepStats:
    """Counts of one finished step.

    `launched`, `aborted`, `surplus_valid` (valid groups finished but not needed) and `lost`
    (samples that had to start again) describe the work done and depend on timing. All others cover
    the committed prompts alone, so they do not.
    """

    launched: int
    aborted: int
    surplus_valid: int
    lost: int
    committed: int
    valid_passrate: int
    valid_reward_std: int
    all_passed: int
    none_passed: int
    failed: int
    unscorable_samples: int


@dataclass(frozen=True, slots=True)
class Done:
    """The step is over.

    `selected` are the indices of the batch: ascending, but for a policy that takes groups as they
    finish. `all_passed` has one entry for each committed prompt, 0..k*: whether its whole group
    passed (None: too few scores to tell). Prompts beyond it go back to the stream unseen. `short`:
    fewer than prompts_per_step were valid.
    """

    selected: tuple[int, ...]
    all_passed: tuple[bool | None, ...]
    short: bool
    stats: StepStats


Event = Generated | Scored | Lost
Action = Launch | Start | Score | Abort | Done
