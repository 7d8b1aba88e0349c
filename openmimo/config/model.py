"""The architecture: what config.json of a model holds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from openmimo.config.base import Config

Size = Annotated[int, Field(gt=0, le=2**31 - 1)]
"""Bounds of a model's sizes, far from any real one: a damaged config.json is refused early."""


class RopeScaling(Config):
    """How an imported model stretches RoPE to a longer context; MiMo itself does not."""

    kind: Literal["linear", "llama3"]
    """`linear`: all frequencies divided by the factor. `llama3`: only the low ones, with a smooth
    change between the two wavelengths below (Llama 3.1)."""
    factor: float = Field(ge=1, le=1e6)
    """What the frequencies are divided by."""
    low_freq_factor: float = Field(default=1.0, gt=0)
    """llama3: waves longer than the original context over this are divided by the whole factor."""
    high_freq_factor: float = Field(default=4.0, gt=0)
    """llama3: waves shorter than the original context over this stay as they are."""
    original_max_position_embeddings: Size = 8192
    """llama3: the context before stretching."""

    @model_validator(mode="after")
    def _check_wavelengths(self) -> RopeScaling:
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ValueError("high_freq_factor must be larger than low_freq_factor")
        return self


class ModelConfig(Config):
    """The MiMo decoder: a Qwen2 trunk and MTP layers (report, section 2.2)."""

    vocab_size: Size
    """Rows of the embedding and of the head; the tokenizer may use fewer."""
    hidden_size: Size
    """Width of the residual stream."""
    intermediate_size: Size
    """Width of the SwiGLU feed-forward layer."""
    num_hidden_layers: Size
    """Number of trunk layers, MTP layers not counted."""
    num_attention_heads: Size
    """Number of query heads."""
    num_key_value_heads: Size
    """Number of key/value heads (grouped-query attention)."""
    head_dim: Size
    """Width of one attention head; even."""
    rms_norm_eps: float = Field(default=1e-5, ge=1e-20, le=0.1)
    """Epsilon of every RMSNorm."""
    rope_theta: float = Field(default=10_000.0, ge=1, le=1e15)
    """RoPE base. In pre-training the stage table's value replaces it."""
    rope_scaling: RopeScaling | None = None
    """Stretched RoPE of an imported model; none in MiMo."""
    max_position_embeddings: Size
    """Longest sequence, in tokens."""
    initializer_range: float = Field(default=0.02, gt=0, le=10)
    """Standard deviation of the initial weights (assumed: the value of config.json)."""
    num_nextn_predict_layers: int = Field(default=1, ge=0)
    """MTP layers in the model: one in pre-training, up to three for inference."""
    mtp_hidden: Literal["pre_norm", "post_norm"] = "pre_norm"
    """Which trunk output an MTP layer reads. `pre_norm` (before the final norm) is what the
    vendor's vLLM code feeds; the choice is silent in the output and shows only in acceptance."""
    mtp_mask_first: bool = False
    """Zero the MTP input embedding at position 0, as vLLM does."""

    @model_validator(mode="after")
    def _check_heads(self) -> ModelConfig:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads")
        if self.head_dim % 2:
            raise ValueError("head_dim must be even (RoPE rotates pairs)")
        return self
