"""The MiMo model: a Qwen2 trunk and parallel multi-token-prediction (MTP) layers.

Module names give the published state-dict keys (`model.layers.0.self_attn.q_proj.weight`,
`model.mtp_layers.0.input_proj.weight`, ...). Report section 2.2 and Figure 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openmimo.config.schema import ModelConfig
from openmimo.model.attention import attention
from openmimo.model.rope import apply_rope, rope_tables


class RMSNorm(nn.Module):
    """y = x / rms(x) * weight over the last dimension, in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Context:
    """What every layer of one forward pass shares: RoPE tables, and which documents there are.

    Args:
        config: of the model.
        positions: int64 [B, T], restarting at 0 with each document.
        rope_base: RoPE base (theta).
        dtype: of the activations.
    """

    def __init__(
        self, config: ModelConfig, positions: Tensor, rope_base: float, dtype: torch.dtype
    ) -> None:
        self.cos, self.sin = (
            table.transpose(1, 2)  # [B, T, 1, head_dim]
            for table in rope_tables(positions, config.head_dim, rope_base, config.rope_scaling)
        )
        self.attend = attention(positions, dtype)


class Attention(nn.Module):
    """Grouped-query attention with q/k/v bias and no output bias."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query, bias=True)
        self.k_proj = nn.Linear(config.hidden_size, key, bias=True)
        self.v_proj = nn.Linear(config.hidden_size, key, bias=True)
        self.o_proj = nn.Linear(query, config.hidden_size, bias=False)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            proj(x).view(batch, length, -1, self.head_dim)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q = apply_rope(q, context.cos, context.sin)
        k = apply_rope(k, context.cos, context.sin)
        return self.o_proj(context.attend(q, k, v).reshape(batch, length, -1))


class MLP(nn.Module):
    """SwiGLU feed-forward layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One pre-norm Qwen2 layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), context)
        return x + self.mlp(self.post_attention_layernorm(x))


class MTPLayer(Block):
    """One MTP layer: layer i reads (h_t, embed(x_{t+1+i})) and predicts x_{t+2+i}.

    The concatenation is hidden-first (Megatron and DeepSeek put the embedding first). Embedding
    and head are the trunk's own.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.token_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hidden_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.input_proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.final_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(  # type: ignore[override]
        self, hidden: Tensor, embedding: Tensor, context: Context
    ) -> Tensor:
        """hidden, embedding [B, T, D] -> the head's input [B, T, D]."""
        # All of it is in forward: FSDP gathers the layer's weights when its forward begins.
        both = torch.cat([self.hidden_layernorm(hidden), self.token_layernorm(embedding)], dim=-1)
        return self.final_layernorm(super().forward(self.input_proj(both), context))


class Trunk(nn.Module):
    """Everything under `model.`: embedding, layers, final norm and the MTP layers."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if config.num_nextn_predict_layers:
            self.mtp_layers = nn.ModuleList(
                MTPLayer(config) for _ in range(config.num_nextn_predict_layers)
            )


def init_tensor(
    name: str, tensor: Tensor, std: float, generator: torch.Generator | None = None
) -> None:
    """Fill a new tensor of the layout: zeros for a bias, ones for a norm, else Normal(0, std)."""
    if name.endswith("bias"):
        nn.init.zeros_(tensor)
    elif "norm" in name:
        nn.init.ones_(tensor)
    else:
        nn.init.normal_(tensor, std=std, generator=generator)


class MiMo(nn.Module):
    """A MiMo model. `rope_base` starts as the config's and may be changed by the stage table."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.rope_base = config.rope_theta
        self.model = Trunk(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def mtp_layers(self) -> list[MTPLayer]:
        """The MTP layers, first one first; empty for a trunk-only model."""
        return list(getattr(self.model, "mtp_layers", []))

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Normal(0, initializer_range) matrices, zero biases, unit norms."""
        for name, parameter in self.named_parameters():
            init_tensor(name, parameter, self.config.initializer_range, generator)

    def context(self, positions: Tensor) -> Context:
        """What the trunk and the MTP layers share over `positions`, int64 [B, T]."""
        dtype = self.lm_head.weight.dtype
        return Context(self.config, positions, self.rope_base, dtype)

    def hidden(self, ids: Tensor, positions: Tensor, context: Context | None = None) -> Tensor:
        """Trunk output before the final norm.

        Args:
            ids: int64 [B, T].
            positions: int64 [B, T]; they restart at 0 with each packed document.
            context: that of `positions`, where it is there already.

        Returns:
            h, [B, T, hidden_size].
        """
        context = context or self.context(positions)
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x, context)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [B, T, vocab] of `hidden`'s output."""
        return self.lm_head(self.model.norm(hidden))

    def mtp_draft(
        self,
        layer: int,
        hidden: Tensor,
        ids: Tensor,
        positions: Tensor,
        context: Context | None = None,
    ) -> Tensor:
        """Head input of MTP layer `layer`.

        Args:
            layer: which MTP layer, 0 is the pre-trained one.
            hidden: h_t before the final norm, [B, T, D].
            ids: x_{t+1+layer}, int64 [B, T].
            positions: t (not t + 1 + layer), int64 [B, T].
            context: that of `positions`, where it is there already.

        Returns:
            [B, T, D]; `lm_head` of it are the logits of x_{t+2+layer}.
        """
        if self.config.mtp_hidden == "post_norm":
            hidden = self.model.norm(hidden)
        embedding = self.model.embed_tokens(ids)
        if self.config.mtp_mask_first:
            embedding = embedding * (positions != 0)[..., None]
        draft: Tensor = self.mtp_layers[layer](
            hidden, embedding, context or self.context(positions)
        )
        return draft

    def forward(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Next-token logits [B, T, vocab]; positions default to 0..T-1."""
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return self.logits(self.hidden(ids, positions))
