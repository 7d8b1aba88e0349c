"""Every setting of a run, in one place. A field's docstring is its help text.

No torch here: `mimo VERB --help` must answer at once. Values that the MiMo report does not give
are marked *assumed*, with the reason.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from openmimo.config.base import Config

SOURCES = ("general", "math", "code", "synthetic")


class ModelConfig(Config):
    """The MiMo decoder: a Qwen2 trunk and MTP layers (report, section 2.2)."""

    vocab_size: int = Field(gt=0)
    """Rows of the embedding and of the head; the tokenizer may use fewer."""
    hidden_size: int = Field(gt=0)
    """Width of the residual stream."""
    intermediate_size: int = Field(gt=0)
    """Width of the SwiGLU feed-forward layer."""
    num_hidden_layers: int = Field(gt=0)
    """Number of trunk layers, MTP layers not counted."""
    num_attention_heads: int = Field(gt=0)
    """Number of query heads."""
    num_key_value_heads: int = Field(gt=0)
    """Number of key/value heads (grouped-query attention)."""
    head_dim: int = Field(gt=0)
    """Width of one attention head; even."""
    rms_norm_eps: float = Field(default=1e-5, gt=0)
    """Epsilon of every RMSNorm."""
    rope_theta: float = Field(default=10_000.0, gt=0)
    """RoPE base. In pre-training the stage table's value replaces it."""
    max_position_embeddings: int = Field(gt=0)
    """Longest sequence, in tokens."""
    initializer_range: float = Field(default=0.02, gt=0)
    """Standard deviation of the initial weights (assumed: the value of config.json)."""
    num_nextn_predict_layers: int = Field(default=1, ge=0)
    """MTP layers in the model: one in pre-training, up to three for inference."""
    mtp_hidden: Literal["pre_norm", "post_norm"] = "pre_norm"
    """Which trunk output an MTP layer reads. `pre_norm` (before the final norm) is what the vendor's
    vLLM code feeds; the choice is silent in the output and shows only in acceptance."""
    mtp_mask_first: bool = False
    """Zero the MTP input embedding at position 0, as vLLM does."""

    @model_validator(mode="after")
    def _check_heads(self) -> ModelConfig:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads")
        if self.head_dim % 2:
            raise ValueError("head_dim must be even (RoPE rotates pairs)")
        return self


class ScheduleRow(Config):
    """One row of the pre-training table. Tokens are the only axis (report, section 2.3)."""

    stage: str
    """Name of the stage this row belongs to; a stage may have several rows."""
    until: int = Field(gt=0)
    """Tokens seen when this row ends."""
    learning_rate: tuple[float, float]
    """Learning rate at the row's start and end."""
    shape: Literal["linear", "cosine"] = "linear"
    """How the learning rate moves between the two."""
    batch: tuple[int, int]
    """Sequences a step at the row's start and end, linear in tokens."""
    length: int = Field(gt=1)
    """Sequence length, in tokens."""
    rope_base: float = Field(gt=0)
    """RoPE base (theta)."""
    mtp_weight: float = Field(ge=0)
    """Weight of the MTP loss."""
    mixture: dict[Literal["general", "math", "code", "synthetic"], float]
    """Shares of the sources, by tokens; they sum to 1."""

    @model_validator(mode="after")
    def _check_mixture(self) -> ScheduleRow:
        if abs(sum(self.mixture.values()) - 1) > 1e-6 or min(self.mixture.values()) < 0:
            raise ValueError("the shares of mixture must be positive and sum to 1")
        return self


class OptimizerConfig(Config):
    """AdamW and clipping, as in pre-training (report, section 2.3)."""

    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the second moment."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay; none on norms, biases and embeddings (assumed: common practice)."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""
