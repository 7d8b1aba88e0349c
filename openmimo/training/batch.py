"""What a training step reads: packed rows described by positions."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from openmimo.model.masks import shifted_within_document

IGNORE = -100


@dataclass(frozen=True)
class Segment:
    """A document, or a piece of one, that is to stand in a row.

    Attributes:
        ids: its tokens, [n].
        loss_from: tokens before this index are context only (a prompt), never a target.
    """

    ids: np.ndarray
    loss_from: int = 0


@dataclass(frozen=True)
class Share:
    """A rank's part of every step: consecutive rows, some ranks one fewer than others.

    Which rows a step has does not depend on it, only who reads them.
    """

    rank: int = 0
    size: int = 1

    def of(self, rows: int) -> range:
        """Which of a step's rows 0 .. rows - 1 are this rank's."""
        return range(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)


WHOLE = Share()
"""All rows: those of a single process."""


@dataclass(frozen=True)
class Batch:
    """Packed rows, perhaps none.

    Attributes:
        ids: int64 [B, T].
        positions: int64 [B, T], restarting at 0 with each segment (padding counts as one).
        targets: int64 [B, T]; the token itself where it may be a target, else IGNORE. Losses
            shift it: main predicts targets[t + 1], MTP layer i predicts targets[t + 2 + i].
        hidden: the trunk's output, [B, T, D], where it is known already because the trunk is
            frozen.
    """

    ids: Tensor
    positions: Tensor
    targets: Tensor
    hidden: Tensor | None = None

    def labels(self, shift: int) -> Tensor:
        """targets[t + shift] inside t's document, else IGNORE; int64 [B, T]."""
        return shifted_within_document(self.targets, self.positions, shift, IGNORE)

    def split(self, tokens: int) -> Iterator[Batch]:
        """Micro-batches of at most `tokens` tokens (at least one row)."""
        rows = rows_at_once(tokens, self.ids.shape[1])
        for start in range(0, self.ids.shape[0], rows):
            part = slice(start, start + rows)
            hidden = None if self.hidden is None else self.hidden[part]
            yield Batch(self.ids[part], self.positions[part], self.targets[part], hidden)

    def blank(self) -> Batch:
        """One row of this length without a target: it takes part and changes nothing."""
        length = self.ids.shape[1]
        ids = self.ids.new_zeros(1, length)
        positions = torch.arange(length, device=ids.device)[None]
        hidden = None if self.hidden is None else self.hidden.new_zeros(1, *self.hidden.shape[1:])
        return Batch(ids, positions, torch.full_like(ids, IGNORE), hidden)

    def to(self, device: torch.device) -> Batch:
        """The same rows on a device."""
        hidden = None if self.hidden is None else self.hidden.to(device)
        return Batch(
            self.ids.to(device, non_blocking=True),
            self.positions.to(device, non_blocking=True),
            self.targets.to(device, non_blocking=True),
            hidden,
        )


def batch_rows(rows: Sequence[Sequence[Segment]], length: int, pad_id: int) -> Batch:
    """Lay rows of segments side by side; each row's segments must fit `length`."""
    ids = np.full((len(rows), length), pad_id, dtype=np.int64)
    positions = np.zeros((len(rows), length), dtype=np.int64)
    targets = np.full((len(rows), length), IGNORE, dtype=np.int64)
    for index, row in enumerate(rows):
        start = 0
        for segment in row:
            end = start + len(segment.ids)
            ids[index, start:end] = segment.ids
            positions[index, start:end] = np.arange(end - start)
            targets[index, start + segment.loss_from : end] = segment.ids[segment.loss_from :]
            start = end
        positions[index, start:] = np.arange(length - start)
    return Batch(torch.from_numpy(ids), torch.from_numpy(positions), torch.from_numpy(targets))


def rows_at_once(tokens: int, length: int) -> int:
    """Rows of `length` tokens in a micro-batch of at most `tokens`; at least one."""
    return max(1, tokens // length)


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: which items share a row of `capacity` tokens.

    The longest item goes first, each into the row that it fills up most; O(n log n) but for the
    moves inside one sorted list of at most `capacity` different amounts of free space.

    Raises:
        ValueError: an item is longer than a row.
    """
    order = sorted(range(len(lengths)), key=lambda item: (-lengths[item], item))
    if lengths and lengths[order[0]] > capacity:
        raise ValueError(f"an item of {lengths[order[0]]} tokens does not fit a row of {capacity}")
    rows: list[list[int]] = []
    by_space: dict[int, list[int]] = {}  # rows with this much free space, the latest one last
    spaces: list[int] = []  # the keys of by_space, sorted
    for item in order:
        need = lengths[item]
        place = bisect_left(spaces, need)
        if place == len(spaces):
            row, space = len(rows), capacity
            rows.append([])
        else:
            space = spaces[place]
            row = by_space[space].pop()
            if not by_space[space]:
                del by_space[space], spaces[place]
        rows[row].append(item)
        left = space - need
        if left not in by_space:
            by_space[left] = []
            insort(spaces, left)
        by_space[left].append(row)
    return rows
