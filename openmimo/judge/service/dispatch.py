"""The client's work: batches go to the host with the least to do, and again where one is lost."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from openmimo.errors import shown
from openmimo.judge.service.host import BusyError, Host, LostError, RefusedError
from openmimo.judge.service.wire import encode_batch
from openmimo.judge.verdict import SolutionVerdict

WINDOW_SECONDS = 0.005
"""What is submitted within it travels together."""

BATCH_SOLUTIONS, BATCH_CHARACTERS = 32, 4_000_000

SOLUTIONS_PER_WORKER, LEAST_SOLUTIONS = 16, 64
"""That a host has at once: enough for its workers never to wait, few enough for another host."""

MOST_LOSSES = 10
"""Hosts that may be lost while they judge a solution: it may be what they die of."""

TICK_SECONDS = 0.1

UNSAFE = "it judges without a sandbox, which was not asked for"


@dataclass(eq=False)
class Item:
    """A solution on its way. `suite` and `fields` as `wire` encodes them.

    `alone`: to be the only one that a host has, so that its fault, if it has one, is nobody else's.
    """

    id: str
    suite: str
    fields: dict[str, Any]
    tests: int
    size: int
    future: Future[SolutionVerdict] = field(default_factory=Future)
    losses: int = 0
    alone: bool = False

    def fail(self, detail: str) -> None:
        """Nobody can tell."""
        self.future.set_result(SolutionVerdict.failed(self.tests, detail))


class Dispatcher:
    """Brings every item its verdict, exactly one.

    An item is at one place at any time: in the queue or in one request. What a request leaves
    without a verdict goes back to the queue. If no host gives a sign of life for `patience`
    seconds (a verdict, or a request that is still being worked on), all items fail.
    """

    def __init__(self, hosts: Sequence[Host], unsafe: bool, patience: float) -> None:
        self._hosts, self._unsafe, self._patience = hosts, unsafe, patience
        self._queue: deque[Item] = deque()
        self._requests: dict[asyncio.Task[None], tuple[Host, dict[str, Item]]] = {}
        self._changed = asyncio.Event()
        self._sign = time.monotonic()
        self._ended = ""

    def add(self, item: Item) -> None:
        """Take an item."""
        if self._ended:
            item.fail(self._ended)
            return
        if not self._queue and not self._requests:
            self._sign = time.monotonic()
        self._queue.append(item)
        self._changed.set()

    def start(self) -> None:
        """Begin to work, in the running loop."""
        self._work = asyncio.create_task(self._run())

    async def end(self, reason: str) -> None:
        """Stop at once: items that are left, or come later, fail for this reason."""
        self._ended = reason
        self._work.cancel()
        await asyncio.gather(self._work, return_exceptions=True)

    async def _run(self) -> None:
        try:
            while True:
                await self._wait()
                self._changed.clear()
                self._send_what_can_be()
                silent = time.monotonic() - self._sign
                if (self._queue or self._requests) and silent > self._patience:
                    problems = "; ".join(f"{host.url}: {host.problem}" for host in self._hosts)
                    await self._fail_all(f"no judge answered for {silent:.0f} s: {problems}")
        finally:
            self._ended = self._ended or "the judge's client has failed: this is a bug"
            await self._fail_all(self._ended)

    async def _wait(self) -> None:
        with contextlib.suppress(TimeoutError):
            busy = self._queue or self._requests
            async with asyncio.timeout(TICK_SECONDS if busy else None):
                await self._changed.wait()
        await asyncio.sleep(WINDOW_SECONDS)

    def _send_what_can_be(self) -> None:
        while self._queue:
            rooms = {host: self._room(host) for host in self._hosts if host.ready}
            rooms = {host: room for host, room in rooms.items() if room}
            if not rooms:
                return
            host = max(rooms, key=lambda each: rooms[each] / _capacity(each))
            share = math.ceil(len(self._queue) / len(rooms))
            batch = self._take(min(rooms[host], BATCH_SOLUTIONS, share))
            task = asyncio.create_task(self._send(host, batch))
            self._requests[task] = (host, batch)
            task.add_done_callback(self._requeue)

    def _room(self, host: Host) -> int:
        """How many solutions to send to a host: rather a whole batch, soon, than one now."""
        requests = [left for at, left in self._requests.values() if at is host]
        there = [item for left in requests for item in left.values()]
        if not host.trusted or self._queue[0].alone or any(item.alone for item in there):
            return 0 if there else 1
        room = _capacity(host) - len(there)
        return room if room >= BATCH_SOLUTIONS // 2 else 0

    def _take(self, most: int) -> dict[str, Item]:
        """The next items; one at least, no more than a request should hold."""
        batch: dict[str, Item] = {}
        size = 0
        while self._queue and len(batch) < most:
            item = self._queue[0]
            size += item.size
            if batch and (size > BATCH_CHARACTERS or item.alone):
                break
            batch[item.id] = self._queue.popleft()
        return batch

    async def _send(self, host: Host, left: dict[str, Item]) -> None:
        """One request; `left` holds what has no verdict yet."""
        try:
            if (host.about or await host.ask()).unsafe and not self._unsafe:
                raise LostError(UNSAFE)
            body = encode_batch([(item.suite, item.fields) for item in left.values()])
            async for news in host.judge(body):
                self._sign = time.monotonic()
                if news is not None:
                    self._settle(left, *news)
            if left:
                raise LostError("its reply ended early", accepted=True)
        except BusyError as error:  # full of others' work, so it lives
            self._sign = time.monotonic()
            host.rest(str(error), error.seconds)
        except RefusedError as error:
            self._refused(left, f"{host.url}: {error}")
        except Exception as error:  # LostError, or a bug: which must not end in a loop
            host.rest(str(error))
            if not isinstance(error, LostError) or error.accepted:
                self._lost(left, f"{host.url}: {type(error).__name__}: {error}")

    def _settle(self, left: dict[str, Item], id: str, verdict: SolutionVerdict) -> None:
        item = left.get(id)
        if item is None or len(verdict.tests) != item.tests:
            raise LostError(f"a verdict that was not asked for: {shown(id)}", accepted=True)
        if verdict.unsafe and not self._unsafe:
            raise LostError(UNSAFE, accepted=True)
        del left[id]
        item.future.set_result(verdict)
        self._changed.set()

    def _refused(self, left: dict[str, Item], message: str) -> None:
        """One bad solution must not spoil the others of its request: try each alone."""
        if len(left) == 1:
            left.popitem()[1].fail(message)
        for item in left.values():
            item.alone = True

    def _lost(self, left: dict[str, Item], message: str) -> None:
        for item in list(left.values()):
            item.losses += 1
            item.alone = item.losses > 1
            if item.losses >= MOST_LOSSES:
                del left[item.id]
                item.fail(f"{MOST_LOSSES} judges were lost over it; the last: {message}")

    def _requeue(self, request: asyncio.Task[None]) -> None:
        """A request has ended: what it left waits again, what was lost behind all others."""
        _, left = self._requests.pop(request)
        for item in reversed(left.values()):
            if item.losses:
                self._queue.append(item)
            else:
                self._queue.appendleft(item)
        self._changed.set()

    async def _fail_all(self, detail: str) -> None:
        requests = list(self._requests)
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
        while self._queue:
            self._queue.popleft().fail(detail)


def _capacity(host: Host) -> int:
    workers = host.about.workers if host.about else 1
    return max(LEAST_SOLUTIONS, SOLUTIONS_PER_WORKER * workers)
