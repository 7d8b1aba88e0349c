"""HTTP beneath the endpoints: bodies within limits, streams of events, keys, clients that leave."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from openmimo.serving.errors import ApiError, as_api_error

CLIENT_SECONDS = 30.0
"""A client that neither sends what it announced nor reads its reply for so long is cut off."""

DISCARD_SECONDS = 5.0
"""For the rest of a body that is too large: most clients read no reply before they have sent it."""

Result = TypeVar("Result")


class DisconnectedError(Exception):
    """The client has left; there is nobody to reply to."""


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body.

    Raises:
        ApiError: it is longer than `limit` bytes, or does not arrive in time.
        DisconnectedError: the client left before its end.
    """
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(CLIENT_SECONDS) as deadline:
            async for chunk in request.stream():
                size += len(chunk)
                if size <= limit:
                    body += chunk
                elif body:
                    body.clear()
                    deadline.reschedule(asyncio.get_running_loop().time() + DISCARD_SECONDS)
    except ClientDisconnect:
        raise DisconnectedError from None
    except TimeoutError:
        if size <= limit:
            message = f"the body did not arrive within {CLIENT_SECONDS:.0f} seconds"
            raise ApiError(408, message, headers={"Connection": "close"}) from None
    if size > limit:
        message = f"the body is longer than {limit} bytes, the most that this server takes"
        raise ApiError(413, message, code="body_too_large", headers={"Connection": "close"})
    return bytes(body)


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
        DisconnectedError: as `send_events`.
    """
    body = encode(value)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await _send_in_time(request, send, body)
    await _send_in_time(request, send, b"", last=True)  # waits until most of it has been read


async def send_events(
    request: Request, send: Send, events: AsyncIterator[list[dict[str, Any]]]
) -> None:
    """Send lists of JSON objects as server-sent events, and `[DONE]`.

    An error on the way becomes an event too, because the status has been sent already.

    Raises:
        DisconnectedError: the client has not read for CLIENT_SECONDS; its connection is closed.
    """
    headers = [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),  # or nginx would collect the events
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    failed: Exception | None = None
    try:
        async for batch in events:
            data = b"".join(b"data: " + encode(event) + b"\n\n" for event in batch)
            await _send_in_time(request, send, data)
    except DisconnectedError:
        raise
    except Exception as error:
        fault = as_api_error(error) or ApiError(500, "internal error; the server's log tells more")
        await _send_in_time(request, send, b"data: " + encode(fault.body()) + b"\n\n")
        failed = error
    else:
        await _send_in_time(request, send, b"data: [DONE]\n\n")
    await _send_in_time(request, send, b"", last=True)
    if failed:
        raise failed


async def _send_in_time(request: Request, send: Send, data: bytes, last: bool = False) -> None:
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


class KeyGuard:
    """Lets only requests with `Authorization: Bearer KEY` through to `app`.

    open_paths: need no key.
    """

    def __init__(self, app: ASGIApp, key: str, open_paths: frozenset[str]) -> None:
        self._app, self._open = app, open_paths
        self._expected = f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reply 401, or pass on."""
        if scope["type"] == "http" and scope["path"] not in self._open:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                message = "wrong or missing API key: send `Authorization: Bearer KEY`"
                headers = {"WWW-Authenticate": "Bearer", "Connection": "close"}
                error = ApiError(401, message, code="invalid_api_key", headers=headers)
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class Protocol(H11Protocol):
    """uvicorn's, which also gives requests their transport (`request.state.transport`).

    A connection that sends no complete head of a request in time is closed, and so is one that
    has been idle for long.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called for a new connection."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}
        self.loop.call_later(CLIENT_SECONDS, self._close_unused)

    def timeout_keep_alive_handler(self) -> None:
        """Called some time after a reply: what the client has not read by now is dropped."""
        self.transport.abort()

    def _close_unused(self) -> None:
        if self.cycle is None:
            self.transport.abort()
