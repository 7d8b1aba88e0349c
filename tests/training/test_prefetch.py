import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openmimo.config.schema import Recipe
from openmimo.data.shards import Corpus
from openmimo.errors import UserError
from openmimo.runs import Run
from openmimo.training.batch import Segment, batch_rows
from openmimo.training.prefetch import AHEAD, Prefetched
from openmimo.training.pretrain import PretrainSource
from openmimo.training.schedule import Schedule
from openmimo.training.source import Step
from openmimo.training.stream import PackedStream

SOON = 5.0
"""Seconds that nothing here should take."""


class Counting:
    """Steps whose tokens are their number; `before` is called in the making thread."""

    def __init__(self, total: int, before: Callable[[int], None] = lambda index: None) -> None:
        self.total_steps = total
        self._before = before
        self.made: list[int] = []
        self._state: dict[str, Any] = {"next": [0]}

    def step(self, index: int) -> Step:
        self._before(index)
        assert index == self._state["next"][0]
        self._state["next"][0] += 1  # in place, as a source may
        self.made.append(index)
        batch = batch_rows([[Segment(np.array([index, index]))]], 2, 0)
        return Step("s", batch, rows=1, learning_rate=0.1, mtp_weight=0.3, rope_base=1e4)

    def state(self) -> dict[str, Any]:
        return self._state

    def restore(self, state: dict[str, Any]) -> None:
        self._state = state


def number(step: Step) -> int:
    return int(step.batch.ids[0, 0])


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@given(total=st.integers(1, 8), first=st.integers(0, 7), stop=st.integers(0, 8))
def test_order_and_states_are_those_of_the_source(total: int, first: int, stop: int) -> None:
    with Prefetched(Counting(total), SOON) as source:
        source.restore({"next": [first]})
        for index in range(first, min(stop, total)):
            assert number(source.step(index)) == index
            assert source.state() == {"next": [index + 1]}


def test_it_reads_ahead_but_no_further() -> None:
    inner = Counting(20)
    with Prefetched(inner, SOON) as source:
        source.step(0)
        wait_for(lambda: len(inner.made) == 1 + AHEAD)
        time.sleep(0.05)
        assert inner.made == [*range(1 + AHEAD)]
        assert source.state() == {"next": [1]}
    assert len(inner.made) <= 2 + AHEAD


def test_an_error_comes_with_its_own_step() -> None:
    def fail(index: int) -> None:
        if index == 2:
            raise UserError("shard 2 is damaged")

    with Prefetched(Counting(5, fail), SOON) as source:
        assert [number(source.step(index)) for index in (0, 1)] == [0, 1]
        assert source.state() == {"next": [2]}
        with pytest.raises(UserError, match="shard 2 is damaged"):
            source.step(2)


def test_a_source_that_hangs_is_named_after_the_deadline() -> None:
    hang = threading.Event()
    with Prefetched(Counting(5, lambda index: bool(hang.wait(SOON))), 0.1) as source:
        began = time.monotonic()
        with pytest.raises(UserError, match=r"no data for step 1 in 0\.1 s"):
            source.step(0)
        assert 0.1 <= time.monotonic() - began < SOON
        hang.set()


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_no_thread_survives_an_interrupt(taken: int) -> None:
    def interrupted() -> None:
        with Prefetched(Counting(5), SOON) as source:
            for index in range(taken):
                source.step(index)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()


def test_a_step_out_of_order_is_refused() -> None:
    with Prefetched(Counting(5), SOON) as source:
        source.step(0)
        with pytest.raises(ValueError, match="step 3 was asked for"):
            source.step(3)
        with pytest.raises(RuntimeError):
            source.restore({"next": [0]})


def test_pretraining_reads_the_same_with_it(make_run: Callable[[str], Run], recipe: Recipe) -> None:
    """Rows and states of the real stream, over two stages, continued from every state."""
    shards = make_run("run").dir / "stages" / "data" / "shards"

    def fresh() -> PretrainSource:
        corpus = Corpus(shards, ["general", "math", "synthetic"], seed=0)
        return PretrainSource(Schedule(recipe.pretrain.schedule), PackedStream(corpus), 0)

    plain = fresh()
    expected = []
    for index in range(plain.total_steps):
        batch = plain.step(index).batch
        expected.append((batch.ids, batch.positions, repr(plain.state())))
    for start in range(plain.total_steps):
        with Prefetched(fresh(), SOON) as first, Prefetched(fresh(), SOON) as second:
            for index in range(start):
                first.step(index)
            if start:
                second.restore(first.state())
            for index in range(start, plain.total_steps):
                batch = second.step(index).batch
                assert torch.equal(batch.ids, expected[index][0])
                assert torch.equal(batch.positions, expected[index][1])
                assert repr(second.state()) == expected[index][2]
