"""Engines that get new weights, die between steps, or take longer to come back than a step."""

import threading
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from openmimo.errors import UserError
from openmimo.inference.protocol import Request
from openmimo.rollout.driver import EngineSeat, Patience, RolloutDriver
from openmimo.rollout.records import Rollout

from .fakes import SETTINGS, SHORT, Counting, Rewards, decode, prompts, request


class Learning(Counting):
    """Its answers depend on its weights too; `deaf`: an update fails."""

    def __init__(self, life: int | None = None, deaf: bool = False) -> None:
        super().__init__(life)
        self.deaf, self.weights = deaf, 10**6

    def update_weights(self, weights: Mapping[str, Tensor]) -> None:
        with self.alone():
            if self.deaf:
                raise RuntimeError("cannot hear")
            self.weights = int(weights["w"])

    def answer(self, request: Request) -> Any:
        seed = request.seed + 7 * self.weights
        return super().answer(Request(request.id, request.prompt_ids, 64, seed=seed))


def weights(value: int) -> dict[str, Tensor]:
    return {"w": torch.tensor(value)}


def collect(driver: RolloutDriver) -> Rollout:
    coming = prompts()
    rollout = driver.collect(SETTINGS, lambda: next(coming))
    assert rollout is not None
    return rollout


def content(rollout: Rollout) -> list[Any]:
    return [[c.token_ids.tolist() for c in group.completions if c] for group in rollout.groups]


def driver_of(*seats: EngineSeat) -> RolloutDriver:
    return RolloutDriver(seats, Rewards(), decode, request, patience=SHORT)


@pytest.fixture(scope="module")
def expected() -> list[Any]:
    """By weights 0, 1, 2."""
    batches = []
    with driver_of(EngineSeat(Learning(), 64)) as driver:
        for value in range(3):
            driver.update_weights(weights(value))
            batches.append(content(collect(driver)))
    assert batches[0] != batches[1] != batches[2]
    return batches


@pytest.mark.parametrize("life", [1, 4, 15, 33])
def test_an_engine_that_is_started_again_has_the_newest_weights(
    expected: list[Any], life: int
) -> None:
    made = []

    def restart() -> Learning:
        # Longer and longer: a sample that is lost again and again is given up.
        made.append(Learning(life + 24 * len(made)))
        return made[-1]

    seats = EngineSeat(Learning(life), 30, restart), EngineSeat(Learning(), 30)
    with driver_of(*seats) as driver:
        for value in range(3):
            driver.update_weights(weights(value))
            assert content(collect(driver)) == expected[value]
    assert made


def test_an_engine_that_takes_no_weights_is_replaced_in_the_next_step(expected: list[Any]) -> None:
    deaf, other = Learning(deaf=True), Learning()
    with driver_of(EngineSeat(deaf, 64, lambda: other)) as driver:
        driver.update_weights(weights(1))
        assert content(collect(driver)) == expected[1]
        assert driver.engines == [other]
        driver.update_weights(weights(2))
        assert content(collect(driver)) == expected[2]
    assert not deaf.started, "it had the old weights"
    with (
        driver_of(EngineSeat(Learning(deaf=True), 64)) as driver,
        pytest.raises(RuntimeError, match="cannot hear"),
    ):
        driver.update_weights(weights(1))


def test_weights_that_no_engine_takes_are_an_error() -> None:
    seat = EngineSeat(Learning(deaf=True), 64, lambda: Learning(deaf=True))
    with driver_of(seat) as driver:
        driver.update_weights(weights(1))
        with pytest.raises(UserError, match="none is left: cannot hear"):
            collect(driver)


def test_a_step_does_not_wait_for_an_engine_that_is_being_made(expected: list[Any]) -> None:
    """It comes back in a later step, with the weights of that one."""
    ready, made = threading.Event(), []

    def restart() -> Learning:
        assert ready.wait(20)
        made.append(Learning())
        return made[-1]

    seats = EngineSeat(Learning(life=3), 30, restart), EngineSeat(Learning(), 30)
    with driver_of(*seats) as driver:
        for value in range(2):
            driver.update_weights(weights(value))
            assert content(collect(driver)) == expected[value]
        ready.set()
        driver._workers[0]._replacement.result(20)  # type: ignore[union-attr]
        driver.update_weights(weights(2))
        assert content(collect(driver)) == expected[2]
        assert len(made) == 1
        assert made[0].weights == 2
        assert made[0].started


def test_a_step_does_not_wait_for_the_weights_of_a_new_engine(expected: list[Any]) -> None:
    heard = threading.Event()

    class Slow(Learning):
        def update_weights(self, weights: Mapping[str, Tensor]) -> None:
            assert heard.wait(20)
            super().update_weights(weights)

    made: list[Learning] = []

    def restart() -> Learning:
        made.append(Learning() if made else Slow())
        return made[-1]

    seats = EngineSeat(Learning(life=3), 30, restart), EngineSeat(Learning(), 30)
    impatient = Patience(silence=20, drain=0.5)
    with RolloutDriver(seats, Rewards(), decode, request, patience=impatient) as driver:
        driver.update_weights(weights(0))
        assert content(collect(driver)) == expected[0]
        heard.set()
        driver.update_weights(weights(1))
        assert content(collect(driver)) == expected[1]


def test_an_engine_that_is_dead_for_good_gets_nothing_more(expected: list[Any]) -> None:
    dead, alive = Learning(life=3), Learning()
    with driver_of(EngineSeat(dead, 30), EngineSeat(alive, 30)) as driver:
        for value in range(2):
            driver.update_weights(weights(value))
            rollout = collect(driver)
            assert content(rollout) == expected[value]
            assert bool(rollout.done.stats.lost) == (value == 0)
        assert dead.weights == 0
