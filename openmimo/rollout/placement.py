"""Which engine generates a sample."""

from collections.abc import Sequence

import numpy as np

from openmimo.errors import UserError


class Placement:
    """Keeps the expected outstanding tokens of all engines even. Pure; one object a rollout.

    An engine's time for its samples is about a * longest + c * sum of lengths (a decode step costs
    a, and c more for each of its rows). Placed longest first, the longest samples spread over the
    engines, and even sums leave those with a very long one fewer others.
    """

    def __init__(self, slots: Sequence[int]) -> None:
        """slots: of each engine, samples that it generates at once."""
        if not slots or min(slots) < 1:
            raise UserError(f"every engine needs at least one slot, not {list(slots)}")
        self._free = np.array(slots)
        self._load = np.zeros(len(slots))
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
        engine = int(np.where(usable, self._load, np.inf).argmin())
        self._free[engine] -= 1
        self._load[engine] += tokens
        return engine

    def give_back(self, engine: int, tokens: float) -> None:
        """A sample taken with this expected length has left the engine."""
        self._free[engine] += 1
        self._load[engine] = max(0.0, self._load[engine] - tokens)

    def down(self, engine: int) -> None:
        """The engine is gone. What it had is given back by its samples' ends."""
        self._alive[engine] = False

    def up(self, engine: int) -> None:
        """The engine is there (again)."""
        self._alive[engine] = True


class WholeGroups(Placement):
    """Sends all samples of a prompt to one engine, the one with the fewest samples, as published
    engines do; elsewhere only when its slots are taken."""

    def __init__(self, slots: Sequence[int]) -> None:
        super().__init__(slots)
        self._home: dict[int, int] = {}

    def take(self, tokens: float, prompt: int) -> int:
        home = self._home.get(prompt)
        if home is None or not self._alive[home] or not self._free[home]:
            home = super().take(1.0, prompt)
            self._home[prompt] = home
            return home
        self._free[home] -= 1
        self._load[home] += 1.0
        return home

    def give_back(self, engine: int, tokens: float) -> None:
        super().give_back(engine, 1.0)


class EvenSamples(Placement):
    """Sends each sample to the engine with the fewest."""

    def take(self, tokens: float, prompt: int) -> int:
        return super().take(1.0, prompt)

    def give_back(self, engine: int, tokens: float) -> None:
        super().give_back(engine, 1.0)


PLACEMENTS = {"group": WholeGroups, "sample": EvenSamples, "tokens": Placement}
"""By `Policy.places`."""
