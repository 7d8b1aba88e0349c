"""The side of a vLLM engine that its two forms share: requests as streams on an event loop.

The loop has a thread of its own, so requests go on while the caller does other work; `step` waits
for news of them. A subclass says how one request becomes a stream, how vLLM's workers are called,
and where the counters are.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Collection, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn, Self, TypeVar

from openmimo.config.schema import ModelConfig
from openmimo.errors import UserError
from openmimo.inference.protocol import (
    Completion,
    EngineStats,
    FinishReason,
    Request,
    RequestId,
    Tokens,
    Weights,
)
from openmimo.inference.shared_weights import Named, published_weights, write_chunks
from openmimo.inference.vllm_common import (
    Counters,
    check_request,
    engine_stats,
    join_tokens,
    make_tokens,
)
from openmimo.model.layout import EMBEDDING, HEAD, MTP

Result = TypeVar("Result")


class RefusedError(UserError):
    """vLLM does not serve one request, which ends as "failed"; the others go on."""


@dataclass(frozen=True, eq=False)
class Delta:
    """What a stream gives: more tokens, the reason once it ends, the prompt's scores if asked."""

    tokens: Tokens
    finish_reason: FinishReason | None = None
    prompt: Tokens | None = None


class _InFlight:
    """A request and what has come of it so far."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.task: concurrent.futures.Future[None] | None = None
        self.finish_reason: FinishReason | None = None
        self.error: str | None = None
        self.started = False
        self._prompt: Tokens | None = None
        self._parts = [make_tokens([], [], request.alternatives)]

    def add(self, delta: Delta) -> None:
        self.started = True
        self._parts.append(delta.tokens)
        self._prompt = delta.prompt or self._prompt
        self.finish_reason = delta.finish_reason

    def fail(self, error: str) -> None:
        self.finish_reason, self.error = "failed", error

    def tokens(self, start: int = 0) -> Tokens:
        self._parts = [join_tokens(self._parts)]
        return join_tokens(self._parts, start)

    def completion(self, reason: FinishReason) -> Completion:
        tokens = self.tokens()
        return Completion(
            self.request.id,
            tokens.token_ids,
            tokens.log_probs,
            reason,
            tokens.top_ids,
            tokens.top_log_probs,
            self._prompt,
            error=self.error,
        )


class VllmClient(ABC):
    """Implements `protocol.InferenceEngine`; a context manager.

    vLLM does not wait for `step`: it goes on as long as there are requests, and `step` returns
    once there are new tokens. So `update_weights` takes effect between two of vLLM's own steps.

    Args:
        name: of the engine, for errors.
        timeout: seconds; the longest wait for the next token, or for an answer to a call.
    """

    def __init__(self, name: str, timeout: float) -> None:
        self._name, self._timeout = name, timeout
        self._requests: dict[RequestId, _InFlight] = {}
        self._changed = threading.Condition()
        self._news = False
        self._failure: Exception | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def _start(
        self,
        config: ModelConfig,
        *,
        slots: int,
        max_length: int,
        used_vocab: int | None,
        drafts: int,
    ) -> None:
        """Say what the engine is like, once it runs."""
        if used_vocab is not None and not 0 < used_vocab <= config.vocab_size:
            rows = config.vocab_size
            raise UserError(f"used_vocab is {used_vocab}, but the model's head has {rows} rows")
        self._config, self._slots, self._drafts = config, slots, drafts
        self._max_length = max_length
        self._call(self._rpc("openmimo_prepare", str(used_vocab or config.vocab_size)))
        self._before = self._call(self._counters())

    @property
    def max_length(self) -> int:
        """Longest prompt plus answer, in tokens."""
        return self._max_length

    # What a form of vLLM must offer; all of it runs on the event loop.

    @abstractmethod
    def _stream(self, request: Request) -> AsyncIterator[Delta]:
        """Send a request; closing the iterator ends the request.

        Raises:
            RefusedError: vLLM does not serve this request, though it may serve others.
        """

    @abstractmethod
    async def _rpc(self, method: str, *args: str) -> None:
        """Call a method of `vllm_worker.WorkerExtension` in every worker."""

    @abstractmethod
    async def _pause(self) -> None:
        """Stop before the next step; requests stay."""

    @abstractmethod
    async def _resume(self) -> None:
        """Forget all caches, those of running requests too, and go on."""

    @abstractmethod
    async def _counters(self) -> Counters:
        """As `vllm_common.read_counters`."""

    @abstractmethod
    async def _stop(self) -> None:
        """Let go of vLLM."""

    # The protocol.

    def submit(self, requests: Iterable[Request]) -> None:
        """Queue requests, first in first out; all or none.

        Raises:
            UserError: a request is too long, has an id that is no token, or asks for what vLLM
                does otherwise (`vllm_common.check_request`).
            ValueError: the id of a request is already in flight.
        """
        new: dict[RequestId, _InFlight] = {}
        for request in requests:
            check_request(
                request,
                max_length=self._max_length,
                vocab_size=self._config.vocab_size,
                drafts=self._drafts,
            )
            if request.id in self._requests or request.id in new:
                raise ValueError(f"request id {request.id!r} is already in flight")
            new[request.id] = _InFlight(request)
        self._check_alive()
        with self._changed:
            self._requests |= new
        for flight in new.values():
            flight.task = asyncio.run_coroutine_threadsafe(self._follow(flight), self._loop)

    def step(self) -> list[Completion]:
        """Wait for new tokens of any request; return the requests that finished or failed.

        Raises:
            UserError: the engine has died, or gave no token for `timeout` seconds.
        """
        with self._changed:
            if not self._requests:
                return []
            if not self._changed.wait_for(lambda: self._news or self._failure, self._timeout):
                self._failure = TimeoutError(f"no token for {self._timeout:.0f} seconds")
            self._check_alive()
            self._news = False
            done = [flight for flight in self._requests.values() if flight.finish_reason]
            return [self._take(flight) for flight in done]

    def generated(self, request_id: RequestId, start: int = 0) -> Tokens:
        """Tokens number `start` and on that a request in flight has so far, for streaming."""
        with self._changed:
            if flight := self._requests.get(request_id):
                return flight.tokens(start)
        return make_tokens([], [], 0)

    def abort(self, ids: Collection[RequestId]) -> list[Completion]:
        """End requests now and return what they have so far; ids not in flight are ignored."""
        with self._changed:
            flights = [
                self._requests[each] for each in dict.fromkeys(ids) if each in self._requests
            ]
            completions = [self._take(flight, "aborted") for flight in flights]
        for flight in flights:
            if flight.task is not None:
                flight.task.cancel()
        return completions

    def check_weights(self, weights: Weights) -> None:
        """Raise UserError if `update_weights` would, as they do not fit."""
        published_weights(weights, self._config)

    def update_weights(self, weights: Weights) -> None:
        """Continue with other weights; nothing goes through files.

        vLLM pauses, takes the model's tensors and those of its drafter (the MTP layer, embedding
        and head) from shared memory, and forgets its caches: running requests keep their tokens
        and log-probs and are prefilled again under the new weights, as in the native engine.

        Raises:
            UserError: the weights do not fit (nothing has changed then), there is no shared
                memory, or the engine failed; after a failure in between it cannot be used.
        """
        whole = published_weights(weights, self._config)
        for_drafter = (
            (name, tensor)
            for name, tensor in published_weights(weights, self._config)
            if name.startswith(MTP) or name in (EMBEDDING, HEAD)
        )
        self._check_alive()
        self._call(self._pause())
        try:
            self._send(whole, drafter=False)
            if self._drafts:
                self._send(for_drafter, drafter=True)
            self._call(self._resume())
        except Exception as error:
            self._failure = self._failure or error
            raise

    def _send(self, tensors: Iterable[Named], *, drafter: bool) -> None:
        target = str(int(drafter))
        self._call(self._rpc("openmimo_start_update", target))
        for message in write_chunks(tensors):
            self._call(self._rpc("openmimo_load", target, message))
        self._call(self._rpc("openmimo_finish_update", target))

    def stats(self) -> EngineStats:
        """vLLM's counters (`vllm_common.engine_stats`); a request waits until its first token."""
        self._check_alive()
        now = self._call(self._counters())
        stats = engine_stats(now, self._before, slots=self._slots, drafts=self._drafts)
        with self._changed:
            stats.active = sum(flight.started for flight in self._requests.values())
            stats.waiting = len(self._requests) - stats.active
        return stats

    def close(self) -> None:
        """End what is in flight, and the engine if it was started here."""
        if self._loop.is_closed():
            return
        self.abort(list(self._requests))
        try:
            asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(self._timeout)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(self._timeout)
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # How it is done.

    async def _follow(self, flight: _InFlight) -> None:
        try:
            async for delta in self._stream(flight.request):
                if delta.finish_reason not in (None, "stop", "length"):
                    raise RuntimeError(f"it ended a request: {delta.finish_reason}")
                with self._changed:
                    flight.add(delta)
                    self._tell()
            if flight.finish_reason is None:
                raise RuntimeError("an answer broke off")
        except RefusedError as error:
            with self._changed:
                flight.fail(str(error))
                self._tell()
        except Exception as error:
            with self._changed:
                self._failure = self._failure or error
                self._tell()

    def _tell(self) -> None:
        self._news = True
        self._changed.notify_all()

    def _take(self, flight: _InFlight, reason: FinishReason | None = None) -> Completion:
        del self._requests[flight.request.id]
        reason = reason or flight.finish_reason
        assert reason is not None
        return flight.completion(reason)

    def _call(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine on the loop and wait for it."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(self._timeout)
        except UserError:
            raise
        except Exception as error:
            future.cancel()
            self._failure = self._failure or error
            self._fail(error)

    def _check_alive(self) -> None:
        if self._failure is not None:
            self._fail(self._failure)

    def _fail(self, error: Exception) -> NoReturn:
        if isinstance(error, UserError):
            raise error
        what = str(error) or type(error).__name__
        if isinstance(error, TimeoutError):
            what = str(error) or f"no answer within {self._timeout:.0f} seconds"
        raise UserError(f"{self._name} has failed: {what}; start a new one") from error
