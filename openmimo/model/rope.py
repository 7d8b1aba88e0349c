"""Rotary position embedding in the Qwen2 convention (two halves, not interleaved pairs)."""

from __future__ import annotations

import torch
from torch import Tensor


def rope_tables(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine for `positions`.

    Args:
        positions: int64 [B, T].
        head_dim: width of a head, even.
        base: RoPE base (theta).

    Returns:
        cos, sin: float32 [B, 1, T, head_dim].
    """
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions[..., None].float() * base**-exponent
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, heads, T, head_dim] by the tables of `rope_tables`; dtype is kept."""
    first, second = x.float().chunk(2, dim=-1)
    rotated = torch.cat([-second, first], dim=-1)
    return (x.float() * cos + rotated * sin).to(x.dtype)
