"""Rollout steps of a real model with real rewards, under several policies: `rollout-bench --real`.

All policies get the same prompts, seeds and weights, step by step and in turns, so that they share
whatever else the machine does. Each has an engine, a judge and caches of its own.
"""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from openmimo.data.documents import read_records
from openmimo.inference.engine import Engine
from openmimo.inference.protocol import Request, RequestId
from openmimo.inference.sampling import sample_seed
from openmimo.model.checkpoint import load_model
from openmimo.model.mimo import MiMo
from openmimo.progress import Progress
from openmimo.rewards.code import program_limits
from openmimo.rewards.grading import Grading
from openmimo.rewards.pool import RewardPool
from openmimo.rollout.demand import PassRates
from openmimo.rollout.driver import EngineSeat, Patience, RolloutDriver
from openmimo.rollout.policies import Naive, Ours, Policy, Report, Static
from openmimo.rollout.records import Prompt, Rollout
from openmimo.rollout.scheduler import StepSettings
from openmimo.rollout.simulator.trace import TraceWriter
from openmimo.rollout.usage import usage
from openmimo.rollout.validation import answer_all
from openmimo.tokenizer import Tokenizer


@dataclass(frozen=True)
class RealSettings:
    """prompts, group, max_tokens: of a step; the problems of a step follow those of the last.

    slots: of the engine. steps: rounds measured, after one that is not.
    """

    prompts: int = 32
    group: int = 8
    max_tokens: int = 128
    slots: int = 256
    steps: int = 5
    seed: int = 0


@dataclass(frozen=True)
class Contender:
    """A policy, its form without dynamic sampling, and how many tokens are drafted."""

    name: str
    policy: Policy
    validation: Static
    drafts: int | Literal["auto"] = 0


CONTENDERS = (
    Contender("naive", Naive(), Static(rewards="barrier", longest_first=False)),
    Contender("report", Report(), Static(longest_first=False)),
    Contender("ours", Ours(), Static()),
    Contender("ours_mtp", Ours(), Static(), "auto"),
)

VALIDATION = 4
"""Batches of prompts in one validation."""


class Lane:
    """A contender at work: its own engine, rewards, and place in the stream of problems."""

    def __init__(
        self,
        contender: Contender,
        model: MiMo,
        tokenizer: Tokenizer,
        problems: Sequence[Mapping[str, Any]],
        settings: RealSettings,
        stack: ExitStack,
    ) -> None:
        self.contender, self._settings = contender, settings
        self._problems, self._tokenizer = problems, tokenizer
        self._ids = [tokenizer.chat_prompt(problem["prompt"]) for problem in problems]
        self._length = max(map(len, self._ids)) + settings.max_tokens
        self._next, self._rates = 0, PassRates(settings.group)
        engine = Engine(
            model,
            slots=settings.slots,
            max_length=min(self._length, model.config.max_position_embeddings),
            used_vocab=tokenizer.vocab_size,
            drafts=contender.drafts,
        )
        pool = stack.enter_context(
            RewardPool(
                judge_workers=os.cpu_count() or 1, grading=Grading("soft"), judge=program_limits()
            )
        )
        pool.start_judge()
        seat = EngineSeat(engine, settings.slots)
        self._driver = stack.enter_context(
            RolloutDriver(
                [seat],
                pool,
                tokenizer.decode,
                self._request,
                patience=Patience.beyond(pool.longest(problems), pool.at_once),
            )
        )

    def step(self) -> Rollout:
        """One step with dynamic sampling."""
        drawn = 0

        def draw() -> Prompt:
            nonlocal drawn
            drawn += 1
            return self._prompt(self._next + drawn - 1)

        s = self._settings
        settings = StepSettings(s.prompts, s.group, s.slots, max_prompts=20 * s.prompts)
        policy, rates = self.contender.policy, self._rates
        rollout = self._driver.collect(settings, draw, policy, rates)
        assert rollout is not None  # nothing interrupts it
        self._next += rollout.done.stats.committed
        self._rates = rollout.learn(rates).limited(4 * s.prompts)
        return rollout

    def validate(self) -> Rollout:
        """Answers to several batches of problems, all of them wanted."""
        count = VALIDATION * self._settings.prompts
        prompts = [self._prompt(number) for number in range(self._next, self._next + count)]
        self._next += count
        rollout = answer_all(self._driver, prompts, policy=self.contender.validation)
        assert rollout is not None
        return rollout

    def _prompt(self, number: int) -> Prompt:
        at = number % len(self._problems)
        seeds = [
            sample_seed(self._settings.seed, "rollout-bench", number, sample)
            for sample in range(self._settings.group)
        ]
        return Prompt(self._problems[at], self._ids[at], seeds)

    def _request(self, prompt: Prompt, sample: int, request_id: RequestId) -> Request:
        length = min(self._settings.max_tokens, self._length - len(prompt.ids))
        stop_ids = (self._tokenizer.eos_id, self._tokenizer.doc_end_id)
        seed = prompt.sample_seeds[sample]
        return Request(request_id, prompt.ids, length, seed=seed, stop_ids=stop_ids)


def measure_real(
    folder: Path,
    problems: Path,
    settings: RealSettings,
    record: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """Time steps and validations of every contender, in turns.

    Args:
        folder: the model, with its tokenizer.
        problems: records as RL reads them.
        record: a trace file to write the naive steps to (`simulator.trace`).

    Returns:
        For each contender: rollout_speedup over naive and validation_speedup (medians over the
        steps of the ratios), seconds (of each step), idle, waste and validation_idle (means), and
        same_batches: whether each step's batch was that of naive, token for token.
    """
    torch.set_num_threads(1)  # the other cores are the judge's
    records = [problem for _, problem in read_records(problems, "id", "domain", "prompt")]
    random.Random(settings.seed).shuffle(records)
    model, tokenizer = load_model(folder, dtype=torch.float32), Tokenizer.load(folder)
    results: dict[str, list[_Result]] = {each.name: [] for each in CONTENDERS}
    with ExitStack() as stack:
        lanes = [Lane(c, model, tokenizer, records, settings, stack) for c in CONTENDERS]
        writer = TraceWriter(record, settings.prompts, settings.group) if record else None
        if writer is not None:
            stack.enter_context(writer)
        progress = stack.enter_context(Progress("rollout-bench", settings.steps + 1))
        for number in range(settings.steps + 1):  # the first one is not counted
            for lane in lanes if number % 2 else lanes[::-1]:  # load that drifts hits all alike
                results[lane.contender.name].append(_Result(lane.step(), lane.validate()))
            naive = results["naive"][-1].step
            if writer is not None and number:
                _record(writer, number - 1, naive)
            progress.step(number + 1, naive_seconds=naive.timeline.seconds)
    return {name: _summary(each[1:], results["naive"][1:]) for name, each in results.items()}


@dataclass(frozen=True)
class _Result:
    step: Rollout
    validation: Rollout


def _summary(mine: Sequence[_Result], naive: Sequence[_Result]) -> dict[str, Any]:
    steps = [result.step for result in mine]
    pairs = list(zip(naive, mine, strict=True))
    return {
        "rollout_speedup": statistics.median(
            a.step.timeline.seconds / b.step.timeline.seconds for a, b in pairs
        ),
        "validation_speedup": statistics.median(
            a.validation.timeline.seconds / b.validation.timeline.seconds for a, b in pairs
        ),
        "seconds": [round(step.timeline.seconds, 3) for step in steps],
        "validation_seconds": [round(r.validation.timeline.seconds, 3) for r in mine],
        "idle": statistics.mean(map(_idle, steps)),
        "validation_idle": statistics.mean(_idle(result.validation) for result in mine),
        "waste": statistics.mean(step.done.stats.surplus_valid / len(step.batch) for step in steps),
        "same_batches": all(batch_of(a.step) == batch_of(b.step) for a, b in pairs),
    }


def _idle(rollout: Rollout) -> float:
    used = usage(rollout.timeline)
    return used.idle + used.doomed


def _record(writer: TraceWriter, number: int, rollout: Rollout) -> None:
    """The committed groups of a step whose rewards were computed one at a time."""
    seconds = {
        (span.prompt, span.sample): span.end - span.start
        for span in rollout.timeline.spans
        if span.kind == "reward"
    }
    for index, group in enumerate(rollout.groups):
        tokens = [len(c.token_ids) for c in group.completions if c is not None]
        rewards = [seconds.get((index, sample), 0.0) for sample in range(len(group.scores))]
        writer.write(number, str(group.prompt.problem["id"]), tokens, group.scores, rewards)


def batch_of(rollout: Rollout) -> list[Any]:
    """What a step selected, to compare: problems, tokens, scores."""
    return [
        (
            group.prompt.problem["id"],
            [c.token_ids.tolist() for c in group.completions if c],
            group.scores,
        )
        for group in rollout.batch
    ]
