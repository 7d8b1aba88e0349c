"""What runs in an actor: a worker, called with several tasks at a time."""

import asyncio
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import openmimo


class Worker(Protocol):
    """A judge, a verifier, an engine: whatever takes tasks and answers them later."""

    def submit(self, *arguments: Any) -> Future[Any]:
        """Begin a task, and do not wait for it."""

    def close(self) -> None:
        """Stop at once."""


Factory = Callable[[int], Worker]
"""Makes a worker that does so many tasks at once; sent to the actor by pickle."""


class Host:
    """An actor of a pool. Its methods are coroutines, so it answers `ping` while it works."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    async def start(self, version: str, factory: Factory, workers: int) -> None:
        """Make the worker. It is no constructor's work, as Ray hides why those fail."""
        if openmimo.__version__ != version:
            raise RuntimeError(f"it has openmimo {openmimo.__version__}, not {version}")
        self._worker = factory(workers)

    async def ping(self) -> None:
        """A sign of life."""

    async def call(self, payloads: Sequence[bytes]) -> list[bytes]:
        """Answer tasks: `outcome` of each. What goes wrong with one is its own outcome."""
        tasks = [self._begin(payload) for payload in payloads]
        return [await _outcome(task) for task in tasks]

    async def close(self) -> None:
        """End the worker's processes and files in an orderly way."""
        if self._worker is not None:
            self._worker.close()

    def _begin(self, payload: bytes) -> Future[Any]:
        try:
            assert self._worker is not None
            return self._worker.submit(*pickle.loads(payload))
        except Exception as error:
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed


async def _outcome(future: Future[Any]) -> bytes:
    """Whether a task succeeded, and its result or its exception, pickled."""
    outcome: tuple[bool, Any]
    try:
        outcome = True, await asyncio.wrap_future(future)
    except Exception as error:
        outcome = False, error
    try:
        return pickle.dumps(outcome)
    except Exception as error:
        return pickle.dumps((False, RuntimeError(f"a result that cannot be sent: {error}")))
