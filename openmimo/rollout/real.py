"""Rollout steps of a real model with real rewards, under several policies: `rollout-bench --real`.

All policies get the same prompts, seeds and weights, step by step and in turns, so that they share
whatever else the machine does. Each has an engine, a judge and caches of its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

from openmimo.inference.engine import Engine
from openmimo.inference.protocol import Request, RequestId
from openmimo.inference.sampling import sample_seed
from openmimo.model.mimo import MiMo
from openmimo.rewards.grading import Grading
from openmimo.rewards.pool import JUDGE_LIMITS, RewardPool
from openmimo.rollout.demand import PassRates
from openmimo.rollout.driver import EngineSeat, RolloutDriver
from openmimo.rollout.policies import Naive, Ours, Policy, Report, Static
from openmimo.rollout.records import Prompt, Rollout
from openmimo.rollout.scheduler import StepSettings
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
    """A policy and what it decodes and judges with."""

    name: str
    policy: Policy
    drafts: int | Literal["auto"] = 0
    judge_workers: int = 1


CONTENDERS = (
    Contender("naive", Naive()),
    Contender("report", Report(), judge_workers=os.cpu_count() or 1),
    Contender("ours", Ours(), judge_workers=os.cpu_count() or 1),
    Contender("ours_mtp", Ours(), "auto", os.cpu_count() or 1),
)


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
                judge_workers=contender.judge_workers, grading=Grading("soft"), judge=JUDGE_LIMITS
            )
        )
        pool.start_judge()
        seat = EngineSeat(engine, settings.slots)
        self._driver = stack.enter_context(
            RolloutDriver([seat], pool, tokenizer.decode, self._request)
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

    def validate(self, policy: Static) -> Rollout:
        """Answers to a batch of problems, all of them wanted."""
        prompts = [self._prompt(number) for number in range(4 * self._settings.prompts)]
        rollout = answer_all(self._driver, prompts, policy=policy)
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
