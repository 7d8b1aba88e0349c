"""Who may attend to whom, derived from positions alone.

A packed row is described by `positions` that restart at 0 with each document. The document mask,
RoPE and the validity of MTP targets all follow from it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def document_starts(positions: Tensor) -> Tensor:
    """Where a document, or the rest of one at the beginning of a row, starts; bool [B, T]."""
    starts = positions == 0
    starts[:, 0] = True
    return starts


def document_mask(positions: Tensor) -> Tensor:
    """Causal mask that keeps packed documents apart.

    Args:
        positions: int64 [B, T], restarting at 0 with each document.

    Returns:
        bool [B, 1, T, T]; True where query t may attend to key s: s <= t in the same document.
    """
    length = positions.shape[1]
    document = (positions == 0).cumsum(dim=1)
    same = document[:, :, None] == document[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=positions.device).tril()
    return (same & causal)[:, None]


def shifted_within_document(values: Tensor, positions: Tensor, shift: int, fill: int) -> Tensor:
    """values[t + shift] where t + shift lies in t's document, else `fill`.

    Example with shift 1 and documents A, B: [A0 A1 A2 B0 B1] -> [A1 A2 fill B1 fill].

    Args:
        values: int64 [B, T].
        positions: int64 [B, T], restarting at 0 with each document.
        shift: how far to look ahead, >= 0.
        fill: value where there is no such token.
    """
    if shift == 0:
        return values
    ahead = torch.roll(values, -shift, dims=1)
    valid = torch.roll(positions, -shift, dims=1) == positions + shift
    # The roll wraps around: the last `shift` columns see the row's beginning.
    valid[:, -shift:] = False
    return torch.where(valid, ahead, fill)
