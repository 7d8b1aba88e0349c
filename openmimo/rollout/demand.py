"""How many more prompts a step needs, predicted from pass rates.

A prompt's pass rate is believed to be Beta-distributed. What all prompts have in common is fitted
to the groups of earlier steps and of this one (`PassRates`); what is known of one prompt are its
earlier visits (`Prospect`) and the samples of its running group. From these follows the chance that
the group turns out valid, and from all undecided groups together the chance that enough do
(`Forecast`).
"""

import math
from dataclasses import dataclass
from functools import cached_property

_LEAST, _MOST = 1e-3, 1e4
"""Bounds of a belief's weight: from "each prompt passes always or never" to "all are alike"."""

REVISIT = 0.5
"""What a sample of a prompt's earlier visit counts beside one of now: the policy has changed."""


@dataclass(frozen=True)
class Prospect:
    """What earlier visits say of a prompt: samples that passed and failed, and the mean length of
    its answers in tokens (None: not known)."""

    passed: float = 0.0
    failed: float = 0.0
    tokens: float | None = None


@dataclass(frozen=True)
class PassRates:
    """What finished groups of `group_size` samples have shown.

    groups: their number. pass_rate: sum of their pass rates. mixed: those with both outcomes.
    failing: those in which no sample passed. flat: those of the failing ones that are not valid,
    which are all of them unless partial rewards may tell samples apart.
    """

    group_size: int
    groups: float = 0.0
    pass_rate: float = 0.0
    mixed: float = 0.0
    failing: float = 0.0
    flat: float = 0.0

    def plus(self, passed: int, scored: int, valid: bool) -> "PassRates":
        """With one more group, of which `scored` samples have a score and `passed` pass."""
        if not scored:
            return self
        failing = passed == 0
        return PassRates(
            self.group_size,
            self.groups + 1,
            self.pass_rate + passed / scored,
            self.mixed + (0 < passed < scored),
            self.failing + failing,
            self.flat + (failing and not valid),
        )

    def limited(self, groups: float) -> "PassRates":
        """The same rates, weighing at most `groups` groups, so that a new policy can show."""
        scale = min(1.0, groups / self.groups) if self.groups else 1.0
        counts = (self.groups, self.pass_rate, self.mixed, self.failing, self.flat)
        return PassRates(self.group_size, *(scale * count for count in counts))

    @cached_property
    def belief(self) -> tuple[float, float]:
        """(a, b) of the Beta distribution that has the mean pass rate and the share of mixed groups
        seen; both with two imagined groups, one mixed and half passing."""
        mean = (self.pass_rate + 1) / (self.groups + 2)
        mixed = (self.mixed + 1) / (self.groups + 2)
        low, high = math.log(_LEAST), math.log(_MOST)
        for _ in range(40):  # the heavier the belief, the more groups are mixed
            middle = (low + high) / 2
            weight = math.exp(middle)
            a, b = mean * weight, (1 - mean) * weight
            if 1 - _all(a, b, self.group_size) - _all(b, a, self.group_size) < mixed:
                low = middle
            else:
                high = middle
        weight = math.exp((low + high) / 2)
        return mean * weight, (1 - mean) * weight

    def chance(self, prospect: Prospect, passed: int, failed: int, left: int) -> float:
        """Of a group to become valid: so many samples passed and failed, all alike; `left` come."""
        key = (prospect.passed, prospect.failed, passed, failed, left)
        if key not in self._chances:  # a step asks for the same ones over and over
            self._chances[key] = self._chance(*key)
        return self._chances[key]

    @cached_property
    def _chances(self) -> dict[tuple[float, float, int, int, int], float]:
        return {}

    def _chance(
        self, passed_before: float, failed_before: float, passed: int, failed: int, left: int
    ) -> float:
        a, b = self.belief
        a += REVISIT * passed_before + passed
        b += REVISIT * failed_before + failed
        flat = (self.flat + 1) / (self.failing + 1)
        all_pass = 0.0 if failed else _all(a, b, left)
        none_pass = 0.0 if passed else _all(b, a, left)
        return max(0.0, 1 - all_pass - flat * none_pass)

    @cached_property
    def valid_rate(self) -> float:
        """The share of valid groups, with two imagined ones of which one is valid."""
        return (self.mixed + self.failing - self.flat + 1) / (self.groups + 2)

    @property
    def doubt(self) -> float:
        """The variance of `valid_rate`: it was seen in so many groups only."""
        return self.valid_rate * (1 - self.valid_rate) / (self.groups + 3)


def _all(a: float, b: float, samples: int) -> float:
    """The chance that all of so many samples pass, if the pass rate is Beta(a, b)."""
    return math.exp(
        math.lgamma(a + samples) - math.lgamma(a) + math.lgamma(a + b)
        - math.lgamma(a + b + samples)
    )  # fmt: skip


@dataclass(slots=True)
class _Undecided:
    prospect: Prospect
    passed: int
    failed: int
    left: int
    chance: float


class Forecast:
    """The chance that enough of the groups launched so far are valid.

    The number of valid groups among the undecided ones is taken for normally distributed. Its
    variance has two parts: each group's own, and the doubt about the rate that all of them share.
    """

    REFIT = 1.2
    """The rates are fitted again once this many times as many groups have been seen."""

    def __init__(self, rates: PassRates) -> None:
        self.rates = rates
        self._used = rates  # those that the chances were computed with
        self._undecided: dict[int, _Undecided] = {}
        self._mean = self._variance = 0.0
        self._left = 0  # samples of undecided groups still to come

    def launch(self, index: int, prospect: Prospect) -> None:
        """A group of which nothing is known but its prospect."""
        group = _Undecided(prospect, 0, 0, self.rates.group_size, 0.0)
        self._undecided[index] = group
        self._left += group.left
        self._count(group, self._used.chance(prospect, 0, 0, group.left))

    def update(self, index: int, passed: int, failed: int, left: int) -> None:
        """More samples of an undecided group; all scores so far are equal."""
        group = self._undecided[index]
        self._left += left - group.left
        group.passed, group.failed, group.left = passed, failed, left
        self._count(group, self._used.chance(group.prospect, passed, failed, left))

    def settle(self, index: int) -> None:
        """A group is known to be valid or not, or nobody wants to know any more."""
        group = self._undecided.pop(index, None)
        if group is not None:
            self._left -= group.left
            self._count(group, 0.0)

    def finish(self, passed: int, scored: int, valid: bool) -> None:
        """A group is complete; the rates learn from it."""
        self.rates = self.rates.plus(passed, scored, valid)
        if self.rates.groups > self.REFIT * self._used.groups:
            self._used = self.rates
            self._mean = self._variance = 0.0
            for group in self._undecided.values():
                group.chance = 0.0
                known = (group.passed, group.failed, group.left)
                self._count(group, self._used.chance(group.prospect, *known))

    @property
    def expected(self) -> float:
        """How many of the undecided groups are expected to be valid."""
        return self._mean

    def probability(self, valid: int) -> float:
        """The chance that at least so many of the undecided groups are valid."""
        if valid <= 0:
            return 1.0
        if valid > len(self._undecided):
            return 0.0
        doubt = self._used.doubt * (self._left / self.rates.group_size) ** 2
        deviation = math.sqrt(max(0.0, self._variance) + doubt)
        return 0.5 * math.erfc((valid - 0.5 - self._mean) / (deviation * math.sqrt(2) + 1e-9))

    def _count(self, group: _Undecided, chance: float) -> None:
        self._mean += chance - group.chance
        self._variance += chance * (1 - chance) - group.chance * (1 - group.chance)
        group.chance = chance
