"""One step of a trace on a virtual clock: the real scheduler, simulated engines and rewards."""

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from openmimo.rollout.events import (
    Abort,
    Action,
    Done,
    Generated,
    Launch,
    Lost,
    Score,
    Scored,
    Start,
)
from openmimo.rollout.placement import PLACEMENTS
from openmimo.rollout.policies import Policy
from openmimo.rollout.scheduler import StepScheduler, StepSettings
from openmimo.rollout.simulator.engine import EngineSpeed, SimulatedEngine
from openmimo.rollout.simulator.faults import Faults, NoFaults
from openmimo.rollout.simulator.trace import StepTrace
from openmimo.rollout.timeline import ENGINE, REWARD, Recorder, StepTimeline
from openmimo.rollout.validity import Validity, valid_by_passrate


@dataclass(frozen=True)
class Cluster:
    """Engines, all alike, and what computes rewards: `reward_workers` while answers are generated,
    `serial_rewards` processes after a barrier (each of a policy that has one)."""

    engines: int
    speed: EngineSpeed
    reward_workers: int = 1024
    serial_rewards: int = 16


@dataclass(frozen=True)
class SimulatedStep:
    """What came of a step. `scores`: of each launched prompt that was not stopped."""

    done: Done
    timeline: StepTimeline
    scores: dict[int, list[float | None]]


Happening = Literal["row", "reward", "down", "up"]
Sample = tuple[int, int]


class Simulation:
    """One step. `run` may be called once."""

    def __init__(
        self,
        trace: StepTrace,
        policy: Policy,
        cluster: Cluster,
        validity: Validity = valid_by_passrate,
        faults: Faults | None = None,
    ) -> None:
        """`validity`: which groups count. `faults`: what goes wrong, and when."""
        self._trace, self._policy, self._cluster = trace, policy, cluster
        self._faults = faults or NoFaults()
        slots = [cluster.speed.slots] * cluster.engines
        settings = StepSettings(
            trace.prompts_per_step, trace.group_size, sum(slots), len(trace.prompts), validity,
            max_losses=self._faults.max_losses,
        )  # fmt: skip
        self._scheduler = StepScheduler(
            settings, policy, trace.history, lambda index: trace.prompts[index].prospect
        )
        self._placement = PLACEMENTS[policy.places](slots)
        self._engines = [SimulatedEngine(cluster.speed) for _ in slots]
        self._version = [0] * cluster.engines
        self._changed: set[int] = set()
        self._at: dict[Sample, tuple[int, float]] = {}  # engine and expected tokens of what decodes
        self._by: dict[Sample, int] = {}  # the engine that generated a sample
        self._to_start: deque[Start] = deque()
        barrier = policy.rewards == "barrier"
        workers = cluster.serial_rewards if barrier else cluster.reward_workers
        self._free_workers = list(range(workers))
        self._to_score: list[tuple[int, int, int]] = []  # a heap of samples, first its order
        self._scoring: dict[Sample, int] = {}  # the worker, -1 for an engine's own process
        self._attempts: dict[Sample, int] = {}
        self._aborted: set[int] = set()
        self._queue: list[tuple[float, int, Happening, int, int, int]] = []
        self._serial = 0
        self._done: Done | None = None
        lanes = [f"{ENGINE} {number}" for number in range(cluster.engines)]
        lanes += [f"{REWARD} {number}" for number in range(workers)]
        self._recorder = Recorder(policy.name, lanes)

    def run(self) -> SimulatedStep:
        """The step from its first launch to its `Done`."""
        for time, engine, seconds in self._faults.crashes(self._cluster.engines):
            self._later(time, "down", engine)
            self._later(time + seconds, "up", engine)
        now = 0.0
        self._carry_out(self._scheduler.start(), now)
        while self._done is None:
            now, _, what, a, b, version = heapq.heappop(self._queue)
            self._happen(what, a, b, version, now)
        timeline = self._recorder.finish(self._done, self._aborted, now)
        left = [n for n in range(self._scheduler.launched) if n not in self._aborted]
        scores = {index: self._scheduler.scores(index) for index in left}
        return SimulatedStep(self._done, timeline, scores)

    def _happen(self, what: Happening, a: int, b: int, version: int, now: float) -> None:
        match what:
            case "row":
                if version == self._version[a]:  # else it was computed before a change
                    self._end_row(a, now)
            case "reward":
                if version == self._attempts.get((a, b)):
                    self._end_reward((a, b), now)
            case "down":
                self._crash(a, now)
            case "up":
                self._placement.up(a)
                self._carry_out([], now)

    def _carry_out(self, actions: Iterable[Action], now: float) -> None:
        for action in actions:
            match action:
                case Launch():
                    self._recorder.launch(now)
                case Start():
                    self._to_start.append(action)
                case Score(prompt, sample):
                    self._await_reward(prompt, sample)
                case Abort(prompt):
                    self._abort(prompt, now)
                case Done():
                    self._done = action
        self._start_rows(now)
        self._start_rewards(now)
        for engine in self._changed:
            self._version[engine] += 1
            end = self._engines[engine].next_end()
            if end is not None:
                self._later(end, "row", engine, version=self._version[engine])
        self._changed.clear()

    def _later(self, time: float, what: Happening, a: int, b: int = 0, version: int = 0) -> None:
        self._serial += 1
        heapq.heappush(self._queue, (time, self._serial, what, a, b, version))

    def _start_rows(self, now: float) -> None:
        while self._to_start and self._placement.slots:
            start = self._to_start.popleft()
            prompt, sample = start.prompt_index, start.sample
            if prompt in self._aborted:
                continue
            engine = self._placement.take(start.tokens, prompt)
            self._at[prompt, sample] = (engine, start.tokens)
            tokens = self._trace.prompts[prompt].tokens[sample]
            self._engines[engine].start(prompt, sample, tokens, now)
            self._changed.add(engine)
            self._recorder.begin("generate", prompt, sample, f"{ENGINE} {engine}", now)

    def _end_row(self, engine: int, now: float) -> None:
        prompt, sample = self._engines[engine].finish(now)
        self._changed.add(engine)
        self._leave((prompt, sample))
        self._by[prompt, sample] = engine
        tokens = self._trace.prompts[prompt].tokens[sample]
        self._recorder.end("generate", prompt, sample, now, tokens)
        self._carry_out(self._scheduler.handle(Generated(prompt, sample, tokens)), now)

    def _leave(self, sample: Sample) -> None:
        engine, tokens = self._at.pop(sample)
        self._placement.give_back(engine, tokens)

    def _await_reward(self, prompt: int, sample: int) -> None:
        self._serial += 1
        order = prompt if self._policy.rewards_in_order else self._serial
        heapq.heappush(self._to_score, (order, prompt, sample))

    def _start_rewards(self, now: float) -> None:
        inline = self._policy.rewards == "inline"
        while self._to_score and (inline or self._free_workers):
            _, prompt, sample = heapq.heappop(self._to_score)
            if prompt in self._aborted:
                continue
            attempt = self._attempts.get((prompt, sample), 0) + 1
            self._attempts[prompt, sample] = attempt
            seconds = self._trace.prompts[prompt].reward_seconds[sample]
            seconds = self._faults.reward_seconds(prompt, sample, attempt, seconds)
            if inline:
                engine = self._by[prompt, sample]
                end = self._engines[engine].pause(now, seconds)
                self._changed.add(engine)
                worker, lane = -1, f"{ENGINE} {engine}"
            else:
                worker = heapq.heappop(self._free_workers)
                end, lane = now + seconds, f"{REWARD} {worker}"
            self._scoring[prompt, sample] = worker
            self._recorder.begin("reward", prompt, sample, lane, end - seconds)
            self._later(end, "reward", prompt, sample, attempt)

    def _end_reward(self, key: Sample, now: float) -> None:
        self._free(key)
        prompt, sample = key
        outcome = self._faults.reward_outcome(prompt, sample, self._attempts[key])
        self._recorder.end("reward", prompt, sample, now, lost=outcome == "again")
        if outcome == "again":
            self._await_reward(prompt, sample)
            self._carry_out([], now)
        else:
            score = self._trace.prompts[prompt].scores[sample] if outcome == "score" else None
            self._carry_out(self._scheduler.handle(Scored(prompt, sample, score)), now)

    def _free(self, key: Sample) -> None:
        worker = self._scoring.pop(key)
        if worker >= 0:
            heapq.heappush(self._free_workers, worker)

    def _abort(self, prompt: int, now: float) -> None:
        self._aborted.add(prompt)
        for sample in range(self._trace.group_size):
            key = (prompt, sample)
            if key in self._at:
                self._stop(key, now)
            if key in self._scoring:
                self._free(key)
                self._attempts[key] = 0  # its end is not awaited any more
        self._recorder.abort(prompt, now)

    def _stop(self, key: Sample, now: float) -> None:
        engine, _ = self._at[key]
        tokens = self._engines[engine].stop(*key, now)
        self._changed.add(engine)
        self._leave(key)
        self._recorder.end("generate", *key, now, tokens)

    def _crash(self, engine: int, now: float) -> None:
        rows = self._engines[engine].rows
        self._placement.down(engine)
        for prompt, sample in rows:
            tokens = self._engines[engine].stop(prompt, sample, now)
            self._leave((prompt, sample))
            self._recorder.end("generate", prompt, sample, now, tokens, lost=True)
        self._engines[engine] = SimulatedEngine(self._cluster.speed, now)
        self._version[engine] += 1
        for prompt, sample in rows:
            self._carry_out(self._scheduler.handle(Lost(prompt, sample)), now)


def simulate(
    trace: StepTrace,
    policy: Policy,
    cluster: Cluster,
    validity: Validity = valid_by_passrate,
    faults: Faults | None = None,
) -> SimulatedStep:
    """One step of `trace` on `cluster`, run by `policy`."""
    return Simulation(trace, policy, cluster, validity, faults).run()
