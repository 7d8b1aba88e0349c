"""How much memory a model takes: arithmetic, with what is assumed written beside it.

Bytes throughout. What openmimo itself does is counted: every layer's cache has the full context,
training is in float32 and keeps all activations of a micro-batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from openmimo.config.schema import ComputeConfig, ModelConfig
from openmimo.model.layout import tensor_shapes
from openmimo.training.memory import LASTING, Workload, training_memory

PROGRAM = 250 * 10**6
"""Python and torch themselves, before a model is loaded; measured."""
ALLOCATOR = 1.75
"""The C library's allocator cannot reuse all that a backward pass frees. Resident memory of a
real step on a CPU (2 M parameters, 4,096 tokens), but for weights, gradients and moments, was 1.86
times what `training.memory` counts."""

_FLOAT32 = 4


@dataclass(frozen=True)
class Need:
    """Memory for one purpose.

    parts: bytes, by what takes them.
    assumes: in words, what the numbers hold for.
    """

    purpose: str
    parts: dict[str, int]
    assumes: str

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


def parameter_count(config: ModelConfig) -> int:
    """Weights of a model in openmimo, which always has a head and biases of its own.

    One layer of each kind is counted: a config.json may claim two thousand million.
    """

    def count(trunk: int, mtp: int) -> int:
        layers = {"num_hidden_layers": trunk, "num_nextn_predict_layers": mtp}
        return sum(math.prod(s) for _, s in tensor_shapes(config.model_copy(update=layers)))

    rest = count(0, 0)
    trunk = config.num_hidden_layers * (count(1, 0) - rest)
    return rest + trunk + config.num_nextn_predict_layers * (count(0, 1) - rest)


def to_run(
    config: ModelConfig, parameters: int, itemsize: int, dtype: str, context: int, batch: int
) -> Need:
    """Memory to generate text.

    Args:
        config: the model's shape.
        parameters: how many weights there are.
        itemsize: bytes of one weight, and of one entry of the cache.
        dtype: what that type is called.
        context: tokens of a sequence, prompt and answer.
        batch: sequences at once.
    """
    layers = config.num_hidden_layers + config.num_nextn_predict_layers
    entry = 2 * layers * config.num_key_value_heads * config.head_dim
    return Need(
        f"run in {dtype}",
        {
            "weights": parameters * itemsize,
            "keys and values": entry * itemsize * context * batch,
            "program": PROGRAM,
        },
        f"{_sequences(batch)} of {context:,} tokens, the cache in {dtype} too"
        + (", MTP layers in use" if config.num_nextn_predict_layers else ""),
    )


def to_train(config: ModelConfig, parameters: int, tokens: int, length: int) -> Need:
    """Memory for a training step on a CPU.

    Args:
        config: the model's shape.
        parameters: how many weights there are, all of them trained.
        tokens: of one micro-batch.
        length: of one packed row, in tokens.
    """
    work = Workload(tokens, length, config.num_nextn_predict_layers)
    parts = training_memory(config, ComputeConfig(), work, ranks=1, cpu=True).parts
    held = sum(size for name, size in parts.items() if name not in LASTING)
    return Need(
        "train",
        {
            "weights": parameters * _FLOAT32,
            "gradients": parameters * _FLOAT32,
            "AdamW's two moments": 2 * parameters * _FLOAT32,
            "activations": round(ALLOCATOR * held),
            "program": PROGRAM,
        },
        f"float32 AdamW, {tokens:,} tokens a micro-batch in rows of {length:,}, nothing "
        "recomputed; what the layers keep for the backward pass and the logits of one chunk, "
        f"times {ALLOCATOR} for what the allocator cannot reuse",
    )


def _sequences(batch: int) -> str:
    return "one sequence" if batch == 1 else f"{batch} sequences"
