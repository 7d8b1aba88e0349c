"""One rollout step while it runs: the scheduler's actions out, what happens back in."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from openmimo.errors import UserError
from openmimo.inference.protocol import Completion, InferenceEngine, Request, RequestId
from openmimo.rewards.verdict import Verdict, failed
from openmimo.rollout.demand import PassRates, Prospect
from openmimo.rollout.engine_worker import MOST_STEPS, EngineWorker
from openmimo.rollout.events import (
    Abort,
    Action,
    Done,
    Event,
    Generated,
    Launch,
    Lost,
    Score,
    Scored,
    Start,
)
from openmimo.rollout.placement import PLACEMENTS
from openmimo.rollout.policies import Policy
from openmimo.rollout.records import Group, Prompt, Rollout
from openmimo.rollout.reward_line import RewardLine, Rewards
from openmimo.rollout.scheduler import StepScheduler, StepSettings
from openmimo.rollout.timeline import Recorder
from openmimo.rollout.watchdog import Watchdog, dump_stacks
from openmimo.runs import Interrupt

if TYPE_CHECKING:
    from openmimo.rollout.driver import OnSample, Patience


class Key(NamedTuple):
    """A sample of the step."""

    prompt: int
    sample: int


class Running(NamedTuple):
    """A sample that an engine has."""

    engine: int
    tokens: float  # as expected when it was placed


@dataclass(kw_only=True)
class RunningStep:
    """See `RolloutDriver.collect`; `run` once. `restarts` has one entry for each of `workers`."""

    name: str
    workers: Sequence[EngineWorker]
    restarts: Sequence[Callable[[], InferenceEngine] | None]
    rewards: Rewards
    decode: Callable[[Sequence[int]], str]
    request: Callable[[Prompt, int, RequestId], Request]
    settings: StepSettings
    policy: Policy
    history: PassRates | None
    draw: Callable[[], Prompt]
    on_sample: OnSample | None
    interrupt: Interrupt | None
    lag: int | None
    patience: Patience

    def __post_init__(self) -> None:
        self._groups: list[Group] = []
        self._aborted: set[int] = set()
        self._scheduler = StepScheduler(self.settings, self.policy, self.history, self._draw)
        slots = [worker.slots for worker in self.workers]
        self._placement = PLACEMENTS[self.policy.places](slots)
        self._running: dict[Key, Running] = {}
        self._unplaced: deque[Start] = deque()  # no engine has room for them just now
        self._scoring: dict[Key, asyncio.Task[Verdict]] = {}
        self._due: deque[tuple[int, Key]] = deque()  # decode step at which a score is used
        self._clock, self._waited = 0, 0.0
        self._began = time.monotonic()
        self._recorder = Recorder(self.policy.name, [worker.name for worker in self.workers])
        self._lanes: set[int] = set()
        self._restarted = [0] * len(self.workers)
        self._alive = [True] * len(self.workers)
        self._stopping = False
        if self.policy.rewards == "inline":
            self.lag = 0

    async def run(self) -> Rollout | None:
        """Until the scheduler is done; None if it was interrupted before."""
        self._over: asyncio.Future[Done | None] = asyncio.get_running_loop().create_future()
        most = self.patience.rewards if self.policy.rewards == "async" else 1
        self._line = RewardLine(self.rewards, most, self.patience.reward)
        self._watchdog = Watchdog(self.patience.silence, self._stuck)
        self._watchdog.start()
        pumps = [asyncio.create_task(self._pump(n)) for n in range(len(self.workers))]
        try:
            self._carry_out(self._scheduler.start())
            done = await self._over
        finally:
            self._watchdog.stop()
            await self._drain(pumps)
        if done is None:
            return None
        timeline = self._recorder.finish(done, self._aborted, self._now())
        committed = self._groups[: done.stats.committed]
        return Rollout(committed, done, self._clock, self._waited, self._watchdog.lag, timeline)

    async def _drain(self, pumps: Sequence[asyncio.Task[None]]) -> None:
        """Leave nothing behind: engines are empty, and nobody waits for a verdict."""
        self._over.cancel()  # no effect on a step that is over
        for worker in self.workers:
            worker.abort(list(worker.in_flight))
            worker.wake()
        for verdict in self._scoring.values():
            verdict.cancel()
        _, late = await asyncio.wait(pumps, timeout=self.patience.drain)
        if late:
            dump_stacks()
            for pump in late:
                pump.cancel()
            names = [w.name for w, pump in zip(self.workers, pumps, strict=True) if pump in late]
            raise UserError(
                f"rollout: {', '.join(names)} did not stop within {self.patience.drain:g} s "
                "(the stacks of all threads are above)"
            )

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _draw(self, index: int) -> Prospect:
        """The scheduler launches prompts in the order of their indices, so this is the next."""
        self._groups.append(Group(self.draw()))
        return self._groups[index].prompt.prospect

    # Engines.

    async def _pump(self, number: int) -> None:
        """Keep an engine going until the step is over and the engine is empty."""
        while True:
            try:
                await self._work(self.workers[number])
                return
            except Exception as error:
                if self._over.done() or not await self._revive(number, error):
                    return

    async def _work(self, worker: EngineWorker) -> None:
        while not self._over.done() or worker.has_commands:
            if not await worker.ready():
                continue
            advance = await worker.advance(self._steps_until_due())
            self._watchdog.heard()
            self._clock += advance.steps
            for completion in advance.completions:
                self._receive(completion)
            if self.interrupt is not None and self.interrupt.requested:
                self._stop_generating()
            if self.lag is not None:
                await self._use_due(worker)

    def _receive(self, completion: Completion) -> None:
        _, index, sample = map(int, str(completion.request_id).split("/"))
        key = Key(index, sample)
        tokens = len(completion.token_ids)
        self._take_from_engine(key, tokens)
        self._groups[index].completions[sample] = completion
        self._handle(Generated(index, sample, tokens))

    def _take_from_engine(self, key: Key, tokens: int = 0, lost: bool = False) -> None:
        running = self._running.pop(key)
        self._placement.give_back(running.engine, running.tokens)
        self._recorder.end("generate", *key, self._now(), tokens, lost)
        while self._unplaced and self._placement.slots:
            start = self._unplaced.popleft()
            if start.prompt_index not in self._aborted:
                self._place(start)

    def _place(self, start: Start) -> None:
        """Give a sample to an engine, or let it wait for one that comes back."""
        if not self._placement.slots:
            self._unplaced.append(start)
            return
        key = Key(start.prompt_index, start.sample)
        engine = self._placement.take(start.tokens, key.prompt)
        worker = self.workers[engine]
        self._running[key] = Running(engine, start.tokens)
        self._recorder.begin("generate", *key, worker.name, self._now())
        prompt = self._groups[key.prompt].prompt
        worker.submit(self.request(prompt, key.sample, self._id(key)))

    async def _revive(self, number: int, error: Exception) -> bool:
        """An engine raised: its samples go to the others, or to the same one once it is back."""
        worker, restart = self.workers[number], self.restarts[number]
        again = restart is not None and self._restarted[number] < self.patience.restarts
        self._alive[number] = again
        if not any(self._alive):
            problem = UserError(f"rollout: {worker.name} died, and none is left: {error}")
            problem.__cause__ = error
            self._fail(problem)
            return False
        self._placement.down(number)
        worker.forget()
        lost = [key for key, running in self._running.items() if running.engine == number]
        for key in lost:
            self._take_from_engine(key, lost=True)
            self._handle(Lost(*key))
        if restart is None or not again:
            return False
        self._restarted[number] += 1
        try:
            worker.engine = await asyncio.to_thread(restart)
        except Exception as failure:
            return await self._revive(number, failure)
        self._placement.up(number)
        while self._unplaced and self._placement.slots:
            self._place(self._unplaced.popleft())
        return True

    def _id(self, key: Key) -> str:
        return f"{self.name}/{key.prompt}/{key.sample}"

    # Rewards.

    def _begin_scoring(self, key: Key) -> None:
        self._scoring[key] = asyncio.create_task(self._score(key))
        if self.lag is None:
            self._scoring[key].add_done_callback(lambda task: self._arrived(key, task))
        else:
            self._due.append((self._clock + self.lag, key))

    async def _score(self, key: Key) -> Verdict:
        group = self._groups[key.prompt]
        completion = group.completions[key.sample]
        assert completion is not None
        if completion.finish_reason == "failed":  # no answer of the model, so not a wrong one
            return failed(f"the engine gave it up: {completion.error}")
        lane = next(n for n in range(len(self._lanes) + 1) if n not in self._lanes)
        self._lanes.add(lane)
        self._recorder.begin("reward", *key, f"reward {lane}", self._now())
        try:
            text = self.decode(completion.token_ids.tolist())
            order = key.prompt if self.policy.rewards_in_order else 0
            return await self._line.score(group.prompt.problem, text, order)
        finally:
            self._lanes.discard(lane)
            self._recorder.end("reward", *key, self._now())

    def _arrived(self, key: Key, task: asyncio.Task[Verdict]) -> None:
        """Without a lag, a verdict is used when it is there."""
        if task.cancelled() or self._over.done():
            return
        if error := task.exception():
            self._fail(error)
            return
        self._use(key, task.result())

    async def _use_due(self, worker: EngineWorker) -> None:
        """With a lag, verdicts are used in the order of the samples' ends, each at its step."""
        while self._due and not self._over.done():
            due, key = self._due[0]
            if worker.in_flight and due > self._clock:
                return
            self._due.popleft()
            if key.prompt in self._aborted:
                continue  # nobody needs this reward
            self._clock = max(self._clock, due)  # nothing to decode: time passes until then
            began = time.monotonic()
            verdict = await self._scoring[key]
            self._waited += time.monotonic() - began
            self._use(key, verdict)

    def _steps_until_due(self) -> int:
        return max(1, self._due[0][0] - self._clock) if self._due else MOST_STEPS

    def _use(self, key: Key, verdict: Verdict) -> None:
        del self._scoring[key]
        self._watchdog.heard()
        if key.prompt in self._aborted:
            return
        group = self._groups[key.prompt]
        group.results[key.sample] = verdict
        completion = group.completions[key.sample]
        if self.on_sample is not None and completion is not None:
            self.on_sample(group.prompt, key.sample, completion, verdict)
        self._handle(Scored(key.prompt, key.sample, verdict.score))
        self._end_if_interrupted()

    # The scheduler.

    def _handle(self, event: Event) -> None:
        try:
            self._carry_out(self._scheduler.handle(event))
        except Exception as error:  # into `run`, whatever task we are in
            self._fail(error)

    def _carry_out(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Launch():
                    self._recorder.launch(self._now())
                case Start():
                    if not self._stopping:
                        self._place(action)
                case Score(index, sample):
                    self._begin_scoring(Key(index, sample))
                case Abort(index):
                    self._abort(index)
                case Done():
                    if not self._over.done():
                        self._over.set_result(action)

    def _abort(self, index: int) -> None:
        self._aborted.add(index)
        self._recorder.abort(index, self._now())
        for key in [key for key in self._running if key.prompt == index]:
            self.workers[self._running[key].engine].abort([self._id(key)])
            self._take_from_engine(key)

    def _stop_generating(self) -> None:
        """An interrupt: what is not generated by now will not be."""
        self._stopping = True
        for key in list(self._running):
            self.workers[self._running[key].engine].abort([self._id(key)])
            self._take_from_engine(key)
        self._unplaced.clear()
        self._end_if_interrupted()

    def _end_if_interrupted(self) -> None:
        if self._stopping and not self._scoring and not self._over.done():
            self._over.set_result(None)

    # What goes wrong.

    def _fail(self, error: BaseException) -> None:
        if not self._over.done():
            self._over.set_exception(error)

    def _stuck(self) -> None:
        """Nothing happened for too long."""
        dump_stacks()
        oldest = self._recorder.oldest()
        what = "nothing was running"
        if oldest is not None:
            kind, key, lane, since = oldest
            problem = self._groups[key[0]].prompt.problem
            verb = "generates" if kind == "generate" else "computes the reward of"
            what = (
                f"{lane} {verb} sample {key[1]} of prompt {key[0]} (problem "
                f"{problem.get('id')!r}) since {self._now() - since:.0f} s"
            )
        self._fail(
            UserError(
                f"rollout: nothing happened for {self.patience.silence:g} s; oldest: {what} "
                "(the stacks of all threads are above)"
            )
        )
