"""What goes into a rollout step and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openmimo.inference.protocol import Completion
from openmimo.rewards.verdict import Verdict
from openmimo.rollout.demand import PassRates, Prospect
from openmimo.rollout.events import Done
from openmimo.rollout.timeline import StepTimeline
from openmimo.rollout.validity import passes


@dataclass(frozen=True)
class Prompt:
    """A prompt to sample from.

    sample_seeds: one for each sample of the group.
    prospect: what earlier visits say of it.
    """

    problem: Mapping[str, Any]
    ids: Sequence[int]
    sample_seeds: Sequence[int]
    prospect: Prospect = field(default_factory=Prospect)


@dataclass
class Group:
    """A prompt and what came back; entries are None until they arrive."""

    prompt: Prompt
    completions: list[Completion | None] = field(default_factory=list)
    results: list[Verdict | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.completions = [None] * len(self.prompt.sample_seeds)
        self.results = [None] * len(self.prompt.sample_seeds)

    @property
    def scores(self) -> list[float | None]:
        """One score a sample; None where there is none."""
        return [result.score if result else None for result in self.results]


@dataclass(frozen=True)
class Rollout:
    """One step's outcome.

    groups: the committed ones, in stream order.
    done: the scheduler's last word.
    decode_steps: of the engine that made most of them.
    reward_wait_seconds: that an engine stood still for a reward.
    loop_lag: seconds; the longest that the event loop was late.
    timeline: who did what when.
    """

    groups: list[Group]
    done: Done
    decode_steps: int
    reward_wait_seconds: float
    loop_lag: float
    timeline: StepTimeline

    @property
    def batch(self) -> list[Group]:
        """The groups to train on."""
        return [self.groups[index] for index in self.done.selected]

    def learn(self, rates: PassRates) -> PassRates:
        """Pass rates with the committed groups counted in: a function of their scores alone."""
        selected = set(self.done.selected)
        for index, group in enumerate(self.groups):
            scored = [score for score in group.scores if score is not None]
            rates = rates.plus(sum(map(passes, scored)), len(scored), index in selected)
        return rates
