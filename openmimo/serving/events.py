"""A reply as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.types import Send

from openmimo.serving.errors import as_api_error
from openmimo.web.errors import ApiError
from openmimo.web.http import BUG, DisconnectedError, encode, send_in_time, start_stream


async def send_events(
    request: Request, send: Send, events: AsyncIterator[list[dict[str, Any]]]
) -> None:
    """Send lists of JSON objects as server-sent events, and `[DONE]`.

    An error on the way becomes an event too, because the status has been sent already.

    Raises:
        DisconnectedError: as `send_in_time`.
    """
    await start_stream(send, "text/event-stream; charset=utf-8")
    failed: Exception | None = None
    try:
        async for batch in events:
            data = b"".join(b"data: " + encode(event) + b"\n\n" for event in batch)
            await send_in_time(request, send, data)
    except DisconnectedError:
        raise
    except Exception as error:
        fault = as_api_error(error) or ApiError(500, BUG)
        await send_in_time(request, send, b"data: " + encode(fault.body()) + b"\n\n")
        failed = error
    else:
        await send_in_time(request, send, b"data: [DONE]\n\n")
    await send_in_time(request, send, b"", last=True)
    if failed:
        raise failed
