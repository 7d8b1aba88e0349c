"""An inference engine in an actor of a Ray cluster, used as if it were here.

    store = WeightStore()
    engines = [RayEngine(factory, store=store, options={"num_gpus": 1}) for _ in range(8)]

Ray does not restart the actor: an engine whose actor, node or network is gone raises, and whoever
drives it makes another one.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import openmimo
from openmimo.cluster import session
from openmimo.cluster.crew import reason_of
from openmimo.cluster.weights import Packed, WeightStore, unpack
from openmimo.errors import UserError
from openmimo.inference.protocol import (
    Completion,
    EngineStats,
    InferenceEngine,
    Request,
    RequestId,
    Tokens,
    Weights,
)

_NAME = "an engine on the Ray cluster"

EngineFactory = Callable[[], InferenceEngine]
"""Makes the engine; pickled, and called in the actor."""

CALL_SECONDS = 0.05
"""Decoding in one call, if nothing finishes before: a call costs Ray a millisecond or two, and what
is submitted or aborted meanwhile waits for its end."""


class EngineHost:
    """The actor."""

    _engine: InferenceEngine

    def start(self, version: str, factory: EngineFactory) -> None:
        """Make the engine. It is no constructor's work, as Ray hides why those fail."""
        if openmimo.__version__ != version:
            raise UserError(f"its node has openmimo {openmimo.__version__}, not {version}")
        self._engine = factory()

    def step(self, requests: Sequence[Request]) -> list[Completion]:
        """Take new requests; decode until something finishes, or for `CALL_SECONDS`."""
        self._engine.submit(requests)
        until = time.monotonic() + CALL_SECONDS
        while not (done := self._engine.step()) and time.monotonic() < until:
            pass
        return done

    def call(self, requests: Sequence[Request], method: str, *arguments: Any) -> Any:
        """Take new requests; what another method of the engine returns."""
        self._engine.submit(requests)
        return getattr(self._engine, method)(*arguments)

    def update_weights(self, packed: Packed) -> None:
        """The engine copies them."""
        self._engine.update_weights(unpack(packed))


class RayEngine:
    """Implements `inference.protocol.InferenceEngine`; a context manager.

    Requests travel with the next call, so what is wrong with one is an error of that call. After
    any error the actor is killed and the engine of no more use.

    Args:
        factory: makes the engine.
        store: the weights' way there; engines that share it share what they are given.
        options: of the actor, by Ray's names: `num_cpus`, `num_gpus`, `resources`, ...
        address: of the cluster (`session.join`).
        timeout: seconds; the longest wait for an answer to a call.
        start_seconds: the longest wait for a node with room and for the engine.

    Raises:
        UserError: no cluster, no room on it, or the engine cannot be made: the message says why.
    """

    def __init__(
        self,
        factory: EngineFactory,
        *,
        store: WeightStore,
        options: Mapping[str, Any] | None = None,
        address: str = "",
        timeout: float = 600.0,
        start_seconds: float = 300.0,
    ) -> None:
        options = dict(options or {"num_cpus": 1})
        session.join(address)
        self._ray = session.ray()
        self._store, self._timeout = store, timeout
        self._requests: list[Request] = []  # that the actor has not heard of
        self._in_flight: set[RequestId] = set()
        self._failure: UserError | None = None
        self._closed = False
        self._host = self._ray.remote(EngineHost).options(**options).remote()
        late = f"has not started within {start_seconds:g} s: has a node {options} to spare?"
        start = self._host.start.remote(openmimo.__version__, factory)
        try:
            self._answer(start, start_seconds, late)
        except BaseException:
            self.close()
            raise

    def submit(self, requests: Iterable[Request]) -> None:
        """Queue requests, first in first out."""
        requests = list(requests)
        self._requests += requests
        self._in_flight.update(request.id for request in requests)

    def step(self) -> list[Completion]:
        """Decode until something finishes or `CALL_SECONDS` pass; return what finished."""
        if not self._in_flight:
            return []
        done: list[Completion] = self._call("step")
        self._in_flight.difference_update(completion.request_id for completion in done)
        return done

    def generated(self, request_id: RequestId, start: int = 0) -> Tokens:
        """Tokens number `start` and on that a request in flight has so far, for streaming."""
        tokens: Tokens = self._call("call", "generated", request_id, start)
        return tokens

    def abort(self, ids: Collection[RequestId]) -> list[Completion]:
        """End requests now and return what they have so far; ids not in flight are ignored."""
        self._in_flight.difference_update(ids)
        aborted: list[Completion] = self._call("call", "abort", list(ids))
        return aborted

    def update_weights(self, weights: Weights) -> None:
        """Continue with other weights from the next step on."""
        self._check_alive()
        reference = self._store.reference(weights)
        self._answer(self._host.update_weights.remote(reference), self._timeout)

    def stats(self) -> EngineStats:
        """Counters since the actor's start."""
        stats: EngineStats = self._call("call", "stats")
        return stats

    def close(self) -> None:
        """End the actor."""
        if self._closed:
            return
        self._closed = True
        self._failure = self._failure or UserError(f"{_NAME} was closed")
        self._ray.kill(self._host)
        session.leave()

    def __enter__(self) -> "RayEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the actor that takes the new requests first."""
        self._check_alive()
        requests, self._requests = self._requests, []
        return self._answer(getattr(self._host, method).remote(requests, *arguments), self._timeout)

    def _answer(self, reference: Any, seconds: float, late: str = "") -> Any:
        """What the actor answers; every other end is a UserError, and the actor's too."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference, timeout=seconds)
        except errors.GetTimeoutError:
            why = f"{_NAME} {late or f'gave no answer within {seconds:g} s'}"
        except errors.RayTaskError as error:
            cause = error.cause
            why = str(cause) if isinstance(cause, UserError) else f"{_NAME}: {reason_of(error)}"
        except errors.RayError as error:
            why = f"{_NAME} has died: {reason_of(error)}"
        self._failure = UserError(why)
        self._ray.kill(self._host)
        raise self._failure

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise self._failure
