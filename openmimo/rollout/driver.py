"""Drives an engine and the reward pool by the scheduler's word: one rollout step.

Decoding never stops for a reward: a finished sample goes to the pool at once, and while it is
scored other samples and new prompts decode. Its score reaches the scheduler a fixed number of
decode steps after its end (`lag`), waiting for it only if the pool is slower than that. So what
starts when is counted in decode steps, not in seconds, and a step can be repeated exactly.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from openmimo.errors import UserError
from openmimo.inference.protocol import Completion, InferenceEngine, Request
from openmimo.judge.verdict import Status
from openmimo.rewards.pool import RewardPool
from openmimo.rewards.verdict import Verdict
from openmimo.rollout.scheduler import Abort, Action, Done, Launch, SampleScored, StepScheduler

REWARD_DEADLINE = 120.0
"""Seconds to wait for one reward before the step fails; every verifier has a shorter limit."""


@dataclass(frozen=True)
class Prompt:
    """A prompt to sample from; `sample_seeds` has one seed for each sample of the group."""

    problem: dict[str, Any]
    ids: Sequence[int]
    sample_seeds: Sequence[int]


@dataclass
class Group:
    """A prompt and what came back; entries are None until they arrive."""

    prompt: Prompt
    completions: list[Completion | None] = field(default_factory=list)
    results: list[Verdict | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.completions = [None] * len(self.prompt.sample_seeds)
        self.results = [None] * len(self.prompt.sample_seeds)

    @property
    def scores(self) -> list[float | None]:
        """One score a sample; None where there is none."""
        return [result.score if result else None for result in self.results]


@dataclass(frozen=True)
class Rollout:
    """One step's outcome: the committed groups in stream order, and the scheduler's last word."""

    groups: list[Group]
    done: Done
    decode_steps: int
    reward_wait_seconds: float

    @property
    def batch(self) -> list[Group]:
        """The groups to train on."""
        return [self.groups[index] for index in self.done.selected]


class RolloutDriver:
    """Runs rollout steps.

    Args:
        engine: idle between steps.
        pool: scores responses.
        decode: token ids of a response to its text (stop token left out).
        max_new_tokens, stop_ids: of every request.
        max_length: longest prompt plus answer; an answer that would exceed it is cut there.
        lag: decode steps between a sample's end and the use of its score.
    """

    def __init__(
        self,
        engine: InferenceEngine,
        pool: RewardPool,
        decode: Callable[[Sequence[int]], str],
        max_new_tokens: int,
        max_length: int,
        stop_ids: Sequence[int],
        lag: int,
    ) -> None:
        self._engine, self._pool, self._decode = engine, pool, decode
        self._max_new_tokens, self._max_length = max_new_tokens, max_length
        self._stop_ids = tuple(stop_ids)
        self._lag = lag
        self._round = 0

    def collect(self, scheduler: StepScheduler, draw: Callable[[], Prompt]) -> Rollout:
        """Sample until the scheduler is done; `draw` gives the prompts in selection order.

        Raises:
            UserError: a reward did not arrive in time.
        """
        self._round += 1  # rewards of an earlier round's aborted samples may still arrive
        groups: list[Group] = []
        due: deque[tuple[int, tuple[int, int]]] = deque()
        arrived: dict[tuple[int, int], Verdict] = {}
        clock, waited = 0, 0.0
        done = self._carry_out(scheduler.start(), groups, draw)
        while done is None:
            for completion in self._engine.step():
                key = self._receive(completion, groups, arrived)
                due.append((clock + self._lag, key))
            clock += 1
            stats = self._engine.stats()
            if due and not stats.active and not stats.waiting:
                clock = max(clock, due[0][0])  # nothing to decode: time passes until the next score
            while due and due[0][0] <= clock and done is None:
                _, key = due.popleft()
                index, sample = key
                if scheduler.state(index) == "aborted":
                    continue  # nobody needs this reward
                waited += self._await(key, arrived)
                groups[index].results[sample] = arrived.pop(key)
                score = groups[index].scores[sample]
                done = self._carry_out(
                    scheduler.handle(SampleScored(index, sample, score)), groups, draw
                )
        committed = groups[: len(done.all_passed)]
        return Rollout(committed, done, clock, waited)

    def _carry_out(
        self, actions: Sequence[Action], groups: list[Group], draw: Callable[[], Prompt]
    ) -> Done | None:
        for action in actions:
            match action:
                case Launch(prompt_index=index):
                    groups.append(Group(draw()))
                    self._engine.submit(self._requests(index, groups[index].prompt))
                case Abort(prompt_index=index):
                    size = len(groups[index].prompt.sample_seeds)
                    self._engine.abort([f"{self._round}/{index}/{n}" for n in range(size)])
                case Done():
                    return action
        return None

    def _requests(self, index: int, prompt: Prompt) -> list[Request]:
        return [
            Request(
                id=f"{self._round}/{index}/{sample}",
                prompt_ids=prompt.ids,
                max_new_tokens=min(self._max_new_tokens, self._max_length - len(prompt.ids)),
                seed=seed,
                stop_ids=self._stop_ids,
            )
            for sample, seed in enumerate(prompt.sample_seeds)
        ]

    def _receive(
        self,
        completion: Completion,
        groups: list[Group],
        arrived: dict[tuple[int, int], Verdict],
    ) -> tuple[int, int]:
        _, index, sample = map(int, str(completion.request_id).split("/"))
        group = groups[index]
        group.completions[sample] = completion
        if completion.finish_reason == "failed":  # no answer of the model, so not a wrong one
            why = f"the engine gave it up: {completion.error}"
            arrived[index, sample] = Verdict(None, Status.JUDGE_ERROR, why)
            return index, sample
        text = self._decode(completion.token_ids.tolist())
        self._pool.submit((self._round, index, sample), group.prompt.problem, text)
        return index, sample

    def _await(self, key: tuple[int, int], arrived: dict[tuple[int, int], Verdict]) -> float:
        """Wait until the reward of `key` has arrived; returns the seconds it took."""
        began = time.monotonic()
        results = self._pool.poll()
        while True:
            for (number, index, sample), result in results:
                if number == self._round:
                    arrived[index, sample] = result
            if key in arrived:
                return time.monotonic() - began
            left = REWARD_DEADLINE - (time.monotonic() - began)
            if left <= 0:
                raise UserError(f"no reward for sample {key} within {REWARD_DEADLINE:.0f} s")
            results = self._pool.wait(timeout=left)
