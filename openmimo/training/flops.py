"""How much arithmetic training takes: parameters by part, floating-point operations a token.

    forward and backward = 6 x weights of matrix products + 12 x query width x context x layers

A product of one token's activations with a matrix of P weights is 2 P operations; the backward pass
does it twice more, once for the gradient of the input and once for that of the weights (Kaplan et
al. 2020, arXiv 2001.08361, section 2.1; PaLM, arXiv 2204.02311, appendix B). Attention multiplies
each query with the keys and each row of scores with the values: 4 x query width operations for
every key that the query sees. The head is used once for each loss: by the trunk and by every MTP
layer. Norms, activation functions, RoPE, the embedding's look-up and the optimiser are not counted.

Two conventions matter when a model FLOPs utilisation (MFU) is compared:

- `context` is the number of keys that a query really sees: on average half of its document, see
  `mean_context`. PaLM's appendix counts the whole row, at least twice as much.
- What activation checkpointing computes again is not counted: it is not the model's work.

No torch here: `mimo plan` must answer at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from openmimo.config.schema import ModelConfig
from openmimo.model.layout import Shape, block_shapes, mtp_shapes

FORWARD = 2
"""Operations for a weight and a token."""
INPUT_GRADIENT = 2
WEIGHT_GRADIENT = 2


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters; `layers` and `mtp` are of all layers of the kind together."""

    embedding: int
    layers: int
    norm: int
    mtp: int
    head: int

    @property
    def total(self) -> int:
        return self.embedding + self.layers + self.norm + self.mtp + self.head


@dataclass(frozen=True)
class Flops:
    """Floating-point operations for one token.

    layers: the trunk's matrix products; attention: scores and values of trunk and MTP layers;
    mtp: the MTP layers' matrix products; head: of all losses together.
    """

    layers: float
    attention: float
    mtp: float
    head: float

    @property
    def total(self) -> float:
        return self.layers + self.attention + self.mtp + self.head


def parameters(config: ModelConfig) -> Parameters:
    """Parameters of a model by part."""
    block = sum(math.prod(shape) for _, shape in block_shapes(config))
    extra = sum(math.prod(shape) for _, shape in mtp_shapes(config))
    return Parameters(
        embedding=config.vocab_size * config.hidden_size,
        layers=config.num_hidden_layers * block,
        norm=config.hidden_size,
        mtp=config.num_nextn_predict_layers * (block + extra),
        head=config.vocab_size * config.hidden_size,
    )


def mean_context(length: int, document: float | None = None) -> float:
    """Keys that a query sees, on average: it sees itself and what precedes it in its document.

    Args:
        length: tokens of a row.
        document: tokens of a document; None: as long as the row, which it never exceeds, because
            a document is cut where its row ends.

    The mean of `positions + 1` over a batch is the same number, measured.
    """
    return (min(length, document or length) + 1) / 2


def training_flops(
    config: ModelConfig, context: float, mtp_layers: int, *, trunk: bool = True
) -> Flops:
    """Operations of a forward and a backward pass, for one token of a row.

    Args:
        config: the model's shape.
        context: keys that a query sees, see `mean_context`.
        mtp_layers: how many MTP layers are trained.
        trunk: False where trunk, embedding and head are frozen and only the MTP layers have a loss
            (stage `mtp_heads`): the trunk has no backward pass and the head no gradient of its own.

    Every position is counted as having a target; SFT has fewer.
    """
    trained = FORWARD + INPUT_GRADIENT + WEIGHT_GRADIENT
    of_trunk = trained if trunk else FORWARD
    of_head = trained if trunk else FORWARD + INPUT_GRADIENT
    # Each key costs a query two products, with the key and with the value.
    scores = 2 * config.num_attention_heads * config.head_dim * context
    block = _matrices(block_shapes(config))
    return Flops(
        layers=of_trunk * config.num_hidden_layers * block,
        attention=scores * (of_trunk * config.num_hidden_layers + trained * mtp_layers),
        mtp=trained * mtp_layers * (block + _matrices(mtp_shapes(config))),
        head=of_head * (int(trunk) + mtp_layers) * config.vocab_size * config.hidden_size,
    )


def _matrices(shapes: Iterable[tuple[str, Shape]]) -> int:
    """Weights that are matrices; vectors are biases and norms."""
    return sum(math.prod(shape) for _, shape in shapes if len(shape) == 2)
