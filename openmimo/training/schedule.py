"""The pre-training schedule: one table in tokens, read by a pure function.

The trainer keeps no other schedule state, so a resumed run continues exactly where it was.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from openmimo.config.schema import ScheduleRow


@dataclass(frozen=True)
class Point:
    """The schedule's values at one number of tokens seen; `batch` in sequences."""

    stage: str
    learning_rate: float
    batch: int
    length: int
    rope_base: float
    mtp_weight: float
    mixture: dict[str, float]


@dataclass(frozen=True)
class Span:
    """Consecutive steps of one row of the table that have the same batch.

    row: its index in the table; start: tokens seen when the first step begins; batch: sequences.
    """

    row: int
    start: int
    steps: int
    batch: int


class Schedule:
    """`schedule.at(tokens)`. Rows are half-open: a row's `until` already belongs to the next."""

    def __init__(self, rows: tuple[ScheduleRow, ...]) -> None:
        self.rows = rows  # in order: the settings are checked when they are loaded

    @property
    def total_tokens(self) -> int:
        """Tokens of the whole run."""
        return self.rows[-1].until if self.rows else 0

    def at(self, tokens: int) -> Point:
        """Values for the step that starts when `tokens` have been seen (0 <= tokens)."""
        start = 0
        for row in self.rows:
            if tokens < row.until or row is self.rows[-1]:
                break
            start = row.until
        fraction = min((tokens - start) / (row.until - start), 1.0)
        first, last = row.learning_rate
        if row.shape == "cosine":
            rate = last + (first - last) * 0.5 * (1 + math.cos(math.pi * fraction))
        else:
            rate = first + (last - first) * fraction
        return Point(
            stage=row.stage,
            learning_rate=rate,
            batch=_batch(row, start, tokens),
            length=row.length,
            rope_base=row.rope_base,
            mtp_weight=row.mtp_weight,
            mixture=dict(row.mixture.items()),
        )

    def steps(self) -> list[tuple[int, Point]]:
        """Every step of the run as (tokens seen at its start, values)."""
        walk, tokens = [], 0
        while tokens < self.total_tokens:
            point = self.at(tokens)
            walk.append((tokens, point))
            tokens += point.batch * point.length
        return walk

    def starts(self) -> list[int]:
        """Tokens seen at the start of each step."""
        return [
            start
            for span in self.spans()
            for start in range(
                span.start,
                span.start + span.steps * span.batch * self.rows[span.row].length,
                span.batch * self.rows[span.row].length,
            )
        ]

    def spans(self) -> Iterator[Span]:
        """All of `steps`, without walking through them: mimo-7b has more than a million."""
        tokens, start = 0, 0
        for index, row in enumerate(self.rows):
            while tokens < row.until:
                batch = _batch(row, start, tokens)
                size = batch * row.length
                left = range(tokens, row.until, size)
                # The batch moves in one direction, so those that have this one come first.
                steps = bisect_right(left, False, key=lambda t: _batch(row, start, t) != batch)
                yield Span(index, tokens, steps, batch)
                tokens += steps * size
            start = row.until


def _batch(row: ScheduleRow, start: int, tokens: int) -> int:
    """Sequences of the step that begins at `tokens`, in a row that begins at `start`."""
    first, last = row.batch
    return round(first + (last - first) * min((tokens - start) / (row.until - start), 1.0))
