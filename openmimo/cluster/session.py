"""The connection to a Ray cluster: one for all pools of a process."""

import logging
import os
import signal
import socket
import threading
from typing import Any

from openmimo.errors import UserError

_LOCAL_STORE_BYTES = 128 << 20  # programs, tests and verdicts pass through it, nothing stays
_KNOCK_SECONDS = 10.0
_lock = threading.Lock()
_users = 0
_ours = False  # whether the connection was made here, so that it may be ended here


def ray() -> Any:
    """Ray's module. UserError where it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "a cluster needs Ray: pip install 'openmimo[ray]', or judge on this machine alone"
        ) from error
    return ray


def join(address: str = "", cpus: int = 1) -> None:
    """Connect to a cluster, unless this process is connected; each call needs one of `leave`.

    Args:
        address: `host:port` of the head node, for a process on one of the nodes, or `auto` for the
            cluster of this machine. Empty: what RAY_ADDRESS says, else a cluster of this machine
            alone is started, which ends with the process.
        cpus: what a cluster that is started has at least, whatever this machine has.

    Raises:
        UserError: Ray is not installed, there is no cluster at `address`, or it is a `ray://` one.
    """
    global _users, _ours
    module = ray()
    with _lock:
        if not module.is_initialized():
            before = signal.getsignal(signal.SIGTERM)
            _connect(module, address or os.environ.get("RAY_ADDRESS", ""), cpus)
            if before and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)  # Ray has replaced it
            _ours = True
        _users += 1


def leave() -> None:
    """End the connection if nobody uses it any more and `join` made it."""
    global _users, _ours
    with _lock:
        _users -= 1
        if not _users and _ours:
            _ours = False
            ray().shutdown()


def _connect(module: Any, address: str, cpus: int) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not address:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to Ray's makers
        module.init(
            address="local",
            num_cpus=max(cpus, os.cpu_count() or 1),
            include_dashboard=False,
            object_store_memory=_LOCAL_STORE_BYTES,
            **quiet,
        )
        return
    if address.startswith("ray://"):
        raise UserError(
            f"{address} is the address of a Ray client server: run on a node of the cluster, and "
            "give the head node's host:port, or auto"
        )
    try:
        _knock(address)
        module.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"no Ray cluster at {address}: {error}. Start one with `ray start --head`, or correct "
            "the address (RAY_ADDRESS); if it asks for a token, set RAY_AUTH_MODE=token here too"
        ) from error


def _knock(address: str) -> None:
    """OSError if nobody listens at `host:port`: Ray itself would end this process."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_SECONDS).close()
