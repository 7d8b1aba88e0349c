"""Takes solutions for a judge while there is room, and brings back verdicts as they come."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from functools import partial

from openmimo.judge.judge import Judge
from openmimo.judge.service.metrics import Metrics
from openmimo.judge.service.wire import Solution
from openmimo.judge.verdict import SolutionVerdict
from openmimo.web.errors import RETRY_AFTER, ApiError

News = list[tuple[str, SolutionVerdict]]
"""Solutions that have been judged: the client's name of each, and its verdict."""


class Flight:
    """The solutions of one request.

    over: set once all are judged, also where nobody reads the verdicts any more, or the service
        ends.
    """

    def __init__(self, solutions: int) -> None:
        self._left = self._unjudged = solutions
        self.over = asyncio.Event()
        self._news: asyncio.Queue[tuple[str, SolutionVerdict] | ApiError] = asyncio.Queue()

    async def news(self, seconds: float) -> News | None:
        """What has come since the last call: at least one verdict, unless `seconds` pass.

        None once all have come.

        Raises:
            ApiError: the service ends, and the rest will not come.
        """
        if not self._left:
            return None
        found: News = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                found.append(_verdict(await self._news.get()))
        while not self._news.empty():
            found.append(_verdict(self._news.get_nowait()))
        self._left -= len(found)
        return found

    def judged(self, solutions: int) -> None:
        """So many more need no judge."""
        self._unjudged -= solutions
        if not self._unjudged:
            self.over.set()

    def put(self, news: tuple[str, SolutionVerdict] | ApiError) -> None:
        """A verdict, or why no more will come."""
        self._news.put_nowait(news)


def _verdict(news: tuple[str, SolutionVerdict] | ApiError) -> tuple[str, SolutionVerdict]:
    if isinstance(news, ApiError):
        raise news
    return news


class Desk:
    """Hands solutions to `judge`, at most `most` at a time. Belongs to the running event loop.

    Solutions whose client has left are judged all the same, and take room until they are: their
    client will ask for them again, and others may have asked for the same.
    """

    def __init__(self, judge: Judge, most: int, metrics: Metrics) -> None:
        self._judge, self._most, self._metrics = judge, most, metrics
        self._loop = asyncio.get_running_loop()
        self._flights: set[Flight] = set()  # with a reader
        self._unjudged: set[Flight] = set()
        self.in_flight = 0
        self.draining = False

    def check_open(self, solutions: int) -> None:
        """ApiError if so many more are not taken now, or never."""
        if self.draining:
            raise _ending()
        if solutions > self._most:
            message = f"{solutions} solutions: this service takes {self._most} at once; send fewer"
            raise ApiError(413, message, "solutions", "too_many_solutions")
        if self.in_flight + solutions > self._most:
            message = f"{self.in_flight} of {self._most} solutions wait already; try again later"
            raise ApiError(429, message, code="queue_full", headers=RETRY_AFTER)

    @contextlib.asynccontextmanager
    async def judged(self, solutions: Sequence[Solution]) -> AsyncIterator[Flight]:
        """Submit solutions; left before all have come, the rest has no reader.

        Raises:
            ApiError: there is no room for them.
        """
        self.check_open(len(solutions))
        self.in_flight += len(solutions)
        flight = Flight(len(solutions))
        self._flights.add(flight)
        self._unjudged.add(flight)
        try:
            # In a thread: to hash long tests takes a while, and others wait for this loop.
            await asyncio.to_thread(self._submit, solutions, flight)
            yield flight
        finally:
            self._flights.discard(flight)

    def abandon(self, flight: Flight) -> None:
        """Its reader has left: a stop does not wait for it."""
        self._flights.discard(flight)

    async def drain(self, seconds: float) -> None:
        """Take nothing more, and return once all replies are complete or told that they end.

        seconds: that those which run are given.
        """
        self.draining = True
        deadline = time.monotonic() + seconds
        while self._flights and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        for flight in self._flights:
            flight.put(_ending())
        for flight in self._unjudged:
            flight.over.set()

    def _submit(self, solutions: Sequence[Solution], flight: Flight) -> None:
        submitted = 0
        try:
            for each in solutions:
                settle = partial(self._call, self._settle, flight, each.id, time.monotonic())
                future = self._judge.submit(
                    each.program, each.tests, each.limits, each.order, each.stop_at_failure
                )
                submitted += 1
                future.add_done_callback(settle)
        finally:
            self._call(self._release, flight, len(solutions) - submitted)

    def _call(self, function: object, *arguments: object) -> None:
        """Call a method on the event loop, from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits for it
            self._loop.call_soon_threadsafe(function, *arguments)  # type: ignore[arg-type]

    def _settle(
        self, flight: Flight, id: str, began: float, future: Future[SolutionVerdict]
    ) -> None:
        verdict = future.result()
        self._release(flight, 1)
        self._metrics.judged(verdict, time.monotonic() - began)
        flight.put((id, verdict))

    def _release(self, flight: Flight, solutions: int) -> None:
        self.in_flight -= solutions
        flight.judged(solutions)
        if flight.over.is_set():
            self._unjudged.discard(flight)


def _ending() -> ApiError:
    return ApiError(503, "the service is about to stop", code="draining", headers=RETRY_AFTER)
