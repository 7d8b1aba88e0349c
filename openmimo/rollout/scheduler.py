"""Scheduling of one on-policy RL step with dynamic sampling: events in, actions out.

No clock, randomness, tensors or I/O here: whatever drives an engine (or a simulator) feeds events
and carries out the actions. Source: MiMo report, section on the Seamless Rollout Engine.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from openmimo.errors import UserError
from openmimo.rollout.demand import ValidRate
from openmimo.rollout.validity import (
    Validity,
    passes,
    valid_by_passrate,
    valid_by_reward_std,
    whole_group_passes,
)


@dataclass(frozen=True)
class SampleScored:
    """A sample of a launched prompt is finished; score None when no score could be found."""

    prompt_index: int
    sample: int
    score: float | None


@dataclass(frozen=True)
class PromptUnscorable:
    """No further sample of this prompt will arrive; those still missing count as unscorable."""

    prompt_index: int


@dataclass(frozen=True)
class Launch:
    """Draw the next prompt of the stream, which gets this index, and start its whole group."""

    prompt_index: int


@dataclass(frozen=True)
class Abort:
    """Stop the prompt's unfinished samples: it can no longer be selected."""

    prompt_index: int


@dataclass(frozen=True)
class StepStats:
    """Counts of one finished step.

    `launched`, `aborted` and `surplus_valid` (valid groups finished but not needed) describe the
    work done and depend on timing. All others cover the committed prompts alone, so they do not.
    """

    launched: int
    aborted: int
    surplus_valid: int
    committed: int
    valid_passrate: int
    valid_reward_std: int
    all_passed: int
    none_passed: int
    unscorable_samples: int


@dataclass(frozen=True)
class Done:
    """The step is over.

    `selected` are the indices of the batch, ascending. `all_passed` has one entry for each
    committed prompt, 0..k*: whether its whole group passed (None: too few scores to tell). Prompts
    beyond it go back to the stream unseen. `short`: fewer than prompts_per_step were valid.
    """

    selected: tuple[int, ...]
    all_passed: tuple[bool | None, ...]
    short: bool
    stats: StepStats


Event = SampleScored | PromptUnscorable
Action = Launch | Abort | Done


@dataclass(frozen=True)
class StepSettings:
    """What one step collects, and how much may run at once.

    prompts_per_step: valid groups wanted.
    group_size: samples of a prompt.
    max_running_samples: concurrent samples, at least one group.
    max_prompts: prompts launched before the step gives up and ends short.
    validity: which groups count (`openmimo.rollout.validity`); must be monotone.
    launch_margin: fraction of prompts_per_step to expect beyond what is needed; more of it trades
        wasted samples for a smaller chance of waiting on a late launch.
    """

    prompts_per_step: int
    group_size: int
    max_running_samples: int
    max_prompts: int
    validity: Validity = valid_by_passrate
    launch_margin: float = 0.0

    def __post_init__(self) -> None:
        if self.prompts_per_step < 1:
            raise UserError(f"prompts_per_step is {self.prompts_per_step}; it must be at least 1")
        if self.group_size < 2:
            raise UserError(
                f"group_size is {self.group_size}; a group needs at least 2 samples to be compared"
            )
        if self.max_running_samples < self.group_size:
            raise UserError(
                f"max_running_samples is {self.max_running_samples}, less than one group of "
                f"{self.group_size} samples; raise it or lower group_size"
            )
        if self.max_prompts < self.prompts_per_step:
            raise UserError(
                f"max_prompts is {self.max_prompts}, less than prompts_per_step "
                f"({self.prompts_per_step}): no step could ever fill its batch"
            )
        if self.launch_margin < 0:
            raise UserError(f"launch_margin is {self.launch_margin}; it must not be negative")


@dataclass
class _Group:
    """The scores of one prompt; `valid` is a verdict that later samples cannot change."""

    pending: set[int]
    scores: dict[int, float | None] = field(default_factory=dict)
    valid: bool = False
    aborted: bool = False

    def in_order(self) -> list[float | None]:
        return [self.scores[sample] for sample in sorted(self.scores)]


class StepScheduler:
    """Decides what to launch and what to abort until one batch is complete.

    Selection order is the stream index: the batch is the first B = prompts_per_step valid groups
    by index, whichever finish first. So long answers are not selected against, and the batch does
    not depend on timing.

    Call `start` once, then `handle` for every event, until the actions contain `Done`.

    Invariants, after `start` and after each `handle`:
    - launched == running + valid + invalid + aborted (see `state`);
    - prompts are launched with indices 0, 1, 2, ... without gaps;
    - at most max_running_samples samples run, and at most max_prompts prompts were launched;
    - something is running, or the step is done: it cannot wait forever;
    - a prompt is aborted only if B lower indices are sure to be valid;
    - `Done.selected` and `Done.all_passed` are functions of the prompts' scores alone, and
      `Done.short` is true only if the first max_prompts prompts hold fewer than B valid groups.
    """

    def __init__(self, settings: StepSettings, history: ValidRate | None = None) -> None:
        """`history`: the valid rate of earlier steps, the prior of this step's prediction."""
        self.settings = settings
        self.done: Done | None = None
        self._history = history or ValidRate()
        self._groups: list[_Group] = []
        self._running: dict[int, _Group] = {}
        self._running_samples = 0
        self._sure_valid = 0  # groups with a final verdict "valid", finished or not
        self._invalid = 0  # groups finished without one

    @property
    def launched(self) -> int:
        return len(self._groups)

    @property
    def running(self) -> int:
        """Prompts with samples still to come."""
        return len(self._running)

    @property
    def running_samples(self) -> int:
        return self._running_samples

    def state(self, prompt_index: int) -> Literal["running", "valid", "invalid", "aborted"]:
        group = self._groups[prompt_index]
        if group.aborted:
            return "aborted"
        if group.pending:
            return "running"
        return "valid" if group.valid else "invalid"

    def scores(self, prompt_index: int) -> list[float | None]:
        """Scores received for a prompt so far, by sample number."""
        return self._groups[prompt_index].in_order()

    def start(self) -> list[Action]:
        """The first launches."""
        if self._groups:
            raise RuntimeError("this step has been started already")
        return self._next_actions()

    def handle(self, event: Event) -> list[Action]:
        """Take one event in and say what to do now.

        Events of aborted prompts are ignored: they may cross with the abort. Raises ValueError on
        an event that cannot be true (unknown prompt, sample seen before, score not finite).
        """
        if not 0 <= event.prompt_index < len(self._groups):
            raise ValueError(f"{event} is about a prompt that was never launched")
        group = self._groups[event.prompt_index]
        if group.aborted:
            return []
        match event:
            case SampleScored(_, sample, score):
                if sample not in group.pending:
                    raise ValueError(f"{event} is about a sample that is not running")
                if score is not None and not math.isfinite(score):
                    raise ValueError(f"{event} has a score that is not finite")
                self._record(group, {sample: score})
            case PromptUnscorable():
                if not group.pending:
                    raise ValueError(f"{event} is about a prompt that is finished")
                self._record(group, dict.fromkeys(group.pending))
        if not group.pending:
            del self._running[event.prompt_index]
            self._invalid += not group.valid
        return self._next_actions()

    def _record(self, group: _Group, scores: dict[int, float | None]) -> None:
        group.scores.update(scores)
        group.pending -= scores.keys()
        self._running_samples -= len(scores)
        if not group.valid and self.settings.validity(group.in_order()):
            group.valid = True
            self._sure_valid += 1

    def _next_actions(self) -> list[Action]:
        last = self._last_selectable()
        actions: list[Action] = []
        if last is None:
            while self._wants_prompt():
                actions.append(self._launch())
        else:
            actions += [self._abort(index) for index in list(self._running) if index > last]
        if not self._running:
            # Every prompt up to `last` is finished, so `last` is k*. Without it, nothing could be
            # launched although nothing runs: max_prompts is reached.
            committed = self.launched if last is None else last + 1
            self.done = self._finish(committed, short=last is None)
            actions.append(self.done)
        return actions

    def _last_selectable(self) -> int | None:
        """End of the shortest prefix with B groups sure to be valid; None if there is none yet.

        No prompt beyond it can be selected. Undecided groups inside may still turn valid, which
        moves it down, never up.
        """
        if self._sure_valid < self.settings.prompts_per_step:
            return None
        seen = 0
        for index, group in enumerate(self._groups):
            seen += group.valid
            if seen == self.settings.prompts_per_step:
                return index
        raise AssertionError("the count of valid groups is wrong")

    def _wants_prompt(self) -> bool:
        """Whether a further prompt is both allowed and expected to be needed."""
        s = self.settings
        if self.launched == s.max_prompts:
            return False
        if self._running_samples + s.group_size > s.max_running_samples:
            return False
        # The rate comes from finished groups only: early verdicts are all "valid", so counting
        # them would overstate it.
        finished = self.launched - len(self._running)
        rate = self._history.plus(finished - self._invalid, self._invalid).mean
        undecided = self.launched - self._sure_valid - self._invalid
        expected = self._sure_valid + undecided * rate
        return expected < s.prompts_per_step * (1 + s.launch_margin)

    def _launch(self) -> Launch:
        index = len(self._groups)
        group = _Group(pending=set(range(self.settings.group_size)))
        self._groups.append(group)
        self._running[index] = group
        self._running_samples += self.settings.group_size
        return Launch(index)

    def _abort(self, index: int) -> Abort:
        group = self._running.pop(index)
        group.aborted = True
        self._running_samples -= len(group.pending)
        return Abort(index)

    def _finish(self, committed: int, short: bool) -> Done:
        groups = self._groups[:committed]
        surplus = self._groups[committed:]
        scores = [group.in_order() for group in groups]
        all_passed = tuple(whole_group_passes(each) for each in scores)
        return Done(
            selected=tuple(index for index, group in enumerate(groups) if group.valid),
            all_passed=all_passed,
            short=short,
            stats=StepStats(
                launched=self.launched,
                aborted=_count(group.aborted for group in surplus),
                surplus_valid=_count(group.valid and not group.aborted for group in surplus),
                committed=committed,
                valid_passrate=_count(valid_by_passrate(each) for each in scores),
                valid_reward_std=_count(valid_by_reward_std(each) for each in scores),
                all_passed=_count(passed is True for passed in all_passed),
                none_passed=_count(
                    not any(score is not None and passes(score) for score in each)
                    for each in scores
                ),
                unscorable_samples=_count(score is None for each in scores for score in each),
            ),
        )


def _count(flags: Iterable[bool]) -> int:
    return sum(flags)
