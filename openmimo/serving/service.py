"""One thread owns the engine; the event loop hands it requests and takes what they generate.

Nothing here waits for a client: the thread reads a request's new tokens from the engine only when
the event loop has asked for them, so a slow reader costs neither time nor memory beyond what the
engine holds anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from openmimo.errors import UserError
from openmimo.inference.protocol import (
    Completion,
    EngineStats,
    FinishReason,
    InferenceEngine,
    Request,
    RequestId,
    Tokens,
)

SECONDS_PER_PIECE = 0.001
"""Pieces of all requests together are read at most this often, so that streaming many answers
does not slow their generation: what comes in between travels together."""

STATS_SECONDS = 0.2
"""Between two snapshots of the engine's counters."""

RATE_SECONDS = 5.0
"""Over which tokens a second are averaged."""


class QueueFullError(Exception):
    """More requests wait than the service allows."""


class DrainingError(Exception):
    """The service is about to stop."""


class EngineDiedError(Exception):
    """The engine raised an exception; nothing can be generated any more."""


@dataclass(frozen=True, eq=False)
class News:
    """What one request of a flight has gained.

    index: of the request in the flight.
    tokens: those after the ones of earlier news.
    finish_reason: None while it goes on.
    prompt, cached_tokens, error: those of `Completion`, with the last news.
    """

    index: int
    tokens: Tokens
    finish_reason: FinishReason | None = None
    prompt: Tokens | None = None
    cached_tokens: int = 0
    error: str | None = None


class Flight:
    """Requests submitted together, as the event loop sees them (`EngineService.submit`).

    Args:
        ids: the engine's, in the order of the requests.
        pieces: deliver tokens as they come; else only when a request has ended.
        deadline: in the event loop's time.
        abort: ends requests by their ids.
    """

    def __init__(
        self,
        ids: Sequence[RequestId],
        pieces: bool,
        deadline: float,
        abort: Callable[[list[RequestId]], None],
    ) -> None:
        self.ids = ids
        self.open = set(range(len(ids)))
        self.wanted = False
        """Set here to ask for pieces, cleared by the engine's thread when it sends some."""
        self._pieces, self._deadline = pieces, deadline
        self._abort = abort
        self._news: list[News] = []
        self._arrived = asyncio.Event()
        self._error: Exception | None = None

    async def news(self) -> list[News]:
        """Wait for what the requests have gained; empty once all have ended.

        Raises:
            EngineDiedError, DrainingError: the rest will never come.
            UserError: the engine refused the requests, or gave one up.
            TimeoutError: the deadline has passed.
        """
        if not self._news and not self.open and not self._error:
            return []
        self.wanted = self._pieces
        async with asyncio.timeout_at(self._deadline):
            await self._arrived.wait()
        self._arrived.clear()
        if self._error:
            raise self._error
        news, self._news = self._news, []
        return news

    def abort(self, index: int) -> None:
        """End one request; its last news still comes."""
        self._abort([self.ids[index]])

    def add(self, news: News) -> None:
        """Called with what the engine's thread sends."""
        if news.finish_reason:
            self.open.discard(news.index)
        if news.error:
            self._error = UserError(news.error)
        self._news.append(news)
        self._arrived.set()

    def fail(self, error: Exception) -> None:
        """Make `news` raise."""
        self._error = error
        self._arrived.set()


@dataclass(eq=False)
class _Row:
    """A request in the engine; only the engine's thread touches it."""

    flight: Flight
    index: int
    sent: int = 0
    """Tokens that are in earlier news."""


class EngineService:
    """Runs `engine` in a thread of its own. All public members belong to the event loop.

    Args:
        engine: nothing else may use it from now on.
        slots: requests that the engine runs at once.
        max_queue: requests that may wait beside them.
    """

    def __init__(self, engine: InferenceEngine, slots: int, max_queue: int) -> None:
        self.capacity = slots + max_queue
        self.in_flight = 0
        self.draining = False
        self.died = asyncio.Event()
        self.error: BaseException | None = None
        self.stats: EngineStats = engine.stats()
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._flights: set[Flight] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._next_id = 0
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        # From here on: the thread's own.
        self._rows: dict[RequestId, _Row] = {}
        self._running = True
        self._next_pieces = 0.0
        self._counted: deque[tuple[float, int]] = deque(maxlen=int(RATE_SECONDS / STATS_SECONDS))
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def submit(self, requests: Sequence[Request], pieces: bool, seconds: float) -> Iterator[Flight]:
        """Queue requests (their ids are replaced); what has not ended on leaving is aborted.

        Args:
            requests: continued side by side.
            pieces: deliver tokens as they come; else only when a request has ended.
            seconds: for all of it, the wait for a slot included.

        Raises:
            QueueFullError, DrainingError, EngineDiedError: nothing was queued.
        """
        self.check_open(len(requests))
        ids = range(self._next_id, self._next_id + len(requests))
        self._next_id += len(requests)
        self.in_flight += len(requests)
        self._idle.clear()
        flight = Flight(ids, pieces, self._loop.time() + seconds, self._abort)
        self._flights.add(flight)
        numbered = [replace(r, id=number) for r, number in zip(requests, ids, strict=True)]
        self._commands.put(partial(self._start, flight, numbered))
        try:
            yield flight
        finally:
            self._flights.discard(flight)
            if flight.open:
                self._abort([ids[index] for index in flight.open])

    def check_open(self, count: int) -> None:
        """Raise what `submit` of so many requests would."""
        if self.error is not None:
            raise self._death()
        if self.draining:
            raise DrainingError("the server is stopping and takes no new requests")
        if self.in_flight + count > self.capacity:
            raise QueueFullError(
                f"{self.in_flight} requests run or wait and {count} more would exceed the "
                f"{self.capacity} that the server holds; try again later"
            )

    @property
    def tokens_per_second(self) -> float:
        """Of all requests together over the last RATE_SECONDS; 0 if nothing ran in them."""
        now = time.monotonic()
        counted = [(then, n) for then, n in list(self._counted) if now - then < RATE_SECONDS]
        if len(counted) < 2:
            return 0.0
        return (counted[-1][1] - counted[0][1]) / (now - counted[0][0])

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, give the others so long to end, then abort them."""
        self.draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        self._fail_open(DrainingError("the server was stopped before the answer was complete"))

    def stop(self, seconds: float) -> None:
        """End the thread after the step it is in; give up on it after so long."""
        self._commands.put(self._end)
        self._thread.join(seconds)

    def _abort(self, ids: list[RequestId]) -> None:
        self._commands.put(lambda: self._publish(self._engine.abort(ids)))

    def _deliver(self, deliveries: Iterable[tuple[Flight, News]]) -> None:
        for flight, news in deliveries:
            flight.add(news)
            if news.finish_reason:
                self._ended(1)

    def _refuse(self, flight: Flight, error: UserError) -> None:
        self._ended(len(flight.open))
        flight.open.clear()
        flight.fail(error)

    def _ended(self, count: int) -> None:
        self.in_flight -= count
        if not self.in_flight:
            self._idle.set()

    def _fail_open(self, error: Exception) -> None:
        """Tell those who wait for more; an answer that is complete may still be read."""
        for flight in self._flights:
            if flight.open:
                flight.fail(error)

    def _fail(self, error: BaseException) -> None:
        self.error = error
        self._fail_open(self._death())
        self._ended(self.in_flight)
        self.died.set()

    def _death(self) -> EngineDiedError:
        return EngineDiedError(
            f"the engine stopped with {type(self.error).__name__}: {self.error}; the server ends"
        )

    # What follows runs in the engine's thread.

    def _work(self) -> None:
        try:
            while self._take_commands():
                self._publish(self._engine.step())
        except BaseException as error:  # whatever it was, those who wait must hear of it
            self._call(self._fail, error)

    def _take_commands(self) -> bool:
        """Do what was asked; with nothing to generate, wait for it. False: end."""
        while self._running:
            try:
                command = self._commands.get(block=not self._rows)
            except queue.Empty:
                break
            command()
        return self._running

    def _end(self) -> None:
        self._running = False

    def _start(self, flight: Flight, requests: Sequence[Request]) -> None:
        try:
            self._engine.submit(requests)
        except UserError as error:
            self._call(self._refuse, flight, error)
            return
        for index, request in enumerate(requests):
            self._rows[request.id] = _Row(flight, index)

    def _publish(self, completions: Iterable[Completion]) -> None:
        """Send the ends of requests, and pieces of others where they are due."""
        deliveries = []
        for done in completions:
            row = self._rows.pop(done.request_id)
            new = _after(done, row.sent)
            last = done.finish_reason, done.prompt, done.cached_tokens, done.error
            deliveries.append((row.flight, News(row.index, new, *last)))
        now = time.monotonic()
        if now >= self._next_pieces:
            deliveries += self._pieces()
            self._next_pieces = now + SECONDS_PER_PIECE * len(self._rows)
        self._count(now)
        if deliveries:
            self._call(self._deliver, deliveries)

    def _pieces(self) -> list[tuple[Flight, News]]:
        pieces = []
        for request_id, row in self._rows.items():
            if row.flight.wanted:
                tokens = self._engine.generated(request_id, row.sent)
                if len(tokens.token_ids):
                    row.sent += len(tokens.token_ids)
                    pieces.append((row.flight, News(row.index, tokens)))
        for flight, _ in pieces:
            flight.wanted = False
        return pieces

    def _count(self, now: float) -> None:
        if not self._rows or not self._counted or now - self._counted[-1][0] >= STATS_SECONDS:
            self.stats = self._engine.stats()
            self._counted.append((now, self.stats.generated_tokens))

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(function, *arguments)


def _after(done: Completion, start: int) -> Tokens:
    return Tokens(
        done.token_ids[start:],
        done.log_probs[start:],
        done.top_ids[start:],
        done.top_log_probs[start:],
    )
