"""The tensors of a Qwen2 or Llama trunk: their names in GGUF and in the published layout."""

from __future__ import annotations

import re

_TOP = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOP_BACK = {theirs: ours for ours, theirs in _TOP.items()}
_LAYER_BACK = {theirs: ours for ours, theirs in _LAYER.items()}
_IN_GGUF = re.compile(
    r"(?:blk\.(?P<layer>0|[1-9][0-9]{0,5})\.)?(?P<part>\w+)\.(?P<kind>weight|bias)"
)


def gguf_name(published: str) -> str:
    """`model.layers.3.self_attn.q_proj.weight` -> `blk.3.attn_q.weight`, and so on."""
    module, _, kind = published.rpartition(".")
    if module in _TOP:
        return f"{_TOP[module]}.{kind}"
    layer, _, part = module.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_LAYER[part]}.{kind}"


def published_name(name: str) -> str | None:
    """The way back; None for a tensor that these models do not have."""
    match = _IN_GGUF.fullmatch(name)
    if match is None:
        return None
    layer, part, kind = match["layer"], match["part"], match["kind"]
    if layer is None:
        return f"{_TOP_BACK[part]}.{kind}" if part in _TOP_BACK else None
    return f"model.layers.{layer}.{_LAYER_BACK[part]}.{kind}" if part in _LAYER_BACK else None
