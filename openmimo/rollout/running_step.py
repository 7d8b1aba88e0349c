"""One rollout step while it runs: the scheduler's actions out, what happens back in."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from openmimo.errors import UserError
from openmimo.inference.protocol import Completion, Request, RequestId, Weights
from openmimo.rewards.verdict import Verdict, failed
from openmimo.rollout.background import Background
from openmimo.rollout.demand import PassRates, Prospect
from openmimo.rollout.engine_bank import EngineBank, Restart
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
from openmimo.rollout.timeline import REWARD, Recorder
from openmimo.rollout.watchdog import Watchdog, dump_stacks
from openmimo.runs import Interrupt

if TYPE_CHECKING:
    from openmimo.rollout.driver import OnSample, Patience


class Key(NamedTuple):
    """A sample of the step."""

    prompt: int
    sample: int


@dataclass(kw_only=True)
class RunningStep:
    """See `RolloutDriver.collect`; `run` once. It is the `Listener` of its `EngineBank`."""

    name: str
    workers: Sequence[EngineWorker]
    restarts: Sequence[Restart]
    rewards: Rewards
    decode: Callable[[Sequence[int]], str]
    request: Callable[[Prompt, int, RequestId], Request]
    settings: StepSettings
    policy: Policy
    history: PassRates | None
    draw: Callable[[], Prompt]
    on_sample: OnSample | None
    interrupt: Interrupt | None
    background: Background
    weights: Weights | None
    lag: int | None
    patience: Patience

    def __post_init__(self) -> None:
        self._groups: list[Group] = []
        self._aborted: set[int] = set()
        self._scheduler = StepScheduler(self.settings, self.policy, self.history, self._draw)
        placement = PLACEMENTS[self.policy.places]([worker.slots for worker in self.workers])
        self._bank = EngineBank(
            self.workers, self.restarts, placement, self.patience.restarts, self, self.weights
        )
        self._waiting: deque[Start] = deque()  # the engine that had room for them is gone
        self._generating: set[Key] = set()
        self._scoring: dict[Key, asyncio.Task[Verdict]] = {}
        self._due: deque[tuple[int, Key]] = deque()  # decode step at which a score is used
        self._clock, self._waited = 0, 0.0
        self._began = time.monotonic()
        self._recorder = Recorder(self.policy.name, [worker.name for worker in self.workers])
        self._lanes: set[int] = set()
        self._done: Done | None = None
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
        self._bank.start()
        try:
            self._carry_out(self._scheduler.start())
            done = await self._over
        finally:
            await self._leave_nothing(sys.exception())
        if done is None:
            return None
        timeline = self._recorder.finish(done, self._aborted, self._now())
        committed = self._groups[: done.stats.committed]
        return Rollout(committed, done, self._clock, self._waited, self._watchdog.lag, timeline)

    async def _leave_nothing(self, error: BaseException | None) -> None:
        """No verdict is waited for any more, and the engines are empty. `error`: why the step ends,
        which one more of the engines' must not hide."""
        self._watchdog.stop()
        self._over.cancel()  # no effect on a step that is over
        for verdict in [*self._scoring.values(), *self.background.verdicts]:
            verdict.cancel()
        try:
            await self._bank.close(self.patience.drain)
        except UserError as late:
            if not isinstance(error, Exception):
                raise
            raise UserError(f"{error}; and {late}") from error

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _draw(self, index: int) -> Prospect:
        """The scheduler launches prompts in the order of their indices, so this is the next."""
        self._groups.append(Group(self.draw()))
        return self._groups[index].prompt.prospect

    # What the engines say (`engine_bank.Listener`).

    def stepped(self, steps: int) -> None:
        self._clock += steps

    def finished(self, completion: Completion) -> None:
        name = str(completion.request_id)
        if self.background.owns(name):
            self.background.score(name, completion, self._line, self._filled)
            return
        key = self._key(name)
        tokens = len(completion.token_ids)
        self._generating.discard(key)
        self._recorder.end("generate", *key, self._now(), tokens)
        self._groups[key.prompt].completions[key.sample] = completion
        self._handle(Generated(*key, tokens))

    def lost(self, request_ids: Sequence[str]) -> None:
        # The background's first: what starts again may ask it for slots.
        for request_id in filter(self.background.owns, request_ids):
            self.background.put_back(request_id)
        keys = [self._key(each) for each in request_ids if not self.background.owns(each)]
        for key in keys:
            self._generating.discard(key)
            self._recorder.end("generate", *key, self._now(), lost=True)
        for key in keys:
            self._handle(Lost(*key))

    def room(self) -> None:
        while self._waiting and self._bank.free:
            start = self._waiting.popleft()
            if start.prompt_index not in self._aborted:
                self._start(start)
        idle = not (self._stopping or self.background.complete)
        # Where several samples have ended at once, the scheduler hears of one after the other.
        if idle and self._bank.free and not self._scheduler.waiting_samples:
            for request in self.background.fill(self._bank.free):
                self._bank.submit(request, -1, 1.0)

    def failed(self, error: Exception) -> None:
        if not self._over.done():
            self._over.set_exception(error)

    def most_steps(self) -> int:
        return max(1, self._due[0][0] - self._clock) if self._due else MOST_STEPS

    async def advanced(self, worker: EngineWorker) -> None:
        self._watchdog.heard()
        if self.interrupt is not None and self.interrupt.requested:
            self._stop_generating()
        if self.lag is not None:
            await self._use_due(worker)

    # What the scheduler says.

    def _handle(self, event: Event) -> None:
        try:
            self._carry_out(self._scheduler.handle(event))
        except Exception as error:  # into `run`, whatever task we are in
            self.failed(error)

    def _carry_out(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Launch():
                    self._recorder.launch(self._now())
                case Start():
                    if not self._stopping:
                        self._start(action)
                case Score(index, sample):
                    self._begin_scoring(Key(index, sample))
                case Abort(index):
                    self._abort(index)
                case Done():
                    self._done = action
        self.room()
        self._end_if_complete()

    def _start(self, start: Start) -> None:
        """Give a sample to an engine, or let it wait for one that comes back."""
        if not self._bank.free and (request_id := self.background.yield_slot()):
            self._bank.abort([request_id])
        if not self._bank.free:
            self._waiting.append(start)
            return
        key = Key(start.prompt_index, start.sample)
        prompt = self._groups[key.prompt].prompt
        request = self.request(prompt, key.sample, self._id(key))
        engine = self._bank.submit(request, key.prompt, start.tokens)
        self._generating.add(key)
        self._recorder.begin("generate", *key, engine, self._now())

    def _abort(self, index: int) -> None:
        self._aborted.add(index)
        self._recorder.abort(index, self._now())
        keys = [key for key in self._generating if key.prompt == index]
        self._generating.difference_update(keys)
        self._bank.abort([self._id(key) for key in keys])

    def _id(self, key: Key) -> str:
        return f"{self.name}/{key.prompt}/{key.sample}"

    def _key(self, request_id: str) -> Key:
        _, prompt, sample = request_id.split("/")
        return Key(int(prompt), int(sample))

    # Rewards.

    def _begin_scoring(self, key: Key) -> None:
        task = self._scoring[key] = asyncio.create_task(self._score(key))
        if self.lag is None:
            task.add_done_callback(lambda task: self._arrived(key, task))
        else:
            self._due.append((self._clock + self.lag, key))

    async def _score(self, key: Key) -> Verdict:
        group = self._groups[key.prompt]
        completion = group.completions[key.sample]
        assert completion is not None
        if completion.finish_reason == "failed":  # no answer of the model, so not a wrong one
            return failed(f"the engine gave it up: {completion.error}")
        text = self.decode(completion.token_ids.tolist())
        lane = -1

        def began() -> None:
            nonlocal lane
            lane = next(n for n in range(len(self._lanes) + 1) if n not in self._lanes)
            self._lanes.add(lane)
            self._recorder.begin("reward", *key, f"{REWARD} {lane}", self._now())

        try:
            order = key.prompt if self.policy.rewards_in_order else 0
            return await self._line.score(group.prompt.problem, text, order, began)
        finally:
            self._lanes.discard(lane)
            self._recorder.end("reward", *key, self._now())

    def _arrived(self, key: Key, task: asyncio.Task[Verdict]) -> None:
        """Without a lag, a verdict is used when it is there."""
        if task.cancelled() or self._over.done():
            return
        try:
            self._use(key, task.result())
        except Exception as error:  # the event loop would log it and the step wait for ever
            self.failed(error)

    def _filled(self, error: Exception | None) -> None:
        """One more sample of the background is done, or could not be."""
        if error is not None:
            self.failed(error)
        self._end_if_complete()

    async def _use_due(self, worker: EngineWorker) -> None:
        """With a lag, verdicts are used in the order of the samples' ends, each at its step."""
        while self._due and not self._over.done():
            due, key = self._due[0]
            if worker.in_flight and due > self._clock:
                return
            self._due.popleft()
            if key.prompt in self._aborted:
                self._scoring.pop(key).cancel()  # nobody needs this reward
                continue
            self._clock = max(self._clock, due)  # nothing to decode: time passes until then
            began = time.monotonic()
            verdict = await self._scoring[key]
            self._waited += time.monotonic() - began
            self._use(key, verdict)

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
        self._handle(Scored(*key, verdict.score))

    # The end.

    def _stop_generating(self) -> None:
        """An interrupt: what is not generated by now will not be."""
        self._stopping = True
        self._waiting.clear()
        self._bank.abort([self._id(key) for key in self._generating])
        self._bank.abort(self.background.stop())
        self._generating.clear()
        self._end_if_complete()

    def _end_if_complete(self) -> None:
        if self._over.done():
            return
        if self._stopping and not self._scoring:
            self._over.set_result(None)
        elif self._done is not None and self.background.complete:
            self._over.set_result(self._done)

    def _stuck(self) -> None:
        """Nothing happened for too long."""
        dump_stacks()
        what = "nothing was running"
        if (oldest := self._recorder.oldest()) is not None:
            kind, (prompt, sample), lane, since = oldest
            problem = self._groups[prompt].prompt.problem.get("id")
            verb = "generates" if kind == "generate" else "computes the reward of"
            what = f"{lane} {verb} sample {sample} of prompt {prompt} (problem {problem!r}) since "
            what += f"{self._now() - since:.0f} s"
        for worker in self.workers:
            if worker.broken is not None:
                what += f"; {worker.name} is down: {worker.broken}"
        self.failed(
            UserError(
                f"rollout: nothing happened for {self.patience.silence:g} s; oldest: {what} "
                "(the stacks of all threads are above)"
            )
        )
