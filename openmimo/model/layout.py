"""Names and shapes of the published tensors: Qwen2's, and `model.mtp_layers.N` (report, Figure 2).

From sizes alone, without a model: a config.json with absurd numbers must not cost memory.
"""

from __future__ import annotations

from collections.abc import Iterator

from openmimo.config.schema import ModelConfig

Shape = tuple[int, ...]

LAYER = "model.layers."
MTP = "model.mtp_layers."
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
NORM = "model.norm.weight"
BIASES = ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias")


def tensor_shapes(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    """Every tensor of a model, in the order of its state dict."""
    hidden = config.hidden_size
    block = dict(block_shapes(config))
    yield EMBEDDING, (config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        for part, shape in block.items():
            yield f"{LAYER}{layer}.{part}", shape
    yield NORM, (hidden,)
    for layer in range(config.num_nextn_predict_layers):
        for part, shape in (block | dict(mtp_shapes(config))).items():
            yield f"{MTP}{layer}.{part}", shape
    yield HEAD, (config.vocab_size, hidden)


def block_shapes(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    """One transformer layer: 12 tensors."""
    hidden, inner = config.hidden_size, config.intermediate_size
    query = config.num_attention_heads * config.head_dim
    key = config.num_key_value_heads * config.head_dim
    yield "input_layernorm.weight", (hidden,)
    for name, size in (("q", query), ("k", key), ("v", key)):
        yield f"self_attn.{name}_proj.weight", (size, hidden)
        yield f"self_attn.{name}_proj.bias", (size,)
    yield "self_attn.o_proj.weight", (hidden, query)
    yield "post_attention_layernorm.weight", (hidden,)
    yield "mlp.gate_proj.weight", (inner, hidden)
    yield "mlp.up_proj.weight", (inner, hidden)
    yield "mlp.down_proj.weight", (hidden, inner)


def mtp_shapes(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    """What an MTP layer has besides a transformer layer: 4 tensors."""
    hidden = config.hidden_size
    yield "token_layernorm.weight", (hidden,)
    yield "hidden_layernorm.weight", (hidden,)
    yield "input_proj.weight", (hidden, 2 * hidden)
    yield "final_layernorm.weight", (hidden,)


def tensor_count(config: ModelConfig) -> int:
    """How many tensors `tensor_shapes` yields."""
    return 3 + 12 * config.num_hidden_layers + 16 * config.num_nextn_predict_layers


def is_extra(name: str) -> bool:
    """Whether a tensor belongs to an MTP layer that the published form does not have: any but 0."""
    return name.startswith(MTP) and not name.startswith(f"{MTP}0.")
