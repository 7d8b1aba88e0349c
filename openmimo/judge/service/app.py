"""The endpoints of the judge's service."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from openmimo.judge.cases import Limits
from openmimo.judge.judge import Judge
from openmimo.judge.service.desk import Desk, Flight
from openmimo.judge.service.metrics import Metrics
from openmimo.judge.service.wire import BadBodyError, encode_verdict, parse_batch
from openmimo.web.errors import ApiError
from openmimo.web.http import (
    Bodies,
    DisconnectedError,
    KeyGuard,
    bug,
    carry_out,
    encode,
    http_fault,
    send_in_time,
    start_stream,
    while_connected,
)

HEARTBEAT_SECONDS = 5.0
"""An empty line so often while no verdict comes tells the client that somebody is there."""


@dataclass(frozen=True)
class Parts:
    """What the endpoints work with.

    bodies: reads those of requests.
    most: what a test may ask for at most.
    unsafe: whether the judge works without its sandbox.
    """

    judge: Judge
    desk: Desk
    metrics: Metrics
    bodies: Bodies
    most: Limits
    unsafe: bool


def make_app(parts: Parts, api_key: str | None) -> ASGIApp:
    """The service as an ASGI application.

    Args:
        parts: what the endpoints work with.
        api_key: asked for at every path but /health; None: at none.
    """

    def state() -> dict[str, Any]:
        stats = parts.judge.stats()
        return {
            "status": "draining" if parts.desk.draining else "ok", "workers": stats.workers,
            "alive": stats.alive, "in_flight": parts.desk.in_flight, "unsafe": parts.unsafe,
        }  # fmt: skip

    async def health(request: Request) -> Response:
        status = 503 if parts.desk.draining else 200
        return Response(encode(state()), status, media_type="application/json")

    async def about(request: Request) -> Response:
        return Response(encode({"object": "judge", **state()}), media_type="application/json")

    async def scrape(request: Request) -> Response:
        return Response(parts.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    routes = [
        Route("/v1/judge", _Judging(parts), methods=["POST"]),
        Route("/v1/about", about),
        Route("/health", health),
        Route("/metrics", scrape),
    ]
    starlette = Starlette(
        routes=routes, exception_handlers={HTTPException: http_fault, Exception: bug}
    )
    return starlette if api_key is None else KeyGuard(starlette, api_key, frozenset({"/health"}))


class _Judging:
    """POST /v1/judge, as an ASGI application."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        outcome = "500"
        try:
            work = partial(self._answer, receive=receive)
            outcome = await carry_out(scope, receive, send, work, _explain)
        finally:
            self._parts.metrics.request(outcome)

    async def _answer(self, request: Request, send: Send, receive: Receive) -> None:
        parts = self._parts
        parts.desk.check_open(1)  # before the body is read, which may take long
        # The body keeps its room until the verdicts have come, whoever still waits for them: so the
        # memory of all that waits has a bound too.
        async with parts.bodies.read(request) as body:
            solutions = await asyncio.to_thread(parse_batch, body, parts.most)
            async with parts.desk.judged(solutions) as flight:
                del solutions, body
                try:
                    await while_connected(receive, _send_verdicts(request, send, flight))
                except DisconnectedError:
                    parts.desk.abandon(flight)
                    await flight.over.wait()
                    raise


async def _send_verdicts(request: Request, send: Send, flight: Flight) -> None:
    """A line for each verdict as it comes. A last line tells why if the service has to end."""
    await start_stream(send, "application/x-ndjson")
    try:
        while (news := await flight.news(HEARTBEAT_SECONDS)) is not None:
            lines = b"".join(encode_verdict(id, verdict) for id, verdict in news)
            await send_in_time(request, send, lines or b"\n")
    except ApiError as fault:
        await send_in_time(request, send, encode(fault.body()) + b"\n")
        await send_in_time(request, send, b"", last=True)
        raise
    await send_in_time(request, send, b"", last=True)


def _explain(error: Exception) -> ApiError | None:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BadBodyError):
        return ApiError(400, str(error), error.field, "invalid_body")
    return None
