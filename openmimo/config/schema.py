"""Every setting of a run: here the recipe as a whole, in the modules beside it its parts. A field's
docstring is its help text.

No torch here: `mimo VERB --help` must answer at once. Values that the MiMo report does not give
are marked *assumed*, with the reason.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from openmimo.config.base import Config
from openmimo.config.data import DataConfig, HarvestConfig, TeacherConfig
from openmimo.config.model import ModelConfig, RopeScaling
from openmimo.config.rl import RLConfig
from openmimo.config.training import (
    SOURCES,
    ComputeConfig,
    MTPHeadsConfig,
    OptimizerConfig,
    PretrainConfig,
    ScheduleRow,
    SFTConfig,
    TuneConfig,
)

__all__ = [
    "SOURCES",
    "ComputeConfig",
    "DataConfig",
    "EvalConfig",
    "HarvestConfig",
    "MTPHeadsConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PretrainConfig",
    "RLConfig",
    "Recipe",
    "ReleaseConfig",
    "RopeScaling",
    "SFTConfig",
    "ScheduleRow",
    "TeacherConfig",
    "TuneConfig",
]


class EvalConfig(Config):
    """Held-out problems, pass@1 over several samples (report, section 3.5)."""

    samples: int = Field(default=4, gt=0)
    """Samples for each problem."""
    temperature: float = Field(default=0.6, ge=0)
    """Sampling temperature (report: 0.6)."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Nucleus (report: 0.95)."""
    max_new_tokens: int = Field(default=32_768, gt=0)
    """Longest response."""
    slots: int = Field(default=512, gt=0)
    """Sequences decoded at once."""
    mtp_prompts: int = Field(default=64, gt=0)
    """Held-out prompts on which speculative decoding is measured."""


class ReleaseConfig(Config):
    """Release folders."""

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Of the stored weights; bfloat16 as published. float32 keeps exactly what was evaluated."""


class Recipe(Config):
    """A whole run: corpus, three-stage pre-training, SFT, RL, evaluation, release."""

    name: str
    """What the run's reports call it."""
    seed: int = Field(default=0, ge=0)
    """Seeds data order, initial weights, sampling and problems."""
    init_from: str | None = None
    """Folder of a model to go on from, as `mimo import` writes it, instead of random weights. Its
    tokenizer is taken, and so are the settings of [model] that the recipe leaves out."""
    model: ModelConfig
    """The architecture."""
    data: DataConfig = DataConfig()
    """Corpus, tokenizer and problems."""
    pretrain: PretrainConfig
    """Three-stage pre-training."""
    mtp_heads: MTPHeadsConfig
    """The extra MTP layers."""
    sft: SFTConfig
    """Supervised fine-tuning."""
    rl: RLConfig
    """Reinforcement learning, from SFT (RL) and from Base (RL-Zero)."""
    compute: ComputeConfig = ComputeConfig()
    """How the stages that train use the hardware."""
    eval: EvalConfig = EvalConfig()
    """Evaluation."""
    release: ReleaseConfig = ReleaseConfig()
    """Release folders."""

    @model_validator(mode="after")
    def _check_parts(self) -> Recipe:
        if self.model.num_nextn_predict_layers != 1:
            raise ValueError(
                "model.num_nextn_predict_layers must be 1: pre-training has one MTP layer, and "
                "mtp_heads.layers says how many there are in the end"
            )
        if not self.pretrain.schedule and self.init_from is None:
            raise ValueError("pretrain.schedule is empty: only a run with init_from may skip it")
        trained = self.data.tokenizer == "train"
        if self.init_from is not None and not trained:
            raise ValueError("data.tokenizer must be left out: init_from brings its own tokenizer")
        if self.init_from is None and trained and self.data.vocab_size > self.model.vocab_size:
            raise ValueError("data.vocab_size must not exceed model.vocab_size")
        context = self.model.max_position_embeddings
        rows = enumerate(self.pretrain.schedule)
        lengths = {f"pretrain.schedule.{index}": row.length for index, row in rows}
        lengths |= {"mtp_heads": self.mtp_heads.length, "sft": self.sft.length}
        for part, length in lengths.items():
            if length > context:
                raise ValueError(
                    f"{part}.length is {length}, more than model.max_position_embeddings, {context}"
                )
        return self
