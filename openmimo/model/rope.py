"""Rotary position embedding in the Qwen2 convention (two halves, not interleaved pairs)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from openmimo.config.schema import RopeScaling


def rope_tables(
    positions: Tensor, head_dim: int, base: float, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine and sine for `positions`.

    Args:
        positions: int64 [B, T].
        head_dim: width of a head, even.
        base: RoPE base (theta).
        scaling: of an imported model with a stretched context.

    Returns:
        cos, sin: float32 [B, 1, T, head_dim].
    """
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    frequencies = base**-exponent
    if scaling is not None:
        frequencies = stretched(frequencies, scaling)
    angles = positions[..., None].float() * frequencies
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [..., head_dim] by tables of `rope_tables` that broadcast to it; dtype is kept."""
    wide = x.float()
    first, second = wide.chunk(2, dim=-1)
    rotated = torch.cat([-second, first], dim=-1)
    return torch.addcmul(wide * cos, rotated, sin).to(x.dtype)


def stretched(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """RoPE frequencies (radians a token) for a longer context, as in Llama 3.1 or linear.

    With llama3, a frequency that turns `high_freq_factor` times or more within the original context
    stays, one that turns at most `low_freq_factor` times is divided by the factor, and between the
    two the result is interpolated.
    """
    divided = frequencies / scaling.factor
    if scaling.kind == "linear":
        return divided
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return keep * frequencies + (1 - keep) * divided
