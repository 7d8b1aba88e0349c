"""What an engine needs, from a model's sizes alone: known before anything is loaded."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from openmimo.config.schema import ModelConfig
from openmimo.errors import UserError
from openmimo.inference.decoder import spare
from openmimo.model.layout import tensor_shapes


def weight_bytes(config: ModelConfig, dtype: torch.dtype, drafts: int) -> int:
    """Bytes of the trunk and `drafts` MTP layers, each weight once.

    The least that a packed model takes: a small one has second copies of its matrices.
    """
    taken = config.model_copy(update={"num_nextn_predict_layers": drafts})
    return dtype.itemsize * sum(math.prod(shape) for _, shape in tensor_shapes(taken))


def cache_bytes(
    config: ModelConfig, dtype: torch.dtype, drafts: int, slots: int, max_length: int
) -> int:
    """Bytes of an engine's caches with every slot full, as `EngineStats.cache_bytes`.

    A position has keys and values in each layer, and with drafts its hidden state.
    """
    layers = config.num_hidden_layers + drafts
    numbers = layers * 2 * config.num_key_value_heads * config.head_dim
    numbers += config.hidden_size if drafts else 0
    return slots * (max_length + spare(drafts)) * numbers * dtype.itemsize


def check_memory(needed: int, device: torch.device, what: str, advice: str) -> None:
    """Raise UserError if a device has less free than `needed` bytes.

    Args:
        what: needs them; a plural.
        advice: what to do about it.
    """
    if needed > (free := free_memory(device)):
        raise UserError(
            f"{what} need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free: {advice}"
        )


def free_memory(device: torch.device) -> float:
    """Bytes that may still be taken; infinite where the system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return float("inf")
    return int(text.split("MemAvailable:")[1].split()[0]) * 1024
