"""Rewards of a step as they are asked for and arrive, each within a deadline."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from itertools import count
from typing import Any, Protocol

from openmimo.rewards.verdict import Verdict, failed
from openmimo.rewards.verdict_cache import verdict_of


class Rewards(Protocol):
    """What scores responses: `openmimo.rewards.pool.RewardPool`, here or elsewhere."""

    def score(self, problem: Mapping[str, Any], response: str) -> Future[Verdict]:
        """The verdict on a response, as it comes."""


class RewardLine:
    """At most `most` rewards are computed at once; the others wait here: those of the lowest
    `order` come first, among equals the one that came first.

    One that is not there within `seconds` of its start is a failed verdict: a slow or dead worker
    costs its own sample and no other one.
    """

    def __init__(self, rewards: Rewards, most: int, seconds: float) -> None:
        self._rewards, self._seconds = rewards, seconds
        self._room = most
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []  # a heap
        self._came = count()

    async def score(
        self,
        problem: Mapping[str, Any],
        response: str,
        order: int = 0,
        began: Callable[[], None] = lambda: None,
    ) -> Verdict:
        """The verdict on a response; `began` is called when its turn has come. Never raises but
        for an error of the caller's."""
        await self._turn(order)
        try:
            began()
            future = self._rewards.score(problem, response)
            waiting = asyncio.wrap_future(future)
            waiting.add_done_callback(_forget)
            done, _ = await asyncio.wait([waiting], timeout=self._seconds)
            if not done:  # it is left alone, as it may be others' too (equal answers)
                return failed(f"no verdict within {self._seconds:g} s")
            return verdict_of(future)
        finally:
            self._next()

    async def _turn(self, order: int) -> None:
        if self._room:
            self._room -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (order, next(self._came), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was this one's turn just now
                self._next()
            raise

    def _next(self) -> None:
        while self._waiting:
            *_, turn = heapq.heappop(self._waiting)
            if not turn.done():  # a cancelled one has left the line
                turn.set_result(None)
                return
        self._room += 1


def _forget(late: asyncio.Future[Verdict]) -> None:
    """Look at a late failure, so that asyncio does not report it."""
    if not late.cancelled():
        late.exception()
