"""Which engine generates a sample."""

from collections.abc import Sequence

import numpy as np

from openmimo.errors import UserError


class Placement:
    """Keeps company away from samples that are expected to be long. Pure; one object a rollout.

    A step ends with its longest samples. A decode step costs an engine a + c * rows, so a token of
    one sample delays each other sample of its engine by c. A sample's weight, its expected length
    to the power of `RISK`, says how likely the step waits for it. Two samples on one engine harm
    each other by weight * tokens of the other; each sample goes where it adds the least harm.
    Placed longest first, long samples spread over the engines, and have few beside them.
    """

    RISK = 1.5

    def __init__(self, slots: Sequence[int]) -> None:
        """slots: of each engine, samples that it generates at once."""
        if not slots or min(slots) < 1:
            raise UserError(f"every engine needs at least one slot, not {list(slots)}")
        self._free = np.array(slots)
        self._tokens = np.zeros(len(slots))  # of the samples that each engine has
        self._weight = np.zeros(len(slots))
        self._alive = np.ones(len(slots), bool)

    @property
    def slots(self) -> int:
        """Free slots of the engines that are there."""
        return int(self._free[self._alive].sum())

    def take(self, tokens: float, prompt: int) -> int:
        """The engine for a sample of this expected length; its slot is taken.

        Raises:
            ValueError: no engine has a free slot.
        """
        usable = self._alive & (self._free > 0)
        if not usable.any():
            raise ValueError("no engine has a free slot")
        engine = self._choose(usable, tokens, prompt)
        self._free[engine] -= 1
        self._tokens[engine] += tokens
        self._weight[engine] += tokens**self.RISK
        return engine

    def _choose(self, usable: np.ndarray, tokens: float, prompt: int) -> int:
        harm = tokens**self.RISK * self._tokens + tokens * self._weight
        return int(np.where(usable, harm, np.inf).argmin())

    def give_back(self, engine: int, tokens: float) -> None:
        """A sample taken with this expected length has left the engine."""
        self._free[engine] += 1
        self._tokens[engine] = max(0.0, self._tokens[engine] - tokens)
        self._weight[engine] = max(0.0, self._weight[engine] - tokens**self.RISK)

    def down(self, engine: int) -> None:
        """The engine is gone. What it had is given back by its samples' ends."""
        self._alive[engine] = False

    def up(self, engine: int) -> None:
        """The engine is there (again)."""
        self._alive[engine] = True


class EvenSamples(Placement):
    """Sends each sample to the engine with the fewest."""

    def __init__(self, slots: Sequence[int]) -> None:
        super().__init__(slots)
        self._slots = np.array(slots)

    def _choose(self, usable: np.ndarray, tokens: float, prompt: int) -> int:
        return int(np.where(usable, self._slots - self._free, np.inf).argmin())


class WholeGroups(EvenSamples):
    """Sends all samples of a prompt to one engine, the one with the fewest samples when the first
    comes, as published engines do; elsewhere only when its slots are taken."""

    def __init__(self, slots: Sequence[int]) -> None:
        super().__init__(slots)
        self._home: dict[int, int] = {}

    def _choose(self, usable: np.ndarray, tokens: float, prompt: int) -> int:
        home = self._home.get(prompt)
        if home is None or not usable[home]:
            home = self._home[prompt] = super()._choose(usable, tokens, prompt)
        return home


PLACEMENTS = {"group": WholeGroups, "sample": EvenSamples, "tokens": Placement}
"""By `Policy.places`."""
