"""Reinforcement learning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, model_validator

from openmimo.config.base import Config
from openmimo.config.training import OptimizerConfig


class RLConfig(Config):
    """GRPO with dynamic sampling and an easy pool (report, section 3.3)."""

    steps: int = Field(default=50, gt=0)
    """Rollout steps, each with `prompts_per_step / prompts_per_update` updates."""
    prompts_per_step: int = Field(default=512, gt=0)
    """Prompts with a valid group in one rollout step (report: 512)."""
    prompts_per_update: int = Field(default=32, gt=0)
    """Prompts in one optimiser update (report: mini-batch 32)."""
    group_size: int = Field(default=16, gt=1)
    """Responses to one prompt (assumed: not in the report; DAPO's value)."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Constant after the warm-up (report: 1e-6)."""
    warmup_updates: int = Field(default=10, ge=0)
    """Updates of linear warm-up (assumed: a few, against the optimiser's cold start)."""
    eps_low: float = Field(default=0.2, gt=0, lt=1)
    """Clip range below 1 (assumed: DAPO's value)."""
    eps_high: float = Field(default=0.28, gt=0)
    """Clip range above 1, wider: clip-higher (assumed: DAPO's value)."""
    loss_agg: Literal["prompt_token_mean", "batch_token_mean"] = "prompt_token_mean"
    """Mean over the tokens of one prompt's group (report, Eq. 1), or of the update (verl)."""
    max_new_tokens: int = Field(default=32_768, gt=0)
    """Longest response; cut where prompt and response fill the model's context."""
    temperature: Literal[1.0] = 1.0  # type: ignore[valid-type]
    """Sampling temperature of rollouts; anything else would bias the ratio."""
    top_p: Literal[1.0] = 1.0  # type: ignore[valid-type]
    """Nucleus of rollouts; a truncated one would bias the ratio."""
    reward: Literal["strict", "soft", "all"] = "soft"
    """How a program's tests become a reward: the test difficulty driven schemes, or all tests."""
    levels: int | Literal["auto"] = 3
    """Difficulty levels that a problem's tests are clustered into, or auto: as many as the pass
    rates tell apart. Levels that a problem brings, as the IOI's subtasks, stay."""
    level_clustering: Literal["kmeans", "quantile"] = "kmeans"
    """Levels of similar pass rates, or of equally many tests (assumed: the report does not say)."""
    level_scores: tuple[NonNegativeFloat, ...] = ()
    """What the levels are worth, easiest first; scaled to sum to 1. A problem with fewer levels
    takes the first ones. Empty: all the same (assumed: the report does not say)."""
    cumulative: bool = True
    """Strict: a level counts only if all easier ones pass too (report). Without it each counts for
    itself, as the IOI's subtasks do."""
    level_samples: int = Field(default=4, gt=0)
    """Solutions by each of Base and SFT that measure the tests' pass rates."""
    test_seconds: float = Field(default=0.5, gt=0)
    """CPU time of a program in one test, also in the difficulty and eval stages; ten times as long
    by the wall clock (assumed: the data stage's problems need little). Problems of `mimo curate`
    may need its --test-seconds."""
    test_memory_mb: int = Field(default=256, gt=0)
    """Memory of a program in one test, in MiB; `mimo curate` allows 1,024."""
    validity: Literal["passrate", "reward_std"] = "passrate"
    """Which groups teach something: pass rate neither 0 nor 1, or rewards that differ."""
    easy_share: float = Field(default=0.1, ge=0, lt=1)
    """Chance that a prompt is drawn from the easy pool: alpha (report: 10 %)."""
    max_prompts: int = Field(default=2_048, gt=0)
    """Most prompts tried in one step; a step that ends short of prompts is counted."""
    max_short_steps: int = Field(default=10, gt=0)
    """Short steps in a row after which the data is declared too easy or too hard."""
    problems: str | None = None
    """Problems instead of the data stage's: a Parquet or JSON Lines file as `mimo curate` writes
    it, here or on the hub (hf://datasets/OWNER/NAME/FILE)."""
    max_prompt_tokens: int | None = Field(default=None, gt=0)
    """Problems with longer prompts are left out. Without it, a prompt that leaves no room for an
    answer in the model's context is an error."""
    domains: tuple[Literal["math", "code"], ...] = Field(default=("math", "code"), min_length=1)
    """Problems trained on."""
    tiers: tuple[Literal["train", "hard"], ...] = Field(default=("train",), min_length=1)
    """Tiers trained on; the hard tier is for evaluation unless an experiment says otherwise."""
    slots: int = Field(default=256, gt=0)
    """Sequences decoded at once, by each engine."""
    drafts: int | Literal["auto"] = 0
    """Tokens that the MTP layers draft in each decode step; changes the speed alone. auto: as many
    as the engine measures to save time, which is in the tail, when few answers are left. That goes
    by the clock, so it needs reward_lag = "off"."""
    mtp_refresh_steps: int = Field(default=0, ge=0)
    """Updates of the MTP layers after each rollout step, on its answers, so that their drafts keep
    fitting the trunk. The recipe freezes them: 0."""
    mtp_refresh_rate: float = Field(default=3e-4, gt=0)
    """Learning rate of these updates."""
    mtp_refresh_tokens: int = Field(default=16_384, gt=0)
    """Most tokens of a step's answers that they read, the latest ones."""
    reward_lag: int | Literal["off"] = 16
    """Decode steps between a sample's end and the use of its reward. Fixed, so that which prompts
    start when does not depend on how fast the verifiers are, and a run can be repeated. off: it is
    used when it is there, as with engines elsewhere (`compute.rollouts`). The same prompts are
    selected, but answers share other forward passes, so log-probs may be rounded otherwise."""
    validate_every: int = Field(default=0, ge=0)
    """Steps from one validation to the next, on held-out problems with the weights of the step, in
    the slots that its tail leaves idle. 0: none."""
    validation_problems: int = Field(default=64, gt=0)
    """Held-out problems of a validation, always the same, one sample each."""
    optimizer: OptimizerConfig = OptimizerConfig(weight_decay=0.0)
    """AdamW's settings."""
    tokens_per_microbatch: int = Field(default=16_384, gt=0)
    """Tokens in one forward and backward pass; does not change the result."""
    checkpoint_every: int = Field(default=5, gt=0)
    """Rollout steps between checkpoints."""

    @model_validator(mode="after")
    def _check_updates(self) -> RLConfig:
        if self.prompts_per_step % self.prompts_per_update:
            raise ValueError("prompts_per_step must be a multiple of prompts_per_update")
        if self.max_prompts < self.prompts_per_step:
            raise ValueError("max_prompts must be at least prompts_per_step")
        if self.slots < self.group_size:
            raise ValueError("slots must be at least group_size: a group is decoded together")
        if self.levels != "auto" and self.levels < 1:
            raise ValueError('levels must be at least 1, or "auto"')
        if self.level_scores and len(self.level_scores) != self.levels:  # "auto" has no length
            raise ValueError(
                f"levels must be {len(self.level_scores)}, one for each of level_scores"
            )
        if self.level_scores and not self.level_scores[0]:
            raise ValueError("level_scores must begin above 0: some problems have but one level")
        if self.drafts != "auto" and self.drafts < 0:
            raise ValueError('drafts must be at least 0, or "auto"')
        if self.reward_lag != "off" and self.reward_lag < 0:
            raise ValueError('reward_lag must be at least 0, or "off"')
        if self.drafts == "auto" and self.reward_lag != "off":
            raise ValueError(
                'drafts = "auto" goes by the clock, so a step cannot be repeated: it needs '
                'reward_lag = "off"'
            )
        if self.mtp_refresh_steps and not self.drafts:
            raise ValueError("mtp_refresh_steps without drafts: nothing would use the MTP layers")
        return self
