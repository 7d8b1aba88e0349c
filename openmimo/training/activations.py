"""What a forward pass leaves for the backward pass: bytes for one token, by formula.

Derived from the tensors that autograd saves in `model/mimo.py` and `training/head_loss.py`; a test
compares them. With D hidden, F feed-forward, Q query and K key/value widths, s bytes a number:

    norm      4 D + s D      its input in float32, and the normed state before the weight
    layer     2 (norm + s D) two norms and what they give
              s (2 Q + 2 K)  queries, keys, values and the attention's output
              4 H            each head's log-sum-exp
              4 s F          gate, silu, up and their product
    MTP       a layer, 3 norms and 3 s D: the concatenation, and the gradient of the head's input
    shared    the RoPE tables 8 d and the final norm

What torch.compile has fused keeps less: a layer's norms keep 4 s D together, its feed-forward part
3 s F, and what an MTP layer has besides 6 s D.
"""

from __future__ import annotations

from dataclasses import dataclass

from openmimo.config.schema import ModelConfig


@dataclass(frozen=True)
class Activations:
    """Bytes for one token.

    Attributes:
        layer: kept by a trunk layer; mtp: by an MTP layer.
        shared: kept once, whatever the number of layers.
        passing: at most in use besides while one layer goes backward.
    """

    layer: int
    mtp: int
    shared: int
    passing: int


def activations(config: ModelConfig, size: int, mask: int, *, compiled: bool) -> Activations:
    """What is kept without activation checkpointing.

    Args:
        config: the model's shape.
        size: bytes of a number in products and activations, 2 or 4.
        mask: length of the row of the mask that attention keeps for each token; 0 where its kernel
            needs none.
        compiled: whether torch.compile has fused the layers.
    """
    wide, inner = size * config.hidden_size, size * config.intermediate_size
    query = size * config.num_attention_heads * config.head_dim
    key = size * config.num_key_value_heads * config.head_dim
    norm = 4 * config.hidden_size + wide + 4
    attention = 2 * query + 2 * key + 4 * config.num_attention_heads + size * mask
    if compiled:
        layer = 4 * wide + 8 + attention + 3 * inner
        mtp = layer + 6 * wide
    else:
        layer = 2 * (norm + wide) + attention + 4 * inner
        mtp = layer + 3 * norm + 3 * wide
    return Activations(
        layer=layer,
        mtp=mtp,
        shared=8 * config.head_dim + norm,
        passing=2 * inner + 2 * wide,  # a gradient is made when what it came from is freed
    )
