"""A server's life: its address, its key, the signals that end it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from openmimo.errors import UserError
from openmimo.web.http import Protocol


def check_address(port: int, key: str | None) -> None:
    """UserError for a port that there is not, or an API key that no client could send."""
    if not 0 <= port < 2**16:
        raise UserError(f"--port is {port}; it must lie in 0..65535")
    if key is not None and not key.strip():
        raise UserError("the API key is empty: give one, or leave --api-key out")
    if key is not None and (key != key.strip() or not key.isprintable()):
        # HTTP drops white space around a header's value.
        raise UserError(
            "the API key has white space around it, or control characters: leave them out"
        )


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address, not yet listening.

    Raises:
        UserError: the address is taken, not this machine's, or not permitted.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise _cannot_listen(f"{host}:{port}", error) from error
    return listener


def _cannot_listen(address: str, error: OSError) -> UserError:
    return UserError(f"cannot listen at {address}: {error}; choose another --host or --port")


def url_of(listener: socket.socket) -> str:
    """The URL of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Listening:
    """uvicorn, serving `app` at a bound socket from now on, in a task of the running loop.

    stop_seconds: for the replies to be sent once it is to stop.

    Raises:
        UserError: another program has taken the port since `bind`.
    """

    def __init__(self, app: ASGIApp, listener: socket.socket, stop_seconds: float) -> None:
        try:
            listener.listen(1024)
        except OSError as error:
            raise _cannot_listen(url_of(listener), error) from error
        config = uvicorn.Config(
            app,
            http=Protocol,
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            # Longer than the pools of clients keep a connection, or the two would race.
            timeout_keep_alive=75,
            timeout_graceful_shutdown=int(stop_seconds),
        )
        self._server = _Server(config)
        self._running = asyncio.create_task(self._server.serve(sockets=[listener]))

    async def run_until(self, ending: asyncio.Task[Any]) -> None:
        """Return once `ending` has ended and the replies are sent."""
        await asyncio.wait({self._running, ending}, return_when=asyncio.FIRST_COMPLETED)
        self._server.should_exit = True
        await self._running


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are not uvicorn's: it would close the port before the requests have ended."""
        yield


async def stop_signal(work: str) -> None:
    """Return at the first SIGTERM or SIGINT; a second one ends the process at once.

    work: what the server still waits for, in words.
    """
    signalled = asyncio.Event()

    def on_signal(number: int) -> None:
        if signalled.is_set():
            os._exit(128 + number)
        signalled.set()
        print(f"mimo: stopping once {work} have ended; again to stop now", flush=True)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    await signalled.wait()
