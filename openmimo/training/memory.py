"""How much memory one rank needs to train: bytes by part, by arithmetic.

No torch here: `mimo plan` must answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from openmimo.config.schema import ComputeConfig, ModelConfig
from openmimo.training.activations import activations
from openmimo.training.flops import parameters

CUDA = "CUDA"
WEIGHTS, MOMENTS, GRADIENTS = "weights (float32)", "AdamW's moments", "gradients"
LASTING = (WEIGHTS, MOMENTS, GRADIENTS, CUDA)
"""Parts that follow from the number of parameters; the others from what a rank computes."""
CUDA_BYTES = 700 * 10**6
"""CUDA's context and kernels, which no allocator counts."""


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
            WEIGHTS: 4 * self.shard(parameters(self.config).total),
            MOMENTS: 8 * self.shard(self.trained),
            CUDA: 0 if self.cpu else CUDA_BYTES,
        }

    @property
    def head(self) -> int:
        """Parameters of the head if it is trained."""
        return self.config.vocab_size * self.config.hidden_size * self.work.trunk

    def backward_begins(self) -> dict[str, int]:
        """All activations are there, but gradients only of the head and of earlier micro-batches.

        Two things do not happen at once: the head turns its logits into gradients, or a layer goes
        backward, is computed again before and has its gradients summed over the ranks.
        """
        earlier = 4 * self.shard(self.trained) if self.work.micro_batches > 1 else 0
        kept, again = self._kept()
        losses = self.work.mtp_layers + self.work.trunk
        head_inputs = losses * self.size * self.config.hidden_size * self.work.tokens
        logits = min(self.compute.head_chunk, losses * self.work.tokens) * self.config.vocab_size
        # The scores as they are multiplied, in float32, and their gradient; the head's inputs, the
        # same side by side and their gradient; in float32 the sum of the weights' gradient, and a
        # chunk's part of it.
        copies = 8 if self.size == 2 else 4
        head = copies * logits + 3 * head_inputs + (4 + self.size * (self.size == 2)) * self.head
        gathered = 0
        if self.sharded:
            gathered = self.size * (self.root + 2 * self.block)  # the next layer is on its way
            # Its gradients are summed over the ranks when all else of it is gone.
            again = self.size * self.block + max(again, 4 * self.block)
        layer = again + head_inputs + self.size * self.head
        return {
            "gathered weights": gathered,
            GRADIENTS: earlier,
            "activations": kept,
            **({"head": head} if head > layer else {"a layer's backward": layer}),
        }

    def backward_ends(self) -> dict[str, int]:
        """All gradients are there; those of embedding and head are being summed over the ranks, or
        the embedding's own, of the trunk and of an MTP layer, to one."""
        if self.sharded:
            transit = (self.size + 4) * self.root * self.work.trunk
        else:
            transit = 2 * self.size * self.head * bool(self.work.mtp_layers)
        return {
            "gathered weights": self.size * self.root * self.sharded,
            GRADIENTS: 4 * self.shard(self.trained),
            "gradients in transit": transit,
        }

    def _kept(self) -> tuple[int, int]:
        """Activations of the micro-batch: what all layers keep, and what one needs besides."""
        # Float32 on a GPU has no kernel that knows documents: each layer keeps its mask.
        mask = self.work.length if self.size == 4 and not self.cpu else 0
        a = activations(self.config, self.size, mask, compiled=self.compute.compile, cpu=self.cpu)
        layers = self.config.num_hidden_layers if self.work.trunk else 0
        kept, again = layers * a.layer + self.work.mtp_layers * a.mtp, a.passing
        if self.compute.activation_checkpointing:
            inputs = layers + 2 * self.work.mtp_layers
            kept = inputs * self.size * self.config.hidden_size
            again += a.mtp if self.work.mtp_layers else a.layer
        return self.work.tokens * (kept + a.shared), self.work.tokens * again


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
