"""Published and own ways to run a rollout step, as small classes over one scheduler.

A policy says when prompts are launched, when rewards are computed, how the step ends, and in which
order valid groups fill the batch. All but `Greedy` keep the order of the stream, and so produce the
same batch.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

Rewards = Literal["async", "inline", "barrier"]
Ending = Literal["prefix", "finish", "drain"]
Places = Literal["group", "sample", "tokens"]


class StepView(Protocol):
    """What a policy sees of a step. Groups are counted; `valid` are sure to be valid, finished or
    not, `invalid` are finished without being valid."""

    @property
    def wanted(self) -> int:
        """Valid groups that the step is for."""

    @property
    def launched(self) -> int: ...

    @property
    def running(self) -> int:
        """Groups with samples still to come."""

    @property
    def valid(self) -> int: ...

    @property
    def invalid(self) -> int: ...

    @property
    def seen_valid_rate(self) -> float:
        """Share of valid groups among the finished ones of this step and of those before."""

    @property
    def free_slots(self) -> int:
        """Slots for samples that neither run nor wait for one."""

    def probability(self, valid: int) -> float:
        """The chance that at least so many of the groups launched are valid."""


@dataclass(frozen=True)
class Policy:
    """What all policies have.

    name: in tables.
    rewards: "async": each sample's as soon as it is generated, by workers of their own; "inline":
        as soon, but by the process that generates, which does nothing else meanwhile; "barrier":
        when all that runs is generated, by a few processes, one after another.
    ends: "prefix": when the shortest prefix of the stream with enough valid groups is complete,
        what is beyond is stopped; "finish": with the last group needed, whichever it is, all others
        are stopped; "drain": when all that was launched is finished.
    places: (`placement`) "group": all samples of a prompt on one engine, the one with the fewest
        samples; "sample": each on the engine with the fewest; "tokens": each on the engine that is
        expected to have the least to do.
    longest_first: samples that wait for a slot start in the order of their expected length, longest
        first, instead of in the order of the stream.
    rewards_in_order: samples that wait for a reward worker are scored in the order of the stream,
        instead of in the order in which they were generated.
    early_verdicts: a group counts as valid with the first samples that make it so.
    """

    name: ClassVar[str]
    rewards: Rewards = "async"
    ends: Ending = "drain"
    places: Places = "group"
    longest_first: bool = False
    rewards_in_order: bool = False
    early_verdicts: bool = False

    @property
    def keeps_order(self) -> bool:
        """Whether the batch is the first valid groups by stream index."""
        return self.ends != "finish"

    def launches(self, step: StepView) -> bool:
        """Whether to launch one more prompt now."""
        raise NotImplementedError


@dataclass(frozen=True)
class Static(Policy):
    """One wave of as many prompts as the batch has; what is invalid is missed.

    With a validity that takes every group this is RL without dynamic sampling, and validation.
    """

    name = "static"
    places: Places = "tokens"
    longest_first: bool = True

    def launches(self, step: StepView) -> bool:
        return step.launched < step.wanted


@dataclass(frozen=True)
class Naive(Policy):
    """Waves of a batch each, with a barrier after each, rewards serially after the barrier (DAPO's
    recipe in verl as it was, the report's baseline)."""

    name = "naive"
    rewards: Rewards = "barrier"

    def launches(self, step: StepView) -> bool:
        # A wave is launched as a whole, before anything of it runs or while it fills.
        filling = step.launched % step.wanted != 0
        return filling or (step.running == 0 and step.valid < step.wanted)


@dataclass(frozen=True)
class NaiveAsyncReward(Naive):
    """Naive waves, with rewards that start when a sample ends."""

    name = "naive_async_reward"
    rewards: Rewards = "async"


@dataclass(frozen=True)
class OneForOne(Policy):
    """Each invalid group is replaced by one prompt; waits for all (OpenRLHF)."""

    name = "one_for_one"

    def launches(self, step: StepView) -> bool:
        return step.launched - step.invalid < step.wanted


@dataclass(frozen=True)
class Greedy(Policy):
    """Waves of a batch while fewer than a batch may still come; the first to finish are the batch,
    and the rest is stopped (slime). Biased: long answers are selected against."""

    name = "greedy"
    ends: Ending = "finish"

    def launches(self, step: StepView) -> bool:
        filling = step.launched % step.wanted != 0
        return filling or step.launched - step.invalid < step.wanted


@dataclass(frozen=True)
class RefillTwice(Policy):
    """Each invalid group lets two more prompts start, until enough are valid; then waits for all
    (verl's streaming trainer)."""

    name = "refill_2k"

    def launches(self, step: StepView) -> bool:
        return step.valid < step.wanted and step.launched < step.wanted + 2 * step.invalid


@dataclass(frozen=True)
class Continuous(Policy):
    """The report's continuous rollout: launch while the groups that run are not expected to be
    enough, by the valid rate of this step so far. Rewards by the process that generates; waits for
    all. The report does not give its rule; these two numbers fit its Table 2 (docs/rollout.md).

    imagined: valid groups that count as seen at the beginning, in batches.
    margin: how many more groups than wanted are to be expected, in batches.
    """

    name = "continuous"
    rewards: Rewards = "inline"
    places: Places = "sample"
    imagined: float = 0.12
    margin: float = 0.1

    def launches(self, step: StepView) -> bool:
        undecided = step.launched - step.valid - step.invalid
        imagined = self.imagined * step.wanted
        rate = (step.valid + imagined) / (step.valid + step.invalid + imagined)
        return step.valid + undecided * rate < (1 + self.margin) * step.wanted


@dataclass(frozen=True)
class ContinuousAsyncReward(Continuous):
    """The report's continuous rollout with asynchronous rewards."""

    name = "continuous_async_reward"
    rewards: Rewards = "async"


@dataclass(frozen=True)
class Report(ContinuousAsyncReward):
    """The report's engine: continuous rollout, asynchronous rewards, early termination."""

    name = "report"
    ends: Ending = "prefix"


@dataclass(frozen=True)
class Ours(Policy):
    """Launch until enough groups are valid with probability `confidence`, by each group's own
    posterior; longest first; early verdicts; early termination.

    A group that would have to wait for a slot is launched only if it is more likely needed than
    not: when a slot is free more will be known.
    """

    name = "ours"
    ends: Ending = "prefix"
    places: Places = "tokens"
    longest_first: bool = True
    rewards_in_order: bool = True
    early_verdicts: bool = True
    confidence: float = 0.9
    posterior: bool = True

    def launches(self, step: StepView) -> bool:
        confidence = self.confidence if step.free_slots > 0 else min(0.5, self.confidence)
        if self.posterior:
            return step.probability(step.wanted) < confidence
        return self._by_the_rate_alone(step) < confidence

    @staticmethod
    def _by_the_rate_alone(step: StepView) -> float:
        """The chance that enough groups are valid if all undecided ones are alike."""
        undecided = step.launched - step.valid - step.invalid
        missing, rate = step.wanted - step.valid, step.seen_valid_rate
        if missing <= 0 or missing > undecided:
            return float(missing <= 0)
        deviation = math.sqrt(undecided * rate * (1 - rate))
        return 0.5 * math.erfc((missing - 0.5 - undecided * rate) / (deviation * math.sqrt(2)))
