"""What a training step reads: packed rows described by positions."""

from __future__ import annotations

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
class Batch:
    """Packed rows.

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
        rows = max(1, tokens // self.ids.shape[1])
        for start in range(0, self.ids.shape[0], rows):
            part = slice(start, start + rows)
            hidden = None if self.hidden is None else self.hidden[part]
            yield Batch(self.ids[part], self.positions[part], self.targets[part], hidden)


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


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """First-fit decreasing: which items share a row of `capacity` tokens.

    Raises:
        ValueError: an item is longer than a row.
    """
    order = sorted(range(len(lengths)), key=lambda item: (-lengths[item], item))
    if lengths and lengths[order[0]] > capacity:
        raise ValueError(f"an item of {lengths[order[0]]} tokens does not fit a row of {capacity}")
    rows: list[list[int]] = []
    free: list[int] = []
    for item in order:
        need = lengths[item]
        row = next((r for r, space in enumerate(free) if space >= need), None)
        if row is None:
            rows.append([item])
            free.append(capacity - need)
        else:
            rows[row].append(item)
            free[row] -= need
    return rows
