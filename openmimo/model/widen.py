"""The same model with wider heads, for vLLM, whose attention takes only some shapes.

vLLM's MiMo and Qwen2 take hidden_size / num_attention_heads for head_dim, whatever config.json
says, and on a CPU run only the sizes below. A shape in between gets zeros: in every head and in the
residual stream. What the zeros would change is made up for by constant factors:

    attention divides by sqrt(head_dim)           q_proj is multiplied by sqrt(new / old)
    RoPE turns pair i by base^(-2i / head_dim)    pair i becomes pair i * step, step = new // old,
                                                  and base becomes base^(new / (step * old))
    RMSNorm divides by a mean over hidden_size    weight times sqrt(old / new), eps times old / new

So the logits stay the same up to rounding, and so does what the MTP layers draft. Our own engine
takes the zeros out again (`narrow`), as they cost it time: the folder says what the sizes were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from openmimo.config.schema import ModelConfig
from openmimo.errors import UserError
from openmimo.model.layout import tensor_shapes
from openmimo.model.published import make_config

HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""What vLLM 0.32 runs on a CPU (`CPUAttentionBackend.get_supported_head_sizes`)."""

CHANGED = ("hidden_size", "head_dim", "rope_theta", "rms_norm_eps")
"""The fields of a config that widening changes."""


def vllm_shape(config: ModelConfig) -> ModelConfig:
    """`config` with the smallest heads, not smaller than its own, that vLLM runs.

    Raises:
        UserError: the heads are too large, or what makes up for their zeros is out of range.
    """
    heads, old = config.num_attention_heads, config.head_dim
    for new in HEAD_DIMS:
        if new >= old and heads * new >= config.hidden_size:
            break
    else:
        raise UserError(
            f"{heads} heads of {old} numbers, hidden_size {config.hidden_size}: vLLM runs heads of "
            f"at most {HEAD_DIMS[-1]} numbers, and hidden_size must be that of all heads together"
        )
    hidden = heads * new
    base = config.rope_theta ** (new / (new // old * old))
    changes: dict[str, Any] = {"head_dim": new, "hidden_size": hidden, "rope_theta": base}
    if hidden != config.hidden_size:
        changes["rms_norm_eps"] = config.rms_norm_eps * config.hidden_size / hidden
    where = f"heads of {old} numbers as vLLM's of {new}"
    return make_config(config.model_dump() | changes, config.rope_scaling, where)


def widen(name: str, tensor: Tensor, old: ModelConfig, new: ModelConfig) -> Tensor:
    """One published tensor in the shape of `vllm_shape`.

    Args:
        name: its published name.
        tensor: of a model of shape `old`.
        old, new: `new` is `vllm_shape(old)`.

    Returns:
        float32, unless the two shapes are equal; the factors are not exact in bfloat16.
    """
    if old == new:
        return tensor
    places, sizes, factor = _layout(name, tensor.shape, old, new)
    wide = torch.zeros(sizes)
    wide[torch.meshgrid(*places, indexing="ij")] = tensor.float() * factor
    return wide


def narrow(name: str, tensor: Tensor, old: ModelConfig, new: ModelConfig) -> Tensor:
    """The inverse of `widen`: a tensor of shape `new` without the zeros, in its own dtype.

    Raises:
        UserError: what should be zeros is something else: the weights were changed since.
    """
    if old == new:
        return tensor
    shape = dict(tensor_shapes(old))[name]
    places, _, factor = _layout(name, shape, old, new)
    kept = tensor[torch.meshgrid(*places, indexing="ij")]
    if tensor.count_nonzero() != kept.count_nonzero():
        raise UserError(
            f"{name} has numbers where `mimo export --to vllm` wrote zeros: the model was trained "
            "on since. Remove before_widening from its openmimo.json"
        )
    return (kept.float() / factor).to(tensor.dtype)


def _layout(
    name: str, shape: Sequence[int], old: ModelConfig, new: ModelConfig
) -> tuple[list[Tensor], list[int], float]:
    """Where the numbers of a tensor of `shape` go: indices and new size of each dimension, and the
    factor that they are multiplied with."""
    part = name.split(".")[-2]
    places = [torch.arange(size) for size in shape]
    sizes, factor = list(shape), 1.0
    if part in ("q_proj", "k_proj", "v_proj"):
        count = old.num_attention_heads if part == "q_proj" else old.num_key_value_heads
        places[0], sizes[0] = _in_heads(count, old, new), count * new.head_dim
    if part == "q_proj":
        factor = (new.head_dim / old.head_dim) ** 0.5
    if part in ("o_proj", "down_proj", "input_proj"):  # they write to the residual stream
        sizes[0] = new.hidden_size
    elif len(shape) > 1:  # the others read it
        sizes[1] = new.hidden_size
    if part == "o_proj":
        count = old.num_attention_heads
        places[1], sizes[1] = _in_heads(count, old, new), count * new.head_dim
    if part == "input_proj":
        hidden = torch.arange(old.hidden_size)
        places[1], sizes[1] = torch.cat([hidden, new.hidden_size + hidden]), 2 * new.hidden_size
    if "norm" in part:
        sizes[0], factor = new.hidden_size, (old.hidden_size / new.hidden_size) ** 0.5
    return places, sizes, factor


def _in_heads(count: int, old: ModelConfig, new: ModelConfig) -> Tensor:
    """Where the numbers of `count` old heads go among those of the new ones, int64.

    RoPE turns number i of a head with number i + head_dim / 2, so each half keeps its own zeros.
    """
    half = torch.arange(old.head_dim // 2) * (new.head_dim // old.head_dim)
    head = torch.cat([half, new.head_dim // 2 + half])
    return (torch.arange(count)[:, None] * new.head_dim + head).flatten()
