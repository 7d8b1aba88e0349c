"""Rewards of a step as they are asked for and arrive, each within a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Protocol

from openmimo.rewards.verdict import Verdict, failed
from openmimo.rewards.verdict_cache import verdict_of


class Rewards(Protocol):
    """What scores responses: `openmimo.rewards.pool.RewardPool`, here or elsewhere."""

    def score(self, problem: Mapping[str, Any], response: str) -> Future[Verdict]:
        """The verdict on a response, as it comes."""


class RewardLine:
    """At most `most` rewards are computed at once; the others wait here, first come first served.

    One that is not there within `seconds` of its start is a failed verdict: a slow or dead worker
    costs its own sample and no other one.
    """

    def __init__(self, rewards: Rewards, most: int, seconds: float) -> None:
        self._rewards, self._seconds = rewards, seconds
        self._room = asyncio.Semaphore(most)

    async def score(
        self, problem: Mapping[str, Any], response: str, began: Callable[[], None] = lambda: None
    ) -> Verdict:
        """The verdict on a response; `began` is called when its turn has come. Never raises but
        for an error of the caller's."""
        async with self._room:
            began()
            future = self._rewards.score(problem, response)
            waiting = asyncio.wrap_future(future)
            waiting.add_done_callback(_forget)
            done, _ = await asyncio.wait([waiting], timeout=self._seconds)
            if not done:  # it is left alone, as it may be others' too (equal answers)
                return failed(f"no verdict within {self._seconds:g} s")
            return verdict_of(future)


def _forget(late: asyncio.Future[Verdict]) -> None:
    """Look at a late failure, so that asyncio does not report it."""
    if not late.cancelled():
        late.exception()
