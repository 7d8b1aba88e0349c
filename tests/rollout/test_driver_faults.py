"""Engines that die, rewards that hang, steps that stand still: nothing is lost, every step ends."""

import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from openmimo.errors import UserError
from openmimo.inference.protocol import Completion, Request, RequestId
from openmimo.rewards.verdict import Verdict
from openmimo.rollout.background import Background
from openmimo.rollout.driver import EngineSeat, Patience, RolloutDriver
from openmimo.rollout.policies import OneForOne, Ours, Static
from openmimo.rollout.records import Prompt
from openmimo.rollout.validation import answer_all
from openmimo.rollout.validity import every_group

from .fakes import (
    SETTINGS,
    SHORT,
    Counting,
    Later,
    Rewards,
    collect,
    content,
    decode,
    prompts,
    request,
)


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
import fakes as faults
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
