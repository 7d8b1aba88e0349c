"""The engines of a step: which one has which request, and what becomes of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from openmimo.errors import UserError
from openmimo.inference.protocol import Completion, InferenceEngine, Request, Weights
from openmimo.rollout.engine_worker import EngineWorker
from openmimo.rollout.placement import Placement
from openmimo.rollout.watchdog import dump_stacks

_log = logging.getLogger(__name__)

Restart = Callable[[], InferenceEngine] | None


class Listener(Protocol):
    """Whoever gives requests to the bank."""

    def stepped(self, steps: int) -> None:
        """An engine made so many decode steps; what finished with the last one is told next."""

    def finished(self, completion: Completion) -> None:
        """A request has its answer, or the engine gave it up."""

    def lost(self, request_ids: Sequence[str]) -> None:
        """The engine of these requests is gone; nothing is left of them."""

    def room(self) -> None:
        """There are free slots."""

    def failed(self, error: Exception) -> None:
        """No engine is left, or something went wrong that must not: the step cannot go on."""

    def most_steps(self) -> int:
        """How many decode steps an engine may make before it must report."""

    def advanced(self, worker: EngineWorker) -> Awaitable[None]:
        """All that came of an engine's steps is told; it goes on when this returns."""


@dataclass(frozen=True, slots=True)
class _Held:
    engine: int
    tokens: float  # as expected when it was placed


class EngineBank:
    """Engines that may die and come back, behind one door.

    Args:
        workers: the engines, empty.
        restarts: one for each, see `driver.EngineSeat`.
        placement: chooses the engine of a request.
        most_restarts: of one engine.
        weights: what an engine that was started again gets; None: it has the right ones.
    """

    def __init__(
        self,
        workers: Sequence[EngineWorker],
        restarts: Sequence[Restart],
        placement: Placement,
        most_restarts: int,
        listener: Listener,
        weights: Weights | None,
    ) -> None:
        self._workers, self._restarts, self._placement = workers, restarts, placement
        self._most_restarts, self._listener = most_restarts, listener
        self._weights = weights
        self._held: dict[str, _Held] = {}
        self._restarted = [0] * len(workers)
        self._alive = [True] * len(workers)  # or coming back
        self._closing = False
        self._pumps: list[asyncio.Task[None]] = []
        for number, worker in enumerate(workers):
            if worker.broken is not None:
                placement.down(number)

    def start(self) -> None:
        """Begin to work, on the running event loop."""
        self._pumps = [asyncio.create_task(self._pump(n)) for n in range(len(self._workers))]

    @property
    def free(self) -> int:
        """Free slots."""
        return self._placement.slots

    def submit(self, request: Request, prompt: int, tokens: float) -> str:
        """Give a request of a prompt to an engine that has a free slot; the engine's name."""
        number = self._placement.take(tokens, prompt)
        self._held[str(request.id)] = _Held(number, tokens)
        self._workers[number].submit(request)
        return self._workers[number].name

    def abort(self, ids: Collection[str]) -> None:
        """End requests; nothing more is heard of them."""
        for each in ids:
            held = self._held.get(each)
            if held is not None:
                self._workers[held.engine].abort([each])
                self._release(each)

    async def close(self, seconds: float) -> None:
        """End all requests and wait for the engines to be empty, but not for those started again.

        Raises:
            UserError: an engine does not stop within so many seconds.
        """
        self._closing = True
        for worker in self._workers:
            worker.abort(list(worker.in_flight))
            worker.wake()
        for worker, pump in zip(self._workers, self._pumps, strict=True):
            if worker.broken is not None:  # it is being made, or gets its weights
                pump.cancel()
        _, late = await asyncio.wait(self._pumps, timeout=seconds)
        if late:
            dump_stacks()
            for pump in late:
                pump.cancel()
            pairs = zip(self._workers, self._pumps, strict=True)
            names = ", ".join(worker.name for worker, pump in pairs if pump in late)
            raise UserError(
                f"rollout: {names} did not stop within {seconds:g} s (the stacks of all threads "
                "are above)"
            )

    def _release(self, request_id: str) -> None:
        held = self._held.pop(request_id)
        self._placement.give_back(held.engine, held.tokens)

    async def _pump(self, number: int) -> None:
        """Keep an engine going until the step is over and the engine is empty."""
        worker = self._workers[number]
        while True:
            if worker.broken is not None and not await self._revive(number):
                return
            try:
                await self._work(worker)
                return
            except Exception as error:
                self._lose(number, error)
                if self._closing:
                    return

    async def _work(self, worker: EngineWorker) -> None:
        while not self._closing or worker.has_commands:
            if not await worker.ready():
                continue
            advance = await worker.advance(self._listener.most_steps())
            for completion in advance.completions:
                self._release(str(completion.request_id))
            try:
                self._listener.stepped(advance.steps)
                for completion in advance.completions:
                    self._listener.finished(completion)
                if advance.completions:
                    self._listener.room()
                await self._listener.advanced(worker)
            except Exception as error:  # not the engine's fault
                self._listener.failed(error)
                return

    def _lose(self, number: int, error: Exception) -> None:
        """An engine raised: what it had is lost."""
        worker = self._workers[number]
        worker.broken = error
        worker.forget()
        self._placement.down(number)
        lost = [each for each, held in self._held.items() if held.engine == number]
        for each in lost:
            self._release(each)
        if not self._closing:
            _log.warning("%s has died: %s", worker.name, error)
            self._listener.lost(lost)

    async def _revive(self, number: int) -> bool:
        """Start a dead engine again; False if it stays dead in this step."""
        worker, restart = self._workers[number], self._restarts[number]
        while restart is not None and self._restarted[number] < self._most_restarts:
            self._restarted[number] += 1
            try:
                await worker.replace(restart)
                if self._weights is not None:
                    await worker.update_weights(self._weights)
            except Exception as error:
                worker.broken = error
                continue
            worker.broken = None
            self._placement.up(number)
            try:
                self._listener.room()
            except Exception as error:  # not the engine's fault
                self._listener.failed(error)
            return True
        self._alive[number] = False
        if not any(self._alive):
            why = worker.broken
            failure = UserError(f"rollout: {worker.name} died, and none is left: {why}")
            failure.__cause__ = why
            self._listener.failed(failure)
        return False
