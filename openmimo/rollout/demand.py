"""How many more prompts a step needs, predicted from the share of groups that turn out valid."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ValidRate:
    """Beta belief about the chance that a group is valid, as two counts of groups.

    The default is one imagined group of each kind, so the mean is never 0 or 1.
    """

    valid: float = 1.0
    invalid: float = 1.0

    @property
    def mean(self) -> float:
        return self.valid / (self.valid + self.invalid)

    def plus(self, valid: int, invalid: int) -> "ValidRate":
        """The belief after seeing this many more groups."""
        return ValidRate(self.valid + valid, self.invalid + invalid)

    def limited(self, groups: float) -> "ValidRate":
        """The same mean, weighing at most `groups` groups.

        The policy changes between steps: history carried over must not outweigh the new step.
        """
        scale = min(1.0, groups / (self.valid + self.invalid))
        return ValidRate(self.valid * scale, self.invalid * scale)
