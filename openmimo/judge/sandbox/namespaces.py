"""Namespaces for the fork server, as a second wall: no network, other processes, IPC or host name.

Many hosts forbid them (Docker's default profile does), so nothing relies on them.
"""

import ctypes
import os
import signal

_NEW_IPC, _NEW_UTS, _NEW_USER, _NEW_PID, _NEW_NET = (
    0x08000000, 0x04000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
_ALL = _NEW_IPC | _NEW_UTS | _NEW_PID | _NEW_NET
_PR_SET_PDEATHSIG = 1


def enter() -> None:
    """Go on in a new process inside fresh namespaces, or in this one where the host forbids them.

    The first process of a PID namespace must be a child, so the caller forks: this process waits
    for that child and ends with it, and the child is killed if this process is.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if user == 0:
        failed = libc.unshare(_ALL)
    else:
        failed = libc.unshare(_NEW_USER | _ALL)
        if not failed:
            _map_self(user, group)
    if failed:
        return
    child = os.fork()
    if child:
        os.closerange(0, 64)  # the supervisor must see the pipes close when the child ends
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) % 256)
    libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))


def _map_self(user: int, group: int) -> None:
    """Be the same user inside a new user namespace as outside."""
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
