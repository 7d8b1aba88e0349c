"""What a forward pass leaves for the backward pass: bytes for one token, by formula.

Derived from the tensors that autograd saves in `model/mimo.py` and `training/head_loss.py`; a test
compares them. With D hidden, F feed-forward, Q query and K key/value widths, s bytes a number:

    norm      s D            its input; on a CPU 8 D, input and normed state in float32
    layer     2 (norm + s D) two norms and what they give
              s (2 Q + 2 K)  queries, keys, values and the attention's output
              4 H            each head's log-sum-exp
              4 s F          gate, silu, up and their product
    MTP       a layer, 3 norms and 3 s D: the concatenation, and the gradient of the head's input
    shared    the RoPE tables 8 d and the final norm

What torch.compile has fused keeps less: the feed-forward part 3 s F, norms as on a GPU.
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


def activations(
    config: ModelConfig, size: int, mask: int, *, compiled: bool, cpu: bool
) -> Activations:
    """What is kept without activation checkpointing.

    Args:
        config: the model's shape.
        size: bytes of a number in products and activations, 2 or 4.
        mask: length of the row of the mask that attention keeps for each token; 0 where its kernel
            needs none.
        compiled: whether torch.compile has fused the layers.
        cpu: there the norms are no kernel of their own.
    """
    wide, inner = size * config.hidden_size, size * config.intermediate_size
    query = size * config.num_attention_heads * config.head_dim
    key = size * config.num_key_value_heads * config.head_dim
    in_float32, fused = 8 * config.hidden_size + 4, wide + 4
    final_norm = in_float32 if cpu else fused
    norm = fused if compiled else final_norm
    attention = 2 * query + 2 * key + 4 * config.num_attention_heads + size * mask
    layer = 2 * (norm + wide) + attention + (3 if compiled else 4) * inner
    return Activations(
        layer=layer,
        mtp=layer + 3 * norm + 3 * wide,
        shared=8 * config.head_dim + final_norm,
        passing=2 * inner + 2 * wide,  # a gradient is made when what it came from is freed
    )
