"""Reinforcement learning: RL from SFT, RL-Zero from Base (report, section 3.3).

A step: prompts from the stream -> rollout engine -> rewards -> advantages -> updates -> log.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from openmimo.config.base import config_hash
from openmimo.config.schema import Recipe, RLConfig
from openmimo.data.documents import read_records
from openmimo.errors import UserError
from openmimo.inference.engine import Engine
from openmimo.inference.protocol import Request, RequestId
from openmimo.inference.sampling import sample_seed
from openmimo.judge.connect import LOCAL
from openmimo.metrics import MetricsWriter
from openmimo.model.checkpoint import load_model, save_model
from openmimo.model.mimo import MiMo
from openmimo.progress import Progress
from openmimo.rewards.code import program_limits
from openmimo.rewards.grading import Grading
from openmimo.rewards.pool import RewardPool
from openmimo.rl.metrics import draft_metrics, step_metrics
from openmimo.rl.problems import check_unchanged
from openmimo.rl.stream import Draw, PromptStream
from openmimo.rl.update import grpo_update
from openmimo.rl.visits import Visits
from openmimo.rollout.demand import PassRates
from openmimo.rollout.driver import EngineSeat, Patience, RolloutDriver
from openmimo.rollout.records import Prompt, Rollout
from openmimo.rollout.scheduler import StepSettings
from openmimo.rollout.validity import valid_by_passrate, valid_by_reward_std
from openmimo.runs import Run, Stage
from openmimo.tokenizer import Tokenizer
from openmimo.trackers import Trackers
from openmimo.training.checkpoint import Checkpoints
from openmimo.training.loop import constant_with_warmup
from openmimo.training.online_mtp import OnlineMTP
from openmimo.training.optim import build_optimizer

Variant = Literal["rl", "rl_zero"]
START = {"rl": "sft", "rl_zero": "mtp_heads"}
"""The stage whose model a variant starts from."""

HISTORY = 4
"""Batches' worth of groups that the pass rates remember across steps."""


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
    places = (recipe.compute.trackers, recipe.compute.judge)
    if train(run, stage, recipe.rl, recipe.seed, model, tokenizer, problems, *places):
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


def train(
    run: Run,
    stage: Stage,
    config: RLConfig,
    seed: int,
    model: MiMo,
    tokenizer: Tokenizer,
    problems: list[dict[str, Any]],
    trackers: Sequence[str] = (),
    judge_at: str = LOCAL,
) -> bool:
    """Run all steps; the final model goes to `stage.dir/model`.

    Returns:
        False if it was interrupted (a checkpoint is on disk), True if it is finished.

    Raises:
        UserError: `max_short_steps` steps in a row found too few valid groups, or a tracker is not
            installed, or the judge does not start.
    """
    for layer in model.mtp_layers:
        layer.requires_grad_(False)  # the recipe freezes MTP in RL
    optimizer = build_optimizer(model.named_parameters(), config.optimizer)
    stream = PromptStream(len(problems), seed, config.easy_share)
    checkpoints = Checkpoints(stage.dir / "checkpoints", run.world, saved=stage.save_clock)
    state = checkpoints.load(model, optimizer)
    if state is None:
        state = {"step": 0, "short": 0}
    rates, visits = PassRates(config.group_size), Visits()
    if "stream" in state:
        stream.load_state_dict(state["stream"])
        rates = PassRates(**state["rates"])
        visits.load_state_dict(state["visits"])
    first, short = state["step"], state["short"]

    def checkpoint(step: int) -> None:
        record = {
            "stream": stream.state_dict(), "rates": asdict(rates), "visits": visits.state_dict(),
            "short": short,
        }  # fmt: skip
        checkpoints.save(step, model, optimizer, record)

    prompt_ids = [tokenizer.chat_prompt(problem["prompt"]) for problem in problems]
    longest, context = max(map(len, prompt_ids)), model.config.max_position_embeddings
    if longest >= context:
        raise UserError(f"a prompt has {longest} tokens and the model's context only {context}")
    max_length = min(longest + config.max_new_tokens, context)
    online = OnlineMTP(
        model,
        config.mtp_refresh_steps,
        config.mtp_refresh_rate,
        config.mtp_refresh_tokens,
        config.tokens_per_microbatch,
    )
    engine = Engine(
        model,
        slots=config.slots,
        max_length=max_length,
        used_vocab=tokenizer.vocab_size,
        drafts=config.drafts,
        collect=online.collect if config.mtp_refresh_steps else None,
    )
    stop_ids = (tokenizer.eos_id, tokenizer.doc_end_id)

    def request(prompt: Prompt, sample: int, request_id: RequestId) -> Request:
        length = min(config.max_new_tokens, max_length - len(prompt.ids))
        seed = prompt.sample_seeds[sample]
        return Request(request_id, prompt.ids, length, seed=seed, stop_ids=stop_ids)

    grading = Grading(config.reward, config.level_scores, config.cumulative)
    seat = EngineSeat(engine, config.slots)
    limits = program_limits(config.test_seconds, config.test_memory_mb)
    with (
        RewardPool(grading=grading, judge=limits, judge_at=judge_at) as pool,
        RolloutDriver(
            [seat],
            pool,
            tokenizer.decode,
            request,
            config.reward_lag,
            Patience.beyond(pool.longest(problems)),
        ) as driver,
        MetricsWriter(stage.dir / "metrics.jsonl", resume_step=first) as metrics,
        Trackers(trackers, run.dir, stage.dir, first) as tracked,
        Progress(stage.dir.name, config.steps, start=first) as progress,
        checkpoints,
    ):
        pool.start_judge()
        for index in range(first, config.steps):
            began = time.monotonic()
            model.eval()
            engine.update_weights(model)
            draws: list[Draw] = []

            def draw(draws: list[Draw] = draws) -> Prompt:
                drawn = stream.draw()
                draws.append(drawn)
                seeds = [sample_seed(seed, drawn.number, n) for n in range(config.group_size)]
                problem, ids = problems[drawn.prompt], prompt_ids[drawn.prompt]
                return Prompt(problem, ids, seeds, visits.prospect(drawn.prompt))

            before = engine.stats()
            rollout = driver.collect(step_settings(config), draw, history=rates)
            assert rollout is not None  # nothing interrupts it
            stream.commit(rollout.done.all_passed)
            visits.record([drawn.prompt for drawn in draws], rollout.groups)
            rates = rollout.learn(rates).limited(HISTORY * config.prompts_per_step)
            short = short + 1 if rollout.done.short else 0
            if short >= config.max_short_steps:
                raise UserError(
                    f"{stage.dir.name}: {short} steps in a row found fewer than "
                    f"{config.prompts_per_step} prompts that are neither solved nor failed by the "
                    "whole group: the problems are too easy or too hard for this model"
                )
            rolled = time.monotonic()
            model.train()
            updates = update_all(model, optimizer, rollout, config, index, tokenizer.vocab_size)
            _, mtp_losses = online.refresh()
            values = step_metrics(rollout, draws, updates, config)
            values |= draft_metrics(before, engine.stats(), mtp_losses)
            values |= {
                "easy_pool_size": stream.pool_size,
                "epoch": stream.epoch,
                "time_rollout": rolled - began,
                "time_update": time.monotonic() - rolled,
            }
            metrics.log(index + 1, **values)
            tracked.log(index + 1, values)
            progress.step(
                index + 1, reward=values["reward_mean"], passed=values["pass_rate"],
                tokens=values["response_length"],
            )  # fmt: skip
            last = index + 1 == config.steps
            if last or run.interrupt.requested or (index + 1) % config.checkpoint_every == 0:
                checkpoint(index + 1)
            if run.interrupt.requested and not last:
                return False
    model.eval()
    save_model(model, stage.dir / "model", torch.float32)
    return True


def step_settings(config: RLConfig) -> StepSettings:
    """The scheduler's view of the settings."""
    validity: Callable[..., bool] = (
        valid_by_passrate if config.validity == "passrate" else valid_by_reward_std
    )
    return StepSettings(
        prompts_per_step=config.prompts_per_step,
        group_size=config.group_size,
        max_running_samples=config.slots,
        max_prompts=config.max_prompts,
        validity=validity,
    )


def update_all(
    model: MiMo,
    optimizer: torch.optim.AdamW,
    rollout: Rollout,
    config: RLConfig,
    index: int,
    used_vocab: int,
) -> list[dict[str, float]]:
    """One update for every `prompts_per_update` prompts of the batch, in stream order."""
    batch, size = rollout.batch, config.prompts_per_update
    per_step = config.prompts_per_step // size
    return [
        grpo_update(
            model,
            optimizer,
            batch[start : start + size],
            config,
            constant_with_warmup(
                index * per_step + number, config.learning_rate, config.warmup_updates
            ),
            used_vocab,
        )
        for number, start in enumerate(range(0, len(batch), size))
    ]
