"""Pre-training, tuning, and how both use the hardware."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from openmimo.config.base import Config

SOURCES = ("general", "math", "code", "synthetic")


def check_shares(mixture: Mapping[Any, float]) -> None:
    """Raise ValueError unless the shares are at least 0 and sum to 1."""
    if not mixture or abs(sum(mixture.values()) - 1) > 1e-6 or min(mixture.values()) < 0:
        raise ValueError("the shares of mixture must be at least 0 and sum to 1")


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
    def _check_row(self) -> ScheduleRow:
        if min(self.batch) < 1:
            raise ValueError("batch must be at least 1 sequence")
        check_shares(self.mixture)
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


class PretrainConfig(Config):
    """The three stages of pre-training (report, section 2.3)."""

    schedule: tuple[ScheduleRow, ...]
    """The table in tokens: learning rate, batch, length, RoPE base, MTP weight, mixture. Only with
    `init_from` it may be empty: the model is handed on as it is."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW's settings."""
    tokens_per_microbatch: int = Field(default=16_384, gt=0)
    """Tokens in one forward and backward pass; does not change the result."""
    checkpoint_every: int = Field(default=200, gt=0)
    """Steps between checkpoints."""

    @model_validator(mode="after")
    def _check_schedule(self) -> PretrainConfig:
        ends = [row.until for row in self.schedule]
        if ends != sorted(set(ends)):
            raise ValueError(f"schedule: `until` must rise from row to row, got {ends}")
        return self


class TuneConfig(Config):
    """A stage that tunes weights for a number of steps at a constant learning rate."""

    learning_rate: float = Field(default=3e-5, gt=0)
    """Constant after the warm-up (report, section 3.1: 3e-5)."""
    warmup_steps: int = Field(default=10, ge=0)
    """Steps of linear warm-up (assumed: a few, against the optimiser's cold start)."""
    steps: int = Field(default=100, gt=0)
    """Optimiser steps."""
    batch: int = Field(default=128, gt=0)
    """Packed sequences a step."""
    length: int = Field(default=32_768, gt=1)
    """Tokens of a packed sequence."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW's settings."""
    tokens_per_microbatch: int = Field(default=16_384, gt=0)
    """Tokens in one forward and backward pass; does not change the result."""
    checkpoint_every: int = Field(default=50, gt=0)
    """Steps between checkpoints."""


class MTPHeadsConfig(TuneConfig):
    """More MTP layers for inference: copies of the first one, tuned with everything else frozen.

    They learn from the corpus, or from the model's own answers, which is what they will draft.
    """

    layers: int = Field(default=3, ge=1)
    """MTP layers after this stage, the pre-trained one counted (report, Figure 2: three)."""
    tune_first: bool = False
    """Tune the first layer too. The report freezes it; a fresh one (`mimo import --add-mtp`) knows
    nothing yet."""
    mixture: dict[Literal["general", "math", "code", "synthetic"], float] = {}
    """Shares of the sources, by tokens; they sum to 1."""
    generations: int = Field(default=0, ge=0)
    """Prompts of the data stage that the model answers. If there are any, the layers learn from
    these answers and not from the mixture."""
    generation_tokens: int = Field(default=256, gt=0)
    """Longest such answer."""
    generation_temperature: float = Field(default=0.6, gt=0)
    """Sampling temperature of these answers (that of the evaluation)."""

    @model_validator(mode="after")
    def _check_text(self) -> MTPHeadsConfig:
        if not self.generations:
            check_shares(self.mixture)
        if self.layers == 1 and not self.tune_first:
            raise ValueError("layers is 1 and tune_first false: nothing would be tuned")
        return self


class SFTConfig(TuneConfig):
    """Supervised fine-tuning (report, section 3.1)."""

    mtp_weight: float = Field(default=0.1, ge=0)
    """Weight of the MTP loss, the mean over the MTP layers (assumed: that of stage 3)."""
    responses_per_query: int = Field(default=8, gt=0)
    """Most responses kept for one query (report: 8)."""


class ComputeConfig(Config):
    """How the stages use the hardware. `dtype` changes results, and vLLM draws other random
    numbers; all else changes only rounding. A run may go on with other values and elsewhere."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products and activations. Weights, moments and sums of gradients stay float32."""
    activation_checkpointing: bool = False
    """Keep only each layer's input for the backward pass and compute the rest again: a third more
    work for a fraction of the memory."""
    compile: bool = False
    """Compile each layer with torch.compile. Pays on a GPU; the first step takes a minute more."""
    head_chunk: int = Field(default=4096, gt=0)
    """Tokens whose logits are in memory at once, in the head and its loss."""
    collective_timeout: int = Field(default=600, gt=0)
    """Seconds that a rank waits for the others before it gives up with a message."""
    keep_checkpoints: int = Field(default=2, gt=0)
    """Checkpoints kept of each stage, the latest ones."""
    trackers: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    """Where the numbers of metrics.jsonl go as well; each needs its package."""
    judge: str = "local"
    """Where RL, difficulty and evaluation judge programs: "local", in processes of their own;
    "ray", on all nodes of the cluster at RAY_ADDRESS; or addresses of `mimo judge-serve`, separated
    by commas (API key: OPENMIMO_JUDGE_KEY)."""
    trace_steps: int = Field(default=3, ge=0)
    """Latest rollout steps of RL whose timelines are kept, for `mimo trace` and the report."""
    rollouts: str = "native"
    """What answers in RL, difficulty and evaluation: "native", the engine in this process; "ray",
    several of it on the cluster at RAY_ADDRESS; or addresses of vLLM servers, separated by commas
    (API key: VLLM_API_KEY)."""
    ray_engines: int = Field(default=1, gt=0)
    """Engines on the Ray cluster."""
    ray_cpus: float = Field(default=1.0, ge=0)
    """CPUs that each of them takes."""
    ray_gpus: float = Field(default=0.0, ge=0)
    """GPUs that each of them takes."""

    @model_validator(mode="after")
    def _check_rollouts(self) -> ComputeConfig:
        urls = [url.strip() for url in self.rollouts.split(",")]
        if self.rollouts not in ("native", "ray") and not all(
            url.startswith(("http://", "https://")) for url in urls
        ):
            raise ValueError('rollouts must be "native", "ray", or addresses that begin with http')
        if len(set(urls)) < len(urls):
            raise ValueError("rollouts names a server twice")
        return self
