"""Reinforcement learning: RL from SFT, RL-Zero from Base (report, section 3.3)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from openmimo.config.base import config_hash
from openmimo.config.schema import Recipe, RLConfig
from openmimo.data.documents import read_records
from openmimo.errors import UserError
from openmimo.metrics import MetricsWriter
from openmimo.model.checkpoint import load_model, save_model
from openmimo.model.mimo import MiMo
from openmimo.progress import Progress
from openmimo.rewards.code import program_limits
from openmimo.rewards.grading import Grading
from openmimo.rewards.pool import RewardPool
from openmimo.rl.curriculum import Curriculum
from openmimo.rl.problems import check_unchanged
from openmimo.rl.requests import Requests
from openmimo.rl.step import Learner
from openmimo.rl.validation import Validation, validation_prompts
from openmimo.rollout.driver import Patience, RolloutDriver
from openmimo.rollout.engines import EngineSettings, open_engines, repeatable
from openmimo.rollout.timeline import LatestTimelines
from openmimo.runs import Run, Stage
from openmimo.tokenizer import Tokenizer
from openmimo.trackers import Trackers
from openmimo.training.checkpoint import Checkpoints
from openmimo.training.online_mtp import OnlineMTP
from openmimo.training.optim import build_optimizer

Variant = Literal["rl", "rl_zero"]
START = {"rl": "sft", "rl_zero": "mtp_heads"}
"""The stage whose model a variant starts from."""


def run(recipe: Recipe, run: Run, variant: Variant) -> None:
    """Stage `rl` or `rl_zero`: from `stages/<start>/model` to `stages/<variant>/model`."""
    upstream = [run.require("difficulty"), run.require(START[variant])]
    # The content of rl.problems is in the difficulty stage's hash; where it lies does not matter.
    settings = recipe.rl.model_dump(mode="json", exclude={"problems"})
    stage = run.stage(variant, config_hash(settings, str(recipe.seed), *upstream))
    if stage.is_done():
        return
    check_unchanged(recipe.rl.problems, run.done("difficulty"))
    problems = load_problems(run.dir / "stages" / "difficulty" / "problems.jsonl", recipe.rl)
    model = load_model(run.dir / "stages" / START[variant] / "model", dtype=torch.float32)
    tokenizer = Tokenizer.load(run.dir / "stages" / "data" / "tokenizer")
    heldout = load_heldout(run, recipe.rl)
    if train(run, stage, recipe, model, tokenizer, problems, heldout):
        stage.finish()


def load_problems(path: Path, config: RLConfig) -> list[dict[str, Any]]:
    """The problems of the configured domains and tiers."""
    problems = [
        problem
        for _, problem in read_records(path, "id", "domain", "tier", "prompt")
        if problem["domain"] in config.domains and problem["tier"] in config.tiers
    ]
    if not problems:
        raise UserError(f"{path} has no problem of domains {config.domains}, tiers {config.tiers}")
    return problems


def load_heldout(run: Run, config: RLConfig) -> list[dict[str, Any]]:
    """The problems of the evaluation, if there is any validation."""
    if not config.validate_every:
        return []
    path = run.dir / "stages" / "data" / "problems" / "heldout.jsonl"
    return [problem for _, problem in read_records(path, "id", "domain", "prompt")]


def train(
    run: Run,
    stage: Stage,
    recipe: Recipe,
    model: MiMo,
    tokenizer: Tokenizer,
    problems: Sequence[Mapping[str, Any]],
    heldout: Sequence[Mapping[str, Any]] = (),
) -> bool:
    """Run all steps; the final model goes to `stage.dir/model`, the timelines of the latest
    `trace_steps` that this process made to `stage.dir/rollout_timeline.jsonl`.

    Args:
        problems: to train on. heldout: to validate on.

    Returns:
        False if it was interrupted (a checkpoint is on disk), True if it is finished.

    Raises:
        UserError: `max_short_steps` steps in a row found too few valid groups, or an engine, the
            judge or a tracker cannot be had.
    """
    config = recipe.rl
    for layer in model.mtp_layers:
        layer.requires_grad_(False)  # the recipe freezes MTP in RL
    optimizer = build_optimizer(model.named_parameters(), config.optimizer)
    prompt_ids = [tokenizer.chat_prompt(problem["prompt"]) for problem in problems]
    curriculum = Curriculum(problems, prompt_ids, config, recipe.seed)
    checkpoints = Checkpoints(stage.dir / "checkpoints", run.world, saved=stage.save_clock)
    state = checkpoints.load(model, optimizer) or {"step": 0}
    if state["step"]:
        curriculum.load_state_dict(state)
    first = state["step"]
    timelines = LatestTimelines(stage.dir / "rollout_timeline.jsonl", recipe.compute.trace_steps)
    with (
        _learner(recipe, model, optimizer, tokenizer, curriculum, prompt_ids, heldout) as learner,
        MetricsWriter(stage.dir / "metrics.jsonl", resume_step=first) as metrics,
        Trackers(recipe.compute.trackers, run.dir, stage.dir, first) as trackers,
        Progress(stage.dir.name, config.steps, start=first) as progress,
        checkpoints,
    ):
        for step in range(first + 1, config.steps + 1):
            values, rollout = learner.step(step - 1)
            metrics.log(step, **values)
            trackers.log(step, values)
            timelines.add(f"{stage.dir.name} step {step}", rollout.timeline)
            shown = {"reward": "reward_mean", "passed": "pass_rate", "tokens": "response_length"}
            progress.step(step, **{name: values[key] for name, key in shown.items()})
            last = step == config.steps
            if last or run.interrupt.requested or step % config.checkpoint_every == 0:
                checkpoints.save(step, model, optimizer, curriculum.state_dict())
            if run.interrupt.requested and not last:
                return False
    model.eval()
    save_model(model, stage.dir / "model", torch.float32)
    return True


@contextmanager
def _learner(
    recipe: Recipe,
    model: MiMo,
    optimizer: torch.optim.AdamW,
    tokenizer: Tokenizer,
    curriculum: Curriculum,
    prompt_ids: Sequence[Sequence[int]],
    heldout: Sequence[Mapping[str, Any]],
) -> Iterator[Learner]:
    """The learner with its engines and rewards, while the context lasts."""
    config, compute = recipe.rl, recipe.compute
    validation = validation_prompts(heldout, tokenizer, config, recipe.seed)
    context, vocab = model.config.max_position_embeddings, tokenizer.vocab_size
    asked = [*prompt_ids, *(prompt.ids for prompt in validation)]
    request = Requests(asked, tokenizer, config, context)
    online = OnlineMTP(
        model,
        config.mtp_refresh_steps,
        config.mtp_refresh_rate,
        config.mtp_refresh_tokens,
        config.tokens_per_microbatch,
    )
    collect = online.collect if config.mtp_refresh_steps else None
    settings = EngineSettings(config.slots, request.max_length, vocab, config.drafts)
    grading = Grading(config.reward, config.level_scores, config.cumulative)

    def validate(index: int) -> Validation | None:
        due = validation and (index + 1) % config.validate_every == 0
        return Validation(validation, request, tokenizer.decode) if due else None

    limits = program_limits(config.test_seconds, config.test_memory_mb)
    with (
        open_engines(compute, settings, model, collect) as seats,
        RewardPool(
            judge_workers=os.cpu_count() or 1,
            grading=grading,
            judge=limits,
            judge_at=compute.judge,
        ) as pool,
        RolloutDriver(
            seats,
            pool,
            tokenizer.decode,
            request,
            _lag(recipe),
            Patience.beyond(pool.longest([*curriculum.problems, *heldout]), pool.at_once),
        ) as driver,
    ):
        pool.start_judge()
        yield Learner(model, optimizer, config, curriculum, driver, online, validate, vocab)


def _lag(recipe: Recipe) -> int | None:
    """The driver's lag; none where engines have no common count of steps."""
    if recipe.rl.reward_lag == "off":
        return None
    if not repeatable(recipe.compute):
        print(
            f"rl: rollouts come from {recipe.compute.rollouts}, so rl.reward_lag is off: the same "
            "prompts are selected, but a step cannot be repeated to the last bit",
            flush=True,
        )
        return None
    return recipe.rl.reward_lag
