"""A judge that is elsewhere: one or several services, behind `SolutionJudge`."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

from openmimo.errors import UserError
from openmimo.judge.cases import Limits, Program, Test, check_solution
from openmimo.judge.judge import CLOSED
from openmimo.judge.service.dispatch import UNSAFE, Dispatcher, Item
from openmimo.judge.service.host import Host, LostError, check_url, new_http
from openmimo.judge.service.wire import encode_solution, encode_suite
from openmimo.judge.verdict import SolutionVerdict

PATIENCE_SECONDS = 300.0

Result = TypeVar("Result")


class RemoteJudge:
    """Judges by `mimo judge-serve`, at one address or several. A context manager; safe to use from
    threads.

    What is submitted within a moment travels together, to the service with the least to do. When a
    service is full it waits; when one is lost, what it had goes to the others, or to the same one
    once it is back. Judging twice is harmless: a verdict depends on nothing but program, tests and
    limits.

    Args:
        urls: such as http://10.0.0.5:8001. Those that cannot be reached now are tried later, as
            long as one can.
        key: their API key.
        limits: of calls that give none.
        unsafe: whether to take verdicts that were made without a sandbox.
        patience: seconds without a sign of life from any service after which all that waits gives
            `judge_error`. The longest that anything can hang.

    Raises:
        UserError: no service answers, one is no judge, wants another key, or has no sandbox.
    """

    def __init__(
        self,
        urls: Sequence[str],
        key: str | None = None,
        limits: Limits | None = None,
        unsafe: bool = False,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        urls = [check_url(url) for url in urls]
        if len(set(urls)) < max(1, len(urls)):
            raise UserError(f"judge: give each address once, and one at least: {', '.join(urls)}")
        self._limits = limits or Limits()
        self._numbers = itertools.count()
        self._lock = threading.Lock()  # of _closed
        self._closed = False
        self._http = new_http(key)
        self._hosts = [Host(url, self._http) for url in urls]
        self._dispatcher = Dispatcher(self._hosts, unsafe, patience)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="remote-judge", daemon=True
        )
        self._thread.start()
        try:
            self._call(self._begin(unsafe))
        except BaseException:
            self._stop()
            raise

    def submit(
        self,
        program: Program | str,
        tests: Sequence[Test],
        limits: Limits | None = None,
        order: Sequence[int] | None = None,
        stop_at_failure: bool = False,
    ) -> Future[SolutionVerdict]:
        """Send a program to be judged: see `Judge.submit`."""
        program, tests, _ = check_solution(program, tests, order)
        id = str(next(self._numbers))
        suite = encode_suite(tests, limits or self._limits)
        fields = encode_solution(id, program, order, stop_at_failure)
        item = Item(id, suite, fields, len(tests), len(suite) + len(program.source))
        item.future.set_running_or_notify_cancel()
        with self._lock:
            if self._closed:
                raise UserError(CLOSED)
            self._loop.call_soon_threadsafe(self._dispatcher.add, item)
        return item.future

    def close(self) -> None:
        """Stop at once: what has no verdict yet gives `judge_error`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._call(self._dispatcher.end(CLOSED))
        self._stop()

    def __enter__(self) -> RemoteJudge:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def _begin(self, unsafe: bool) -> None:
        await _greet(self._hosts, unsafe)
        self._dispatcher.start()

    def _call(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _stop(self) -> None:
        self._call(self._http.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _greet(hosts: Sequence[Host], unsafe: bool) -> None:
    """UserError unless one host answers, and all that do are what they should be."""
    replies = await asyncio.gather(*(host.ask() for host in hosts), return_exceptions=True)
    unreachable = []
    for host, reply in zip(hosts, replies, strict=True):
        if isinstance(reply, LostError) and reply.unreachable:
            unreachable.append(f"{host.url}: {reply}")
        elif isinstance(reply, BaseException):
            raise UserError(f"judge: {host.url}: {reply}")
        elif reply.unsafe and not unsafe:
            raise UserError(f"judge: {host.url}: {UNSAFE}: give --unsafe-local, or restart it")
    if len(unreachable) == len(hosts):
        raise UserError(
            f"no judge answers ({'; '.join(unreachable)}): start one with `mimo judge-serve`"
        )
