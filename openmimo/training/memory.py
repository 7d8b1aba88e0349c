"""How much memory one rank needs to train: bytes by part, by arithmetic.

No torch here: `mimo plan` must answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from openmimo.config.schema import ComputeConfig, ModelConfig
from openmimo.training.flops import parameters

CONTEXT = 700 * 10**6
"""CUDA's context, kernels, and the work spaces of cuBLAS."""


@dataclass(frozen=True)
class Workload:
    """What one rank computes at a time.

    Attributes:
        tokens: of a micro-batch.
        length: of its rows.
        mtp_layers: MTP layers that are trained.
        trunk: whether the rest of the model is trained too.
        micro_batches: of one step.
    """

    tokens: int
    length: int
    mtp_layers: int
    trunk: bool = True
    micro_batches: int = 1


@dataclass(frozen=True)
class Memory:
    """Bytes by what takes them."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def training_memory(
    config: ModelConfig, compute: ComputeConfig, work: Workload, ranks: int
) -> Memory:
    """Bytes of the fullest moment of a step on one rank."""
    p = parameters(config)
    trained = p.total if work.trunk else p.mtp
    size = 2 if compute.dtype == "bfloat16" else 4
    act = (
        work.tokens
        * size
        * config.num_hidden_layers
        * (2 if compute.activation_checkpointing else 34)
        * config.hidden_size
    )
    return Memory(
        {
            "weights (float32)": 4 * p.total // ranks,
            "AdamW's moments": 8 * trained // ranks,
            "gradients": 4 * trained // (1 if work.micro_batches > 1 else ranks),
            "gathered weights": size * (p.embedding + p.head),
            "activations": act,
            "logits": min(compute.head_chunk, work.tokens) * config.vocab_size * (4 + size),
            "CUDA": CONTEXT,
        }
    )


def longest_length(
    config: ModelConfig, compute: ComputeConfig, work: Workload, ranks: int, memory: float
) -> int:
    """Tokens of the longest row that fits `memory` bytes, one row at a time; a multiple of 256."""

    def room(units: int) -> bool:
        length = 256 * units
        one = replace(work, tokens=length, length=length)
        return training_memory(config, compute, one, ranks).total <= memory

    low, high = 0, 2**16
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if room(middle) else (low, middle - 1)
    return 256 * low
