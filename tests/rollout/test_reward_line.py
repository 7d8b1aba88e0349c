"""Rewards that wait for their turn."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from openmimo.rewards.verdict import Verdict, failed
from openmimo.rollout.reward_line import RewardLine


class ByHand:
    """Rewards that arrive when the test says so."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.open: dict[str, Future[Verdict]] = {}

    def score(self, problem: Mapping[str, Any], response: str) -> Future[Verdict]:
        self.begun.append(response)
        self.open[response] = Future()
        return self.open[response]

    def finish(self, response: str) -> None:
        self.open.pop(response).set_result(failed("as told"))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_the_lowest_order_comes_first_then_the_first() -> None:
    async def run() -> list[str]:
        rewards = ByHand()
        line = RewardLine(rewards, 1, seconds=60)
        orders = [5, 3, 9, 3]
        tasks = [asyncio.create_task(line.score({}, f"{n}", o)) for n, o in enumerate(orders)]
        await settle()
        while rewards.open:
            rewards.finish(next(iter(rewards.open)))
            await settle()
        await asyncio.gather(*tasks)
        return rewards.begun

    assert asyncio.run(run()) == ["0", "1", "3", "2"]


@given(
    st.lists(
        st.tuples(st.integers(0, 11), st.integers(0, 8)), max_size=12, unique_by=lambda x: x[0]
    ),
    st.integers(1, 3),
)
def test_one_that_gives_up_takes_no_turn_along(cancelled: list[tuple[int, int]], most: int) -> None:
    """Each is cancelled so many turns of the event loop after another one's reward came."""

    async def run() -> None:
        rewards = ByHand()
        line = RewardLine(rewards, most, seconds=60)
        tasks = [asyncio.create_task(line.score({}, f"{n}", n % 3)) for n in range(12)]
        await settle()
        for number, turns in cancelled:
            if rewards.open:
                rewards.finish(next(iter(rewards.open)))
            for _ in range(turns):
                await asyncio.sleep(0)
            tasks[number].cancel()
        await settle()
        while rewards.open:
            assert sum(not tasks[int(name)].done() for name in rewards.open) <= most
            rewards.finish(next(iter(rewards.open)))
            await settle()
        ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 2)
        gave_up = {number for number, _ in cancelled}
        assert all(isinstance(ended[n], Verdict) for n in range(12) if n not in gave_up)

    asyncio.run(run())
