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
    config: ModelConfig, compute: ComputeConfig, work: Workload, ranks: int, cpu: bool = False
) -> Memory:
    """Bytes of the fullest moment of a step on one rank.

    Args:
        config: the model, with all the MTP layers that it has in the stage.
        compute: precision, activation checkpointing, compilation, head chunk.
        work: what the rank computes.
        ranks: over which the model is cut.
        cpu: the mask is a matrix there, and there is no CUDA.
    """
    step = _Step(config, compute, work, ranks, cpu)
    begin, end = step.backward_begins(), step.backward_ends()
    return Memory(step.lasting() | max(begin, end, key=lambda parts: sum(parts.values())))


@dataclass(frozen=True)
class _Step:
    """Sizes in bytes at the two moments."""

    config: ModelConfig
    compute: ComputeConfig
    work: Workload
    ranks: int
    cpu: bool

    @property
    def size(self) -> int:
        """Of one number in products and activations."""
        return 2 if self.compute.dtype == "bfloat16" else 4

    @property
    def sharded(self) -> bool:
        """One process in float32 trains the modules as they are."""
        return self.ranks > 1 or self.compute.dtype == "bfloat16"

    @property
    def block(self) -> int:
        """Parameters of the largest group that is gathered at once: a trunk or an MTP layer."""
        p, c = parameters(self.config), self.config
        return max(p.layers // c.num_hidden_layers, p.mtp // max(c.num_nextn_predict_layers, 1))

    @property
    def root(self) -> int:
        """Parameters of the group of embedding, final norm and head."""
        p = parameters(self.config)
        return p.embedding + p.norm + p.head

    @property
    def trained(self) -> int:
        p = parameters(self.config)
        if self.work.trunk:
            return p.total
        return p.mtp * self.work.mtp_layers // max(self.config.num_nextn_predict_layers, 1)

    def shard(self, count: int) -> int:
        """A rank's part of `count` parameters."""
        return -(-count // self.ranks)

    def lasting(self) -> dict[str, int]:
        """What is there in every moment."""
        return {
            "weights (float32)": 4 * self.shard(parameters(self.config).total),
            "AdamW's moments": 8 * self.shard(self.trained),
            "CUDA": 0 if self.cpu else CONTEXT,
        }

    def backward_begins(self) -> dict[str, int]:
        """All activations are there; gradients only of earlier micro-batches, and the head's."""
        tokens = self.work.tokens
        kept, passing = self._activations()
        head = self.size * self.config.vocab_size * self.config.hidden_size * self.work.trunk
        gradients = 4 * self.shard(self.trained) if self.work.micro_batches > 1 else 0
        if self.sharded:
            # The layer at work, and the next one on its way.
            gathered = self.size * (self.root + 2 * self.block)
            flying = (self.size + 4) * self.block * bool(self.trained)
        else:
            gathered = flying = 0
        return {
            "gradients": gradients + head,
            "gathered weights": gathered,
            "activations": tokens * kept,
            "logits or a layer's backward": max(self._logits(), tokens * passing + flying),
        }

    def backward_ends(self) -> dict[str, int]:
        """All gradients are there; those of embedding and head are being summed over the ranks."""
        root = self.root * self.work.trunk
        return {
            "gradients": 4 * self.shard(self.trained),
            "gathered weights": self.size * self.root * self.sharded,
            "gradients in transit": (self.size + 4) * root * self.sharded,
        }

    def _logits(self) -> int:
        """Of a chunk of the head: scores in the products' type, in float32, and their gradient."""
        return (
            min(self.compute.head_chunk, self.work.tokens)
            * self.config.vocab_size
            * (8 + self.size)
        )

    def _activations(self) -> tuple[int, int]:
        """Bytes of a token: what all layers keep, and what passes while one goes backward."""
        c, s = self.config, self.size
        wide, inner = c.hidden_size, c.intermediate_size
        query, key = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        norm = (4 + s) * wide + 4  # its input in float32, the normed state, the factor
        attention = s * (2 * query + 2 * key) + 4 * c.num_attention_heads
        if self.cpu:
            attention += s * self.work.length  # the row of the mask, in the type of the scores
        block = 2 * (norm + s * wide) + attention + 4 * s * inner
        mtp = block + 3 * norm + 4 * s * wide
        passing = s * (3 * inner + 2 * wide)
        layers = c.num_hidden_layers if self.work.trunk else 0
        shared = 8 * c.head_dim + s * wide + norm
        if self.compute.activation_checkpointing:
            kept = s * wide * (layers + 2 * self.work.mtp_layers)
            return kept + shared, passing + (mtp if self.work.mtp_layers else block)
        return layers * block + self.work.mtp_layers * mtp + shared, passing


def longest_length(
    config: ModelConfig,
    compute: ComputeConfig,
    work: Workload,
    ranks: int,
    memory: float,
    cpu: bool = False,
) -> int:
    """Tokens of the longest row that fits `memory` bytes, one row at a time; a multiple of 256."""

    def room(units: int) -> bool:
        length = 256 * units
        one = replace(work, tokens=length, length=length)
        return training_memory(config, compute, one, ranks, cpu).total <= memory

    low, high = 0, 2**16
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if room(middle) else (low, middle - 1)
    return 256 * low
