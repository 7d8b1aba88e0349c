"""What the training loop reads: steps, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from openmimo.training.batch import Batch


@dataclass(frozen=True)
class Step:
    """One step's input and settings; `rope_base` is as in the schedule.

    Attributes:
        batch: the rows of this rank.
        rows: of the whole step, over all ranks.
        mixture: the sources' shares in the tokens of this pre-training stage so far; else empty.
    """

    stage: str
    batch: Batch
    rows: int
    learning_rate: float
    mtp_weight: float
    rope_base: float
    mixture: Mapping[str, float] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return self.batch.ids.shape[1]

    @property
    def tokens(self) -> int:
        """Of the whole step."""
        return self.rows * self.length


class Source(Protocol):
    """Where a stage's steps come from. Every rank has one; they differ in the rows they read."""

    total_steps: int

    def step(self, index: int) -> Step:
        """Step `index`; called in order, once each, except after `restore`."""

    def state(self) -> dict[str, Any]:
        """JSON state after the last step, the same on every rank."""

    def restore(self, state: dict[str, Any]) -> None:
        """Continue after that state."""
