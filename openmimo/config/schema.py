"""Every setting of a run, in one place. A field's docstring is its help text.

No torch here: `mimo VERB --help` must answer at once. Values that the MiMo report does not give
are marked *assumed*, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, model_validator

from openmimo.config.base import Config

SOURCES = ("general", "math", "code", "synthetic")

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


class TeacherConfig(Config):
    """Habits of whoever wrote a text; corpora mix careful and careless authors."""

    direct: float = Field(ge=0, le=1)
    """Share of mathematics answers given without working, as answer keys print them."""
    slip: float = Field(ge=0, le=1)
    """Probability that one step of a worked answer is wrong."""
    sloppy: float = Field(ge=0, le=1)
    """Probability that a clause of a program is written in its careless form."""


class HarvestConfig(Config):
    """Characters of real text to take; what the installation carries is the upper limit."""

    general: int = Field(default=1_500_000, gt=0)
    """For the general source: language reference, documentation of packages."""
    math: int = Field(default=1_500_000, gt=0)
    """For the math source: documentation of mathematical packages."""
    code: int = Field(default=1_500_000, gt=0)
    """For the code source: sources of the standard library."""


class DataConfig(Config):
    """Corpus, tokenizer and problems (report, sections 2.1, 3.1 and 3.2)."""

    tokenizer: str = Field(default="train", min_length=1)
    """`train`: BPE learned from the corpus. `qwen2`: that of MiMo-7B, rebuilt from the ranks in the
    package dashscope. Else the path of a folder with a tokenizer.json, or of a .tiktoken file of
    Qwen's ranks."""
    vocab_size: int = Field(default=1024, gt=258)
    """Size of the BPE vocabulary trained on the corpus; not read with another `tokenizer`."""
    harvest: HarvestConfig = HarvestConfig()
    """Real text taken for each source."""
    math_pages: int = Field(default=12_000, ge=0)
    """Pages of generated mathematics with working, added to the math source."""
    worksheets: int = Field(default=6_000, ge=0)
    """Pages of bare drills, added to the math source: many steps, few words."""
    code_pages: int = Field(default=6_000, ge=0)
    """Pages of generated programming problems with solutions, added to the code source."""
    synthetic_responses: int = Field(default=4_000, ge=0)
    """Chat-formatted teacher responses of the synthetic source (stage 3)."""
    corpus_teacher: TeacherConfig = TeacherConfig(direct=0.4, slip=0.01, sloppy=0.4)
    """Who wrote the generated pages of the corpus."""
    sft_teacher: TeacherConfig = TeacherConfig(direct=0.25, slip=0.01, sloppy=0.25)
    """Who wrote the SFT responses: better, not perfect."""
    sft_queries: int = Field(default=1_500, gt=0)
    """Queries answered for SFT, before filtering."""
    rl_problems: int = Field(default=2_000, gt=0)
    """Problems for RL, half mathematics and half code."""
    heldout_problems: int = Field(default=600, gt=0)
    """Problems for evaluation, half mathematics and half code, half of each in the hard tier."""
    dedup_threshold: float = Field(default=0.8, gt=0, le=1)
    """Jaccard similarity of word 5-grams from which two documents count as near duplicates."""
    decontamination_ngram: int = Field(default=16, gt=0)
    """Length in words of the n-grams that mark contaminated text (report: 16)."""


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
    validity: Literal["passrate", "reward_std"] = "passrate"
    """Which groups teach something: pass rate neither 0 nor 1, or rewards that differ."""
    easy_share: float = Field(default=0.1, ge=0, lt=1)
    """Chance that a prompt is drawn from the easy pool: alpha (report: 10 %)."""
    max_prompts: int = Field(default=2_048, gt=0)
    """Most prompts tried in one step; a step that ends short of prompts is counted."""
    max_short_steps: int = Field(default=10, gt=0)
    """Short steps in a row after which the data is declared too easy or too hard."""
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
    rollouts: str = "native"
    """What generates in RL: `native`, the engine in this process; `ray`, several of it on a Ray
    cluster (RAY_ADDRESS); or the URLs of vLLM servers, separated by commas (key: VLLM_API_KEY)."""
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
            raise ValueError('rollouts must be "native", "ray", or URLs that begin with http')
        if len(set(urls)) < len(urls):
            raise ValueError("rollouts names a server twice")
        return self


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
