"""The endpoints."""

from __future__ import annotations

import asyncio
import importlib.resources
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from openmimo.serving.calls import Call, Limits, chat_call, completion_call
from openmimo.serving.errors import as_api_error
from openmimo.serving.events import send_events
from openmimo.serving.fields import ChatFields, CompletionFields, parse
from openmimo.serving.metrics import Clock, Metrics
from openmimo.serving.replies import ChatReply, CompletionReply, Reply, joined
from openmimo.serving.samples import Sample, deltas, new_samples
from openmimo.serving.service import EngineService, Flight
from openmimo.tokenizer import Tokenizer
from openmimo.web.errors import ApiError
from openmimo.web.http import (
    Bodies,
    KeyGuard,
    bug,
    carry_out,
    encode,
    error_response,
    http_fault,
    send_json,
    while_connected,
)

PAGE = {
    "index.html": "text/html; charset=utf-8",
    "chat.css": "text/css; charset=utf-8",
    "chat.js": "text/javascript; charset=utf-8",
}
PAGE_HEADERS = {
    # An answer that reached the page as HTML after all could load and run nothing.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class Parts:
    """What the endpoints work with.

    model: the name that clients use.
    bodies: reads those of requests.
    timeout: seconds for a whole request, waiting included.
    """

    model: str
    tokenizer: Tokenizer
    service: EngineService
    limits: Limits
    bodies: Bodies
    timeout: float


def make_app(parts: Parts, api_key: str | None) -> ASGIApp:
    """The server as an ASGI application.

    Args:
        parts: what the endpoints work with.
        api_key: asked for at every path but /health and the chat page; None: at none.
    """
    metrics = Metrics(parts.service)
    started = int(time.time())

    entry = {"id": parts.model, "object": "model", "created": started, "owned_by": "openmimo",
             "max_model_len": parts.limits.context}  # fmt: skip

    async def models(request: Request) -> Response:
        return _json({"object": "list", "data": [entry]})

    async def model(request: Request) -> Response:
        try:
            _check_model(request.path_params["name"], parts)
        except ApiError as error:
            return error_response(error)
        return _json(entry)

    async def health(request: Request) -> Response:
        status = "ok"
        if parts.service.error is not None:
            status = "engine died"
        elif parts.service.draining:
            status = "draining"
        return _json({"status": status}, 200 if status == "ok" else 503)

    async def scrape(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    routes = [
        Route("/v1/chat/completions", _Answers(parts, metrics, _chat), methods=["POST"]),
        Route("/v1/completions", _Answers(parts, metrics, _completion), methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/health", health),
        Route("/metrics", scrape),
        *_page(),
    ]
    starlette = Starlette(
        routes=routes, exception_handlers={HTTPException: http_fault, Exception: bug}
    )
    starlette.router.redirect_slashes = (
        False  # it redirects to http, whatever the proxy before it has
    )
    if api_key is None:
        return starlette
    open_paths = frozenset({"/health", "/", *(f"/page/{name}" for name in PAGE)})
    return KeyGuard(starlette, api_key, open_paths)


Begin = Callable[[bytes, Parts], Awaitable[tuple[Call, type[ChatReply] | type[CompletionReply]]]]


async def _chat(body: bytes, parts: Parts) -> tuple[Call, type[ChatReply]]:
    fields = parse(body, ChatFields)
    _check_model(fields.model, parts)
    # In a thread: a long text takes the tokenizer a while, and others wait for this loop.
    call = await asyncio.to_thread(chat_call, fields, parts.tokenizer, parts.limits)
    return call, ChatReply


async def _completion(body: bytes, parts: Parts) -> tuple[Call, type[CompletionReply]]:
    fields = parse(body, CompletionFields)
    _check_model(fields.model, parts)
    call = await asyncio.to_thread(completion_call, fields, parts.tokenizer, parts.limits)
    return call, CompletionReply


def _check_model(name: str | None, parts: Parts) -> None:
    if name not in (None, parts.model):
        message = f"there is no model {name!r} here, only {parts.model!r}"
        raise ApiError(404, message, "model", "model_not_found")


class _Answers:
    """An endpoint that generates: one instance a path, as an ASGI application."""

    def __init__(self, parts: Parts, metrics: Metrics, begin: Begin) -> None:
        self._parts, self._metrics, self._begin = parts, metrics, begin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        clock = self._metrics.start(scope["path"])
        outcome = "500"
        try:
            work = partial(self._answer, receive=receive, clock=clock)
            outcome = await carry_out(scope, receive, send, work, as_api_error)
        finally:
            clock.end(outcome)

    async def _answer(self, request: Request, send: Send, receive: Receive, clock: Clock) -> None:
        parts = self._parts
        parts.service.check_open(1)  # before the body is read, which may take long
        async with parts.bodies.read(request) as body:
            call, form = await self._begin(body, parts)
        with parts.service.submit(call.requests, call.in_pieces, parts.timeout) as flight:
            samples = new_samples(call, parts.tokenizer)
            reply = form(call, samples, parts.tokenizer, parts.model)
            if call.stream:
                events = self._events(call, reply, flight, samples, clock)
                await while_connected(receive, send_events(request, send, events))
            else:
                whole = self._whole(reply, flight, samples)
                await send_json(request, send, await while_connected(receive, whole))

    async def _whole(self, reply: Reply, flight: Flight, samples: list[Sample]) -> dict[str, Any]:
        parts = [delta async for delta in deltas(flight, samples)]
        return reply.whole(joined(parts, len(samples)))

    async def _events(
        self, call: Call, reply: Reply, flight: Flight, samples: list[Sample], clock: Clock
    ) -> AsyncIterator[list[dict[str, Any]]]:
        yield reply.opening()
        async for delta in deltas(flight, samples):
            clock.first_token()
            if chunks := reply.chunks(delta):
                yield chunks
        if call.include_usage:
            yield [reply.usage_chunk()]


def _page() -> list[Route]:
    """The chat page and its files, read once."""
    folder = importlib.resources.files("openmimo.serving").joinpath("page")

    def route(path: str, name: str) -> Route:
        content = folder.joinpath(name).read_bytes()

        async def serve_file(request: Request) -> Response:
            return Response(content, headers={**PAGE_HEADERS, "Content-Type": PAGE[name]})

        return Route(path, serve_file)

    return [route("/", "index.html"), *(route(f"/page/{name}", name) for name in PAGE)]


def _json(content: dict[str, Any], status: int = 200) -> Response:
    return Response(encode(content), status, media_type="application/json")
