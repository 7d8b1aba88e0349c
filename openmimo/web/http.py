"""HTTP beneath the endpoints: bodies within limits, streams, keys, clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from openmimo.web.errors import RETRY_AFTER, ApiError

CLIENT_SECONDS = 30.0
"""A client that neither sends what it announced nor reads its reply for so long is cut off."""

DISCARD_SECONDS = 5.0
"""For the rest of a body that is refused: most clients read no reply before they have sent it."""

BODIES = 16
"""Bodies of the largest size for which there is room at once."""

CLOSE = {"Connection": "close"}

BUG = "internal error; the server's log tells more"

log = logging.getLogger("openmimo.web")

Result = TypeVar("Result")


class DisconnectedError(Exception):
    """The client has left; there is nobody to reply to."""


class Bodies:
    """Reads request bodies within two limits: `most` bytes for one, BODIES times that for all.

    Without the second, clients that each send a little less than the first could take all memory.
    """

    def __init__(self, most: int) -> None:
        self._most, self._room = most, BODIES * most

    @contextlib.asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The whole body; it takes room until the context is left.

        Raises:
            ApiError: it is too long, does not arrive in time, or others have taken the room.
            DisconnectedError: the client left before its end.
        """
        body = bytearray()
        try:
            await self._fill(body, request.stream())
            yield bytes(body)
        except ClientDisconnect:
            raise DisconnectedError from None
        finally:
            self._room += len(body)

    async def _fill(self, body: bytearray, stream: AsyncIterator[bytes]) -> None:
        try:
            async with asyncio.timeout(CLIENT_SECONDS):
                async for chunk in stream:
                    if fault := self._fault(len(body), len(chunk)):
                        break
                    self._room -= len(chunk)
                    body += chunk
                else:
                    return
        except TimeoutError:
            message = f"the body did not arrive within {CLIENT_SECONDS:.0f} seconds"
            raise ApiError(408, message, headers=CLOSE) from None
        self._room += len(body)
        body.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_SECONDS):
                async for _ in stream:
                    pass
        raise fault

    def _fault(self, size: int, more: int) -> ApiError | None:
        """Why a body of `size` bytes may not grow."""
        if size + more > self._most:
            message = f"the body is longer than {self._most} bytes, the most that this server takes"
            return ApiError(413, message, code="body_too_large", headers=CLOSE)
        if more > self._room:
            message = "there is no room for more bodies of requests now; try again later"
            return ApiError(503, message, code="bodies_full", headers=CLOSE | RETRY_AFTER)
        return None


async def carry_out(
    scope: Scope,
    receive: Receive,
    send: Send,
    work: Callable[[Request, Send], Awaitable[None]],
    explain: Callable[[Exception], ApiError | None],
) -> str:
    """Let `work` reply to a request; reply with its fault where it fails before it began to.

    explain: what the client is told about an exception; None if it is a bug, which is logged.

    Returns:
        the outcome in a word: completed, disconnected, or the HTTP status of the fault.
    """
    started = False

    async def watched_send(message: Message) -> None:
        nonlocal started
        started = True
        await send(message)

    try:
        await work(Request(scope, receive), watched_send)
    except DisconnectedError:
        return "disconnected"
    except Exception as error:
        fault = explain(error)
        if fault is None:
            log.exception("a request failed")
            fault = ApiError(500, BUG)
        if not started:
            await error_response(fault)(scope, receive, send)
        return str(fault.status)
    return "completed"


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled if the client leaves first (DisconnectedError)."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise DisconnectedError
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        # Not left before both have ended: what they hold is free now.
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_json(request: Request, send: Send, value: object) -> None:
    """Send a whole reply.

    Raises:
        DisconnectedError: as `send_in_time`.
    """
    body = encode(value)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send_in_time(request, send, body)
    await send_in_time(request, send, b"", last=True)  # waits until most of it has been read


async def start_stream(send: Send, media_type: str) -> None:
    """Begin a reply that comes in pieces, by `send_in_time`."""
    headers = [
        (b"content-type", media_type.encode()),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),  # or nginx would collect the pieces
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def send_in_time(request: Request, send: Send, data: bytes, last: bool = False) -> None:
    """Send a piece of a reply's body.

    Raises:
        DisconnectedError: the client has not read for CLIENT_SECONDS; its connection is closed.
    """
    message: Message = {"type": "http.response.body", "body": data, "more_body": not last}
    try:
        async with asyncio.timeout(CLIENT_SECONDS):
            await send(message)
    except TimeoutError:
        # Not close(), which would wait until the client has read what is buffered.
        request.state.transport.abort()
        raise DisconnectedError from None


def encode(value: object) -> bytes:
    """Compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def error_response(error: ApiError) -> Response:
    """The reply to a request that failed."""
    return JSONResponse(error.body(), error.status, error.headers)


async def http_fault(request: Request, error: Exception) -> Response:
    """The reply to unknown paths and wrong methods: starlette's handler of HTTPException."""
    assert isinstance(error, HTTPException)
    messages = {
        404: f"there is no {request.url.path} here",
        405: f"{request.url.path} does not take {request.method}",
    }
    message = messages.get(error.status_code, error.detail)
    return error_response(ApiError(error.status_code, message, headers=error.headers))


async def bug(request: Request, error: Exception) -> Response:
    """The reply where an endpoint failed: starlette's handler of all else."""
    return error_response(ApiError(500, BUG))


class KeyGuard:
    """Lets only requests with `Authorization: Bearer KEY` through to `app`.

    open_paths: need no key.
    """

    def __init__(self, app: ASGIApp, key: str, open_paths: frozenset[str]) -> None:
        self._app, self._open = app, open_paths
        self._expected = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reply 401, or pass on."""
        if scope["type"] == "http" and scope["path"] not in self._open:
            scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given, self._expected):
                message = "wrong or missing API key: send `Authorization: Bearer KEY`"
                headers = {"WWW-Authenticate": "Bearer", **CLOSE}
                error = ApiError(401, message, code="invalid_api_key", headers=headers)
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class Protocol(H11Protocol):
    """uvicorn's, which also gives requests their transport (`request.state.transport`).

    A connection that sends a part of a request's head, or nothing at first, is closed in time, and
    so is one that has been idle for long.
    """

    _deadline: asyncio.TimerHandle | None = None
    """Of the head that has begun, or of the first one."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called for a new connection."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Called for each piece; any ends uvicorn's own time limit."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called at the end."""
        super().connection_lost(exc)
        self._stop_watch()

    def timeout_keep_alive_handler(self) -> None:
        """Called some time after a reply: what the client has not read by now is dropped."""
        self.transport.abort()

    def _watch(self) -> None:
        """The time limit runs while no request does; further bytes do not renew it."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_watch()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(CLIENT_SECONDS, self.transport.abort)

    def _stop_watch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
