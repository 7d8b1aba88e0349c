"""An engine and rewards whose every answer and score is known, for tests of the driver."""

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np

from openmimo.inference.protocol import Completion, Request, RequestId
from openmimo.rewards.verdict import Verdict, right, wrong
from openmimo.rollout.driver import EngineSeat, Patience, RolloutDriver
from openmimo.rollout.policies import Policy
from openmimo.rollout.records import Prompt, Rollout
from openmimo.rollout.scheduler import StepSettings
from openmimo.runs import Interrupt

GROUP = 4


class Counting:
    """An engine whose answers are functions of the prompt and the seed; dies after `life` steps."""

    def __init__(self, life: int | None = None, pause: float = 0.0) -> None:
        self.life, self.pause = life, pause
        self.requests: dict[RequestId, tuple[Request, int]] = {}
        self.started: list[RequestId] = []
        self.busy = threading.Lock()

    def submit(self, requests: list[Request]) -> None:
        with self.alone():
            for request in requests:
                assert request.id not in self.requests
                self.started.append(request.id)
                self.requests[request.id] = request, 1 + (request.seed * 7919) % 23

    def abort(self, ids: list[RequestId]) -> list[Completion]:
        with self.alone():
            for each in ids:
                self.requests.pop(each, None)
            return []

    def step(self) -> list[Completion]:
        with self.alone():
            time.sleep(self.pause)
            if self.life is not None:
                self.life -= 1
                if self.life < 0:
                    raise RuntimeError("out of order")
            left = {each: (r, steps - 1) for each, (r, steps) in self.requests.items()}
            done = [request for request, steps in left.values() if not steps]
            self.requests = {each: pair for each, pair in left.items() if pair[1]}
            return [self.answer(request) for request in done]

    def answer(self, request: Request) -> Completion:
        ids = np.array([request.seed % 5] * (1 + request.seed % 9), np.int32)
        return Completion(request.id, ids, np.zeros(len(ids), np.float32), "stop")

    def alone(self) -> Any:
        assert not self.busy.locked(), "used from two threads at once"
        return self.busy


class Rewards:
    """Scores by the answer; the sample of seed `hung` never gets a verdict."""

    def __init__(self, hung: str | None = None) -> None:
        self.hung = hung
        self.asked: list[str] = []

    def score(self, problem: Mapping[str, Any], response: str) -> Future[Verdict]:
        self.asked.append(response)
        future: Future[Verdict] = Future()
        if response != self.hung:
            verdict = right("") if response.endswith(("0", "1")) else wrong("")
            threading.Timer(0.001, future.set_result, [verdict]).start()
        return future


def request(prompt: Prompt, sample: int, request_id: RequestId) -> Request:
    return Request(request_id, prompt.ids, 64, seed=prompt.sample_seeds[sample])


def decode(ids: Any) -> str:
    return f"{len(ids)} times {ids[0]}"


def prompts() -> Iterator[Prompt]:
    for number in range(10_000):
        alike = number % 5 in (1, 2)  # answers that all pass or all fail: the group is not valid
        seeds = [number * 1009 + sample * (35 if alike else 31) for sample in range(GROUP)]
        yield Prompt({"id": f"p{number}"}, [1], seeds)


SETTINGS = StepSettings(
    prompts_per_step=12, group_size=GROUP, max_running_samples=64, max_prompts=200
)


SHORT = Patience(silence=20, drain=5)


def collect(
    seats: list[EngineSeat],
    rewards: Rewards | None = None,
    patience: Patience = SHORT,
    policy: Policy | None = None,
    lag: int | None = None,
) -> Rollout:
    coming = prompts()
    driver = RolloutDriver(seats, rewards or Rewards(), decode, request, lag, patience)
    with driver:
        rollout = driver.collect(SETTINGS, lambda: next(coming), policy)
    assert rollout is not None
    return rollout


def content(rollout: Rollout) -> list[Any]:
    return [
        (g.prompt.problem["id"], [c.token_ids.tolist() for c in g.completions if c], g.scores)
        for g in rollout.groups
    ]


class Later(Interrupt):
    """Requested after some looks."""

    def __init__(self, looks: int) -> None:
        super().__init__(speaks=False)
        self.looks = looks

    @property
    def requested(self) -> bool:
        self.looks -= 1
        return self.looks < 0

    @requested.setter
    def requested(self, value: bool) -> None:
        pass
