"""Loss spikes, gradient-norm spikes and steps that are not finite: counted, and said aloud.

Nothing here changes the training. A step whose gradient is not finite has been skipped by the
optimiser (`training/optim.py`) before it is counted; only a run in which every step is skipped is
stopped, because it would go on for days without learning anything.

A value is a spike if it lies far above the running median of its stage, in units of the median
absolute deviation (MAD). Neither moves when a few values are wild, unlike mean and standard
deviation, which a spike would widen so much that the next one passes. Thresholds: a run of nano
has none of the loss and two of the gradient norm in 3,172 steps.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

from openmimo.errors import UserError

WINDOW = 128
"""Steps that median and MAD are taken over."""
FEWEST = 32
"""Steps of a stage before any of them can be a spike."""
LOSS_DEVIATIONS, LOSS_MARGIN = 6.0, 0.05
"""A loss spike is this many standard deviations and this share of the median above the median."""
NORM_DEVIATIONS, NORM_MARGIN = 10.0, 1.0
"""The same for gradient norms, whose distribution has a long tail."""
MOST_SKIPPED = 20
"""Steps in a row that are not finite after which the run is stopped."""

MAD_TO_DEVIATION = 1.4826
"""Standard deviation of a normal distribution, in units of its MAD."""


class RunningLimit:
    """Says which values of a series are spikes.

    Values that follow each other are one spike. They count for the median too: a level that stays
    is the new normal after half a window.
    """

    def __init__(self, deviations: float, margin: float) -> None:
        self._deviations, self._margin = deviations, margin
        self._values: deque[float] = deque(maxlen=WINDOW)
        self._above = False
        self.spikes = 0

    def clear(self) -> None:
        """Forget the values, not the count."""
        self._values.clear()
        self._above = False

    def add(self, value: float) -> float | None:
        """The median that `value` is far above if a spike begins with it, else None."""
        middle, limit = self._limit()
        began = value > limit and not self._above
        self._above = value > limit
        self._values.append(value)
        self.spikes += began
        return middle if began else None

    def _limit(self) -> tuple[float, float]:
        """Median, and what a value must exceed to be a spike."""
        if len(self._values) < FEWEST:
            return math.nan, math.inf
        middle = median(self._values)
        deviation = MAD_TO_DEVIATION * median(abs(value - middle) for value in self._values)
        return middle, middle + max(self._deviations * deviation, self._margin * middle)

    def state(self) -> dict[str, Any]:
        return {"values": list(self._values), "above": self._above, "spikes": self.spikes}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._values = deque(state["values"], maxlen=WINDOW)
        self._above, self.spikes = state["above"], state["spikes"]


class SpikeWatch:
    """Counters over the steps of a training stage; `state()` is JSON for its checkpoints.

    Attributes:
        skipped: steps whose gradient was not finite, so that they changed nothing.
    """

    def __init__(self) -> None:
        self._loss = RunningLimit(LOSS_DEVIATIONS, LOSS_MARGIN)
        self._norm = RunningLimit(NORM_DEVIATIONS, NORM_MARGIN)
        self._stage = ""
        self._in_a_row = 0
        self.skipped = 0

    def observe(self, step: int, stage: str, loss: float, grad_norm: float) -> list[str]:
        """Take in a finished step and return a line for everything unusual in it.

        Args:
            step: its number, from 1.
            stage: where another one begins the medians begin anew: its data and lengths differ.
            loss: nats a token.
            grad_norm: before clipping; not finite means that the step was skipped.

        Raises:
            UserError: the last `MOST_SKIPPED` steps were all skipped.
        """
        if not math.isfinite(grad_norm):
            return [self._skip(step, loss, grad_norm)]
        self._in_a_row = 0
        if stage != self._stage:
            self._stage = stage
            self._loss.clear()
            self._norm.clear()
        found = []
        for name, limit, value in (
            ("loss", self._loss, loss),
            ("gradient norm", self._norm, grad_norm),
        ):
            # A weighted sum may overflow while its gradient is finite: no value for a median.
            middle = limit.add(value) if math.isfinite(value) else None
            if middle is not None:
                found.append(f"step {step}: {name} spike, {value:.4g} (median {middle:.4g})")
        return found

    def _skip(self, step: int, loss: float, grad_norm: float) -> str:
        self.skipped += 1
        self._in_a_row += 1
        what = f"loss {loss:.4g}, gradient norm {grad_norm:.4g}"
        if self._in_a_row >= MOST_SKIPPED:
            raise UserError(
                f"the gradients of steps {step - MOST_SKIPPED + 1} to {step} were all not finite "
                f"({what}) and changed nothing: the model has diverged. Go on from an earlier "
                "checkpoint, or begin again, with a lower learning rate or compute.dtype=float32"
            )
        return f"step {step}: gradient is not finite ({what}), step skipped"

    def counts(self) -> dict[str, int]:
        """Fields of metrics.jsonl, counted since the stage's first step."""
        return {
            "loss_spikes": self._loss.spikes,
            "norm_spikes": self._norm.spikes,
            "skipped": self.skipped,
        }

    def state(self) -> dict[str, Any]:
        """JSON for `restore`."""
        return {
            "loss": self._loss.state(),
            "norm": self._norm.state(),
            "stage": self._stage,
            "in_a_row": self._in_a_row,
            "skipped": self.skipped,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._loss.restore(state["loss"])
        self._norm.restore(state["norm"])
        self._stage, self._in_a_row = state["stage"], state["in_a_row"]
        self.skipped = state["skipped"]
