"""`mimo judge-serve`: from its settings to a listening service, and its orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass

from openmimo.errors import UserError
from openmimo.judge.cases import Limits
from openmimo.judge.judge import Judge
from openmimo.judge.service.app import Parts, make_app
from openmimo.judge.service.desk import Desk
from openmimo.judge.service.metrics import Metrics
from openmimo.web.http import Bodies
from openmimo.web.listening import Listening, bind, check_address, stop_signal, url_of

STOP_SECONDS = 5.0
"""For the replies to be sent once all solutions are judged."""


@dataclass(frozen=True)
class ServiceSettings:
    """How to serve a judge.

    host, port: to listen at; port 0 takes a free one.
    api_key: clients must send it; None: none is asked for.
    workers: solutions judged at once.
    max_queue: solutions taken at once, those that are being judged included.
    max_body_bytes: of a request.
    max_seconds, max_memory_mb, max_output_bytes: what a test may ask for at most; the seconds are
        of CPU time and of waiting alike.
    drain: seconds that requests get after SIGTERM or Ctrl-C.
    unsafe: judge without the sandbox.
    """

    host: str = "127.0.0.1"
    port: int = 8001
    api_key: str | None = None
    workers: int = 1
    max_queue: int = 1024
    max_body_bytes: int = 32_000_000
    max_seconds: float = 600.0
    max_memory_mb: int = 4096
    max_output_bytes: int = 64 << 20
    drain: float = 30.0
    unsafe: bool = False


def serve(settings: ServiceSettings) -> None:
    """Serve a judge until SIGTERM or Ctrl-C.

    Requests then get `settings.drain` seconds to end; a second signal ends the process at once.

    Raises:
        UserError: impossible settings, the port is taken, or the sandbox cannot be set up.
    """
    _check(settings)
    listener = bind(settings.host, settings.port)
    with contextlib.closing(listener), Judge(settings.workers, unsafe=settings.unsafe) as judge:
        asyncio.run(_serve(judge, listener, settings))


_LEAST = {
    "workers": 1, "max_queue": 1, "max_body_bytes": 1000, "max_seconds": 1, "max_memory_mb": 1,
    "max_output_bytes": 1, "drain": 0,
}  # fmt: skip


def _check(settings: ServiceSettings) -> None:
    for name, lowest in _LEAST.items():
        value = getattr(settings, name)
        if not value >= lowest:
            option = name.replace("_", "-")
            raise UserError(f"--{option} is {value}; it must be at least {lowest}")
    check_address(settings.port, settings.api_key)


async def _serve(judge: Judge, listener: socket.socket, settings: ServiceSettings) -> None:
    metrics = Metrics(judge.stats)
    desk = Desk(judge, settings.max_queue, metrics)
    seconds = settings.max_seconds
    most = Limits(seconds, seconds, settings.max_memory_mb, settings.max_output_bytes)
    parts = Parts(judge, desk, metrics, Bodies(settings.max_body_bytes), most, settings.unsafe)
    server = Listening(make_app(parts, settings.api_key), listener, STOP_SECONDS)

    async def end() -> None:
        await stop_signal("running requests")
        await desk.drain(settings.drain)

    ending = asyncio.create_task(end())
    print(f"judge at {url_of(listener)}", flush=True)
    key = "asked for" if settings.api_key else "none"
    sandbox = "NO SANDBOX" if settings.unsafe else "sandboxed"
    print(
        f"  {settings.workers} workers, {sandbox}, at most {settings.max_queue} solutions, API key "
        f"{key}; Ctrl-C stops",
        flush=True,
    )
    await server.run_until(ending)
