"""Rollout steps for real: engines and rewards carry out what the scheduler says.

Everything happens on one event loop, and nothing polls: engines decode in threads of their own and
report what finished, rewards report when they are there. Decoding never stops for a reward, but for
policies that say so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from openmimo.inference.protocol import Completion, InferenceEngine, Request, RequestId, Weights
from openmimo.rewards.verdict import Verdict
from openmimo.rollout.background import Background
from openmimo.rollout.demand import PassRates
from openmimo.rollout.engine_worker import EngineWorker
from openmimo.rollout.policies import Ours, Policy
from openmimo.rollout.records import Prompt, Rollout
from openmimo.rollout.reward_line import Rewards
from openmimo.rollout.running_step import RunningStep
from openmimo.rollout.scheduler import StepSettings
from openmimo.rollout.timeline import ENGINE
from openmimo.runs import Interrupt

OnSample = Callable[[Prompt, int, Completion, Verdict], None]


@dataclass(frozen=True)
class EngineSeat:
    """An engine, and how many samples it is given at once.

    restart: makes a new engine when this one has died; it is called in a thread, at most
        `driver.Patience.restarts` times a step. It may take longer than the step, which does not
        wait for it. The engine then gets the weights of `RolloutDriver.update_weights`, if that was
        called. None: the others go on without it.
    """

    engine: InferenceEngine
    slots: int
    restart: Callable[[], InferenceEngine] | None = None


@dataclass(frozen=True)
class Patience:
    """Deadlines of a step, in seconds.

    reward: for one verdict, after which the sample counts as unscorable.
    silence: longest time without any news, after which the step fails. Longer than an engine on
        another machine is waited for (600 s) and then started again (300 s), so that this is tried.
    drain: for engines to end their aborted samples when the step is over.
    rewards: verdicts worked on at once.
    restarts: of one engine in one step.
    """

    reward: float = 120.0
    silence: float = 1200.0
    drain: float = 60.0
    rewards: int = 1024
    restarts: int = 3

    @classmethod
    def beyond(cls, seconds: float, rewards: int) -> Self:
        """For rewards of which a single one may rightly take so many seconds, so many at once."""
        return cls(reward=cls.reward + seconds, silence=cls.silence + seconds, rewards=rewards)


class RolloutDriver:
    """Runs rollout steps on some engines; they are idle between two steps. A context manager.

    Args:
        seats: the engines.
        rewards: score responses.
        decode: token ids of a response to its text (stop token left out).
        request: makes the request of a prompt's sample; it must have the id given.
        lag: decode steps between a sample's end and the use of its score, for one engine. So what
            starts when is counted in decode steps, not in seconds: the same step twice is the same
            to the last number, however fast the rewards are. None: a score is used when it is
            there, which is faster; which groups are selected does not change.
        patience: deadlines.
    """

    def __init__(
        self,
        seats: Sequence[EngineSeat],
        rewards: Rewards,
        decode: Callable[[Sequence[int]], str],
        request: Callable[[Prompt, int, RequestId], Request],
        lag: int | None = None,
        patience: Patience = Patience(),
    ) -> None:
        if lag is not None and len(seats) != 1:
            raise ValueError("a step can be repeated exactly with one engine only: lag is None")
        self._seats = list(seats)
        self._workers = [
            EngineWorker(seat.engine, f"{ENGINE} {number}", seat.slots)
            for number, seat in enumerate(seats)
        ]
        self._rewards, self._decode, self._request = rewards, decode, request
        self._lag, self._patience = lag, patience
        self._runner = asyncio.Runner()
        self._weights: Weights | None = None
        self._round = 0

    @property
    def slots(self) -> int:
        """Samples that all engines generate at once."""
        return sum(seat.slots for seat in self._seats)

    @property
    def engines(self) -> list[InferenceEngine]:
        """The engines as they are now: one that was restarted is another object."""
        return [worker.engine for worker in self._workers]

    def update_weights(self, weights: Weights) -> None:
        """Let all engines, at the same time, continue with other weights.

        An engine that fails to is started again in the next step, if it can be. The weights must
        not change while a step runs.

        Raises:
            Exception: of an engine that cannot be started again.
        """
        self._weights = weights
        self._runner.run(self._update_all(weights))

    async def _update_all(self, weights: Weights) -> None:
        usable = [
            (worker, seat)
            for worker, seat in zip(self._workers, self._seats, strict=True)
            if worker.broken is None
        ]
        updates = (worker.update_weights(weights) for worker, _ in usable)
        outcomes = await asyncio.gather(*updates, return_exceptions=True)
        for (worker, seat), outcome in zip(usable, outcomes, strict=True):
            if isinstance(outcome, Exception) and seat.restart is not None:
                worker.broken = outcome
            elif isinstance(outcome, BaseException):
                raise outcome

    def collect(
        self,
        settings: StepSettings,
        draw: Callable[[], Prompt],
        policy: Policy | None = None,
        history: PassRates | None = None,
        on_sample: OnSample | None = None,
        interrupt: Interrupt | None = None,
        background: Background | None = None,
    ) -> Rollout | None:
        """Sample until the scheduler is done.

        Args:
            draw: gives the prompts in selection order.
            policy: default: `Ours`.
            history: pass rates of earlier steps.
            on_sample: called with each sample of the step as its verdict is used.
            interrupt: once it is requested nothing more is generated, and what is generated is
                still scored and handed to `on_sample`.
            background: fills slots that the step does not need; complete when this returns.

        Returns:
            None if it was interrupted.

        Raises:
            UserError: nothing happened for too long, or the last engine has died.
        """
        self._round += 1  # what an earlier round left behind has another name
        step = RunningStep(
            name=str(self._round),
            workers=self._workers,
            restarts=[seat.restart for seat in self._seats],
            rewards=self._rewards,
            decode=self._decode,
            request=self._request,
            settings=settings,
            policy=policy or Ours(),
            history=history,
            draw=draw,
            on_sample=on_sample,
            interrupt=interrupt,
            background=background or Background(),
            weights=self._weights,
            lag=self._lag,
            patience=self._patience,
        )
        return self._runner.run(step.run())

    def close(self) -> None:
        """Let the threads go; the engines stay as they are."""
        for worker in self._workers:
            worker.close()
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
