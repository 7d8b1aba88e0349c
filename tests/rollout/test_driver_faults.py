"""Engines that die, rewards that hang, steps that stand still: nothing is lost, every step ends."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openmimo.errors import UserError
from openmimo.inference.protocol import Completion, Request, RequestId
from openmimo.rewards.verdict import Verdict, right, wrong
from openmimo.rollout.background import Background
from openmimo.rollout.driver import EngineSeat, Patience, RolloutDriver
from openmimo.rollout.policies import OneForOne, Ours, Policy, Static
from openmimo.rollout.records import Prompt, Rollout
from openmimo.rollout.scheduler import StepSettings
from openmimo.rollout.validation import answer_all
from openmimo.rollout.validity import every_group
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


@pytest.fixture(scope="module")
def expected() -> list[Any]:
    rollout = collect([EngineSeat(Counting(), 64)])
    assert len(rollout.batch) == 12
    assert len(rollout.groups) > 16, "too few groups are not valid"
    return content(rollout)


def test_several_engines_share_the_samples(expected: list[Any]) -> None:
    engines = [Counting() for _ in range(3)]
    rollout = collect([EngineSeat(engine, 20) for engine in engines])
    assert content(rollout) == expected
    counts = [len(engine.started) for engine in engines]
    assert min(counts) > max(counts) / 3
    assert not any(engine.requests for engine in engines), "an engine was left with requests"


@pytest.mark.parametrize("life", [0, 1, 5, 12])
def test_what_a_dead_engine_had_is_done_by_the_others(expected: list[Any], life: int) -> None:
    seats = [EngineSeat(Counting(life), 30), EngineSeat(Counting(), 30)]
    rollout = collect(seats)
    assert content(rollout) == expected
    assert rollout.done.stats.lost > 0
    lost = [span for span in rollout.timeline.spans if span.outcome == "lost"]
    assert {span.lane for span in lost} == {"engine 0"}
    assert len(lost) == rollout.done.stats.lost


def test_an_engine_is_started_again(expected: list[Any]) -> None:
    made: list[Counting] = []

    def restart() -> Counting:
        made.append(Counting(life=6 if len(made) < 2 else None))
        return made[-1]

    seat = EngineSeat(Counting(life=3), 64, restart)
    rollout = collect([seat])
    assert content(rollout) == expected
    assert len(made) == 3


def test_a_restart_that_fails_is_tried_again(expected: list[Any]) -> None:
    tries = []

    def restart() -> Counting:
        tries.append(None)
        if len(tries) < 3:
            raise OSError("no memory")
        return Counting()

    assert content(collect([EngineSeat(Counting(life=3), 64, restart)])) == expected


def test_without_any_engine_the_step_fails_with_the_reason() -> None:
    with pytest.raises(UserError, match="none is left: out of order"):
        collect([EngineSeat(Counting(life=3), 64), EngineSeat(Counting(life=5), 64)])


def test_a_reward_that_hangs_costs_its_own_sample(expected: list[Any]) -> None:
    hung = decode(collect([EngineSeat(Counting(), 64)]).groups[2].completions[1].token_ids)  # type: ignore[union-attr]
    rollout = collect([EngineSeat(Counting(), 64)], Rewards(hung), Patience(reward=0.3, silence=20))
    for group, before in zip(rollout.groups, expected, strict=False):
        for completion, result, score in zip(
            group.completions, group.results, before[2], strict=True
        ):
            assert completion is not None
            assert result is not None
            is_hung = decode(completion.token_ids) == hung
            assert result.score == (None if is_hung else score)
            assert ("no verdict within" in result.detail) == is_hung
    assert len(rollout.batch) == 12


def test_a_step_that_stands_still_says_what_it_waits_for(capfd: pytest.CaptureFixture[str]) -> None:
    patience = Patience(silence=0.8, drain=5)
    with pytest.raises(
        UserError, match=r"oldest: engine 0 generates sample \d of prompt \d+ \(pro"
    ):
        collect([EngineSeat(Stuck(), 64)], patience=patience)
    assert "most recent call first" in capfd.readouterr().err


def test_an_engine_that_does_not_stop_is_named() -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=r"engine 0 did not stop within 0\.5 s"):
        collect([EngineSeat(Counting(pause=6), 64)], patience=Patience(silence=0.5, drain=0.5))
    assert time.monotonic() - began < 5


class Stuck(Counting):
    """Goes on for ever without an answer, in steps that take long."""

    def step(self) -> list[Completion]:
        time.sleep(1.5)
        return []


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


@pytest.mark.parametrize("looks", [0, 3, 9])
@pytest.mark.parametrize("lag", [None, 3])
def test_an_interrupt_scores_what_is_generated_and_nothing_more(
    looks: int, lag: int | None
) -> None:
    engine, rewards, heard = Counting(), Rewards(), []
    coming = [prompt for prompt, _ in zip(prompts(), range(30), strict=False)]
    with RolloutDriver([EngineSeat(engine, 10)], rewards, decode, request, lag) as driver:
        args = (coming, lambda *sample: heard.append(sample), Later(looks))
        assert answer_all(driver, *args) is None
        assert len(heard) == len(rewards.asked) < 120
        assert not engine.requests
        whole: list[Any] = []
        assert answer_all(driver, coming, lambda *sample: whole.append(sample)) is not None
        assert len(whole) == 120


@pytest.mark.parametrize("life", [None, 4, 25])
@pytest.mark.parametrize("slots", [6, 24, 300])
def test_background_fills_free_slots_and_changes_nothing(
    expected: list[Any], slots: int, life: int | None
) -> None:
    """Also with few slots, where it has to give way, and with an engine that dies."""
    engines, coming, heard = [Counting(life), Counting()], prompts(), []
    fillers = [prompt for prompt, _ in zip(prompts(), range(40), strict=False)]
    background = Background(fillers, request, decode, lambda *sample: heard.append(sample))
    seats = [EngineSeat(engine, slots // 2) for engine in engines]
    settings = replace(SETTINGS, max_running_samples=slots)
    with RolloutDriver(seats, Rewards(), decode, request, patience=SHORT) as driver:
        rollout = driver.collect(settings, lambda: next(coming), background=background)
    assert rollout is not None
    assert content(rollout) == expected
    assert background.complete
    verdicts = {(p.problem["id"], sample): (c, v) for p, sample, c, v in heard}
    assert len(heard) == len(verdicts) == 160
    for group in rollout.groups[:40]:
        for sample, mine in enumerate(group.completions):
            completion, verdict = verdicts[group.prompt.problem["id"], sample]
            assert verdict.score == group.scores[sample]
            assert mine is not None
            assert completion.token_ids.tolist() == mine.token_ids.tolist()
    assert not engines[1].requests


def test_background_never_takes_a_slot_that_a_sample_waits_for() -> None:
    """Not even for a moment, when several samples end in one step."""
    engine, settings = Counting(), replace(SETTINGS, max_running_samples=16, validity=every_group)
    fillers = [prompt for prompt, _ in zip(prompts(), range(5), strict=False)]
    coming = prompts()
    with RolloutDriver([EngineSeat(engine, 16)], Rewards(), decode, request) as driver:
        background = Background(fillers, request, decode)
        assert driver.collect(settings, lambda: next(coming), Static(), background=background)
    kinds = [str(each).startswith("background") for each in engine.started]
    assert kinds == [False] * 48 + [True] * 20


def test_background_gives_way_to_the_step() -> None:
    """One slot: the step's samples all start before any of the background's but the first."""
    engine = Counting()
    settings = replace(SETTINGS, prompts_per_step=2, max_running_samples=1)
    fillers = [prompt for prompt, _ in zip(prompts(), range(5), strict=False)]
    coming = prompts()
    with RolloutDriver([EngineSeat(engine, 1)], Rewards(), decode, request) as driver:
        background = Background(fillers, request, decode)
        assert driver.collect(settings, lambda: next(coming), background=background)
    kinds = [
        "background" if str(each).startswith("background") else "step" for each in engine.started
    ]
    assert kinds.count("background") >= 20
    assert kinds[: kinds.index("background")].count("step") >= 8
    tail = kinds[len(kinds) - kinds[::-1].index("step") :]
    assert tail.count("background") >= 16


def test_an_error_of_the_caller_comes_out_as_it_is() -> None:
    def draw() -> Prompt:
        raise KeyError("no such problem")

    with (
        RolloutDriver([EngineSeat(Counting(), 8)], Rewards(), decode, request) as driver,
        pytest.raises(KeyError, match="no such problem"),
    ):
        driver.collect(SETTINGS, draw)


@pytest.mark.parametrize("lag", [None, 3])
@pytest.mark.parametrize("beside", [False, True])
def test_an_error_in_on_sample_ends_the_step(lag: int | None, beside: bool) -> None:
    """The event loop would log it, and the step stand still until its deadline."""

    def full(*_: Any) -> None:
        raise OSError("disk full")

    coming = prompts()
    fillers = [prompt for prompt, _ in zip(prompts(), range(3), strict=False)]
    background = Background(fillers, request, decode, full) if beside else None
    options: dict[str, Any] = {"background": background} if beside else {"on_sample": full}
    with (
        RolloutDriver(
            [EngineSeat(Counting(), 64)], Rewards(), decode, request, lag, SHORT
        ) as driver,
        pytest.raises(OSError, match="disk full"),
    ):
        driver.collect(SETTINGS, lambda: next(coming), **options)


def test_an_error_in_a_request_to_a_new_engine_ends_the_step() -> None:
    made: list[Counting] = []

    def restart() -> Counting:
        made.append(Counting())
        return made[-1]

    def faulty(prompt: Prompt, sample: int, request_id: RequestId) -> Request:
        if made:
            raise KeyError("no such prompt")
        return request(prompt, sample, request_id)

    coming = prompts()
    seats = [EngineSeat(Counting(life=3), 64, restart)]
    with (
        RolloutDriver(seats, Rewards(), decode, faulty, patience=SHORT) as driver,
        pytest.raises(KeyError, match="no such prompt"),
    ):
        driver.collect(SETTINGS, lambda: next(coming))


def test_a_step_without_engines_says_why_they_are_down() -> None:
    over = threading.Event()

    def restart() -> Counting:
        over.wait(20)
        return Counting()

    patience = Patience(silence=0.5, drain=5)
    try:
        with pytest.raises(UserError, match="nothing was running; engine 0 is down: out of order"):
            collect([EngineSeat(Counting(life=3), 64, restart)], patience=patience)
    finally:
        over.set()


def test_an_interrupt_does_not_wait_for_rewards_that_nobody_needs() -> None:
    """A reward of an aborted prompt that is not due yet is no reason to go on."""
    settings = replace(SETTINGS, prompts_per_step=2, max_running_samples=300)
    ended = []
    for looks in (5, 11, 17, 23):
        draw = partial(next, prompts())
        seats = [EngineSeat(Counting(), 300)]
        with RolloutDriver(seats, Rewards(), decode, request, 12, SHORT) as driver:
            policy, interrupt = Ours(confidence=1 - 1e-9), Later(looks)
            ended.append(driver.collect(settings, draw, policy, interrupt=interrupt))
    assert ended[0] is None


class AtOnce(Counting):
    """Ends all samples in one step, the last ones first."""

    def step(self) -> list[Completion]:
        done = [self.answer(request) for request, _ in self.requests.values()]
        self.requests.clear()
        return done[::-1]


class Named(Rewards):
    def score(self, problem: Mapping[str, Any], response: str) -> Future[Verdict]:
        future = super().score(problem, response)
        self.asked[-1] = problem["id"]
        return future


def test_rewards_that_wait_are_computed_in_stream_order() -> None:
    rewards, settings = Named(), replace(SETTINGS, validity=every_group)
    coming, patience = prompts(), Patience(silence=20, rewards=1)
    with RolloutDriver(
        [EngineSeat(AtOnce(), 64)], rewards, decode, request, patience=patience
    ) as driver:
        assert driver.collect(settings, lambda: next(coming), Static(rewards_in_order=True))
    order = [int(name[1:]) for name in rewards.asked]
    assert order[0] == 11  # had its turn before the others came
    assert order[1:] == sorted(order[1:])


class Clocked(Counting):
    """Knows the steps in which samples ended and new ones came, until it is idle."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.ends, self.starts = 0, set[int](), set[int]()
        self.idle = False

    def submit(self, requests: list[Request]) -> None:
        self.idle = self.idle or (self.steps > 0 and not self.requests)
        if not self.idle:
            self.starts.add(self.steps)
        super().submit(requests)

    def step(self) -> list[Completion]:
        self.steps += 1
        done = super().step()
        if done:
            self.ends.add(self.steps)
        return done


def test_with_a_lag_scores_are_used_so_many_steps_after_the_samples() -> None:
    engine, coming = Clocked(), prompts()
    settings = replace(SETTINGS, prompts_per_step=60, max_running_samples=999)
    with RolloutDriver([EngineSeat(engine, 999)], Rewards(), decode, request, 2) as driver:
        assert driver.collect(settings, lambda: next(coming), OneForOne())
    assert len(engine.starts) > 2
    assert engine.starts - {0} <= {end + 2 for end in engine.ends}
    assert not engine.starts - {0} <= engine.ends, "each step ends some sample: nothing was tested"


def test_launching_early_and_late_rewards_change_nothing(expected: list[Any]) -> None:
    for lag, confidence in ((0, 0.1), (7, 0.5), (None, 0.999)):
        policy = Ours(confidence=confidence)
        assert content(collect([EngineSeat(Counting(), 64)], policy=policy, lag=lag)) == expected


_HUNG = """
import sys, time
sys.path.insert(0, sys.argv[1])
import test_driver_faults as faults
from openmimo.rollout.driver import EngineSeat, Patience

class Hung(faults.Counting):
    def step(self):
        time.sleep(300)

faults.collect([EngineSeat(Hung(), 8)], patience=Patience(silence=0.5, drain=0.5))
"""


def test_a_process_ends_though_an_engine_hangs() -> None:
    folder = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", _HUNG, folder], capture_output=True, text=True, timeout=60
    )
    assert "engine 0 did not stop within 0.5 s" in done.stderr
