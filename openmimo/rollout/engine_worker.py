"""An inference engine in a thread of its own, for an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from openmimo.inference.protocol import Completion, InferenceEngine, Request, RequestId, Weights
from openmimo.rollout.daemon_thread import DaemonThread

MOST_STEPS = 32
"""Decode steps after which the loop hears of an engine in any case: aborts wait no longer."""


@dataclass(frozen=True)
class Advance:
    """Decode steps that an engine made, and what finished with the last one."""

    steps: int
    completions: list[Completion]


class EngineWorker:
    """Submits and aborts take effect before the next decode step, so the engine is only ever used
    by its own thread and never waits for the event loop.

    The thread returns to the loop when something has finished, when there are commands, or after
    some steps; an engine without requests takes no step.
    """

    def __init__(self, engine: InferenceEngine, name: str, slots: int) -> None:
        """slots: samples that the engine is given at once.

        broken: why the engine is of no use any more; None while it is.
        """
        self.engine, self.name, self.slots = engine, name, slots
        self.broken: Exception | None = None
        self.in_flight: set[RequestId] = set()
        self.steps = 0
        self._submitted: list[Request] = []
        self._aborted: list[RequestId] = []
        self._commands = threading.Event()
        self._news = asyncio.Event()
        self._thread = DaemonThread(name)
        self._replacement: Future[None] | None = None

    def submit(self, request: Request) -> None:
        """Queue a request, first in first out."""
        self.in_flight.add(request.id)
        self._submitted.append(request)
        self._wake()

    def abort(self, ids: Sequence[RequestId]) -> None:
        """End requests; nothing more is heard of them."""
        gone = self.in_flight.intersection(ids)
        if gone:
            self.in_flight -= gone
            self._aborted += gone
            self._wake()

    @property
    def has_commands(self) -> bool:
        """Whether the engine has not heard of everything yet."""
        return bool(self._submitted or self._aborted)

    def forget(self) -> None:
        """The engine is gone, with all that it had."""
        self.in_flight.clear()
        self._submitted.clear()
        self._aborted.clear()

    def wake(self) -> None:
        """Let `ready` return, whether there is work or not."""
        self._news.set()

    async def ready(self) -> bool:
        """Wait for work; whether there is some."""
        if not self.in_flight and not self.has_commands:
            self._news.clear()
            await self._news.wait()
        return bool(self.in_flight or self.has_commands)

    async def advance(self, most: int = MOST_STEPS) -> Advance:
        """Carry out the commands, then decode until something finishes or `most` steps are made.

        Raises:
            Exception: whatever the engine raised; it is of no more use then.
        """
        submitted, self._submitted = self._submitted, []
        aborted, self._aborted = self._aborted, []
        self._commands.clear()
        busy, most = bool(self.in_flight), min(most, MOST_STEPS)
        work = self._thread.submit(partial(self._run, submitted, aborted, most, busy))
        advance = await asyncio.wrap_future(work)
        self.steps += advance.steps
        wanted = [c for c in advance.completions if c.request_id in self.in_flight]
        self.in_flight.difference_update(c.request_id for c in wanted)
        return Advance(advance.steps, wanted)

    async def update_weights(self, weights: Weights) -> None:
        """Raises what the engine raises."""
        update = partial(self.engine.update_weights, weights)
        await asyncio.wrap_future(self._thread.submit(update))

    async def replace(self, make: Callable[[], InferenceEngine]) -> None:
        """Have another engine made.

        If the wait is cancelled it is made all the same, and the next call waits for that one.
        Raises what `make` raises.
        """
        if self._replacement is None:
            self._replacement = self._thread.submit(partial(self._take, make))
        try:
            await asyncio.shield(asyncio.wrap_future(self._replacement))
        finally:
            if self._replacement.done():
                self._replacement = None

    def close(self) -> None:
        """Let the thread go; one that hangs is left behind."""
        self._thread.close()

    def _take(self, make: Callable[[], InferenceEngine]) -> None:
        self.engine = make()

    def _run(
        self, submitted: list[Request], aborted: list[RequestId], most: int, busy: bool
    ) -> Advance:
        if submitted:
            self.engine.submit(submitted)
        if aborted:
            self.engine.abort(aborted)
        if not busy:
            return Advance(0, [])
        steps = 0
        completions: list[Completion] = []
        while steps < most and not completions and not self._commands.is_set():
            completions = self.engine.step()
            steps += 1
        return Advance(steps, completions)

    def _wake(self) -> None:
        self._commands.set()
        self._news.set()
