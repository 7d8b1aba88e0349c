"""Everything the fork server gives up before it sees a candidate, and each child once more.

Only unprivileged means are needed, so it works in a plain container; namespaces come on top where
the host allows them. Whatever cannot be given up raises `LockdownError`: the judge then refuses to
run.
"""

import ctypes
import os
import resource
import signal
import stat
import struct
import sys
from collections.abc import Sequence

# By name: a child copies every page that it touches, and each look-up of an attribute is some more.
from os import getppid

from . import landlock, namespaces, seccomp

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_CAPSET = {"x86_64": 126, "aarch64": 91}
_SOCKET = {"x86_64": 41, "aarch64": 198}
_CAPABILITY_VERSION_3 = 0x20080522
_NOBODY = 65534
OPEN_FILES = 64
LARGEST_FILE = 1 << 30  # of the server, which holds inputs and outputs as files in memory
# Once: the children inherit them ready to call.
_LIBC = ctypes.CDLL(None, use_errno=True)
_libc_prctl = getattr(_LIBC, "prctl", None)  # Linux only
_DIE_WITH_PARENT = (_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), *(ctypes.c_ulong(0),) * 3)


class LockdownError(Exception):
    """A protection could not be installed; the message says which one."""


def library_folders() -> list[str]:
    """The folders the interpreter imports from: all that a candidate may read."""
    return [path for path in sys.path if os.path.isdir(path)]


def _prctl(option: int, value: int) -> None:
    none = ctypes.c_ulong(0)
    if _LIBC.prctl(option, ctypes.c_ulong(value), none, none, none):
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def _readable_by_others(folder: str) -> bool:
    path = os.path.realpath(folder)
    while os.stat(path).st_mode & stat.S_IXOTH:
        if path == "/":
            return True
        path = os.path.dirname(path)
    return False


def drop_privileges(readable: list[str]) -> None:
    """Lose every capability and, as root, become nobody.

    Where the interpreter lives in a folder that only root may enter, nobody could import nothing,
    so the user stays root, without any capability and with landlock deciding what opens.
    """
    if os.geteuid() == 0 and all(map(_readable_by_others, readable)):
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    if _LIBC.syscall(ctypes.c_long(_CAPSET[os.uname().machine]), header, bytes(24)):
        raise OSError(ctypes.get_errno(), "cannot drop the capabilities")


def lock_server(writable: Sequence[str] = ()) -> None:
    """Lock the fork server down for ever. LockdownError if any layer is missing or ineffective.

    `writable` folders are those that programs may make files in.
    """
    if not seccomp.supported():
        raise LockdownError(f"there is no system call table for {os.uname().machine}")
    folders = library_folders()
    try:
        rules = landlock.Ruleset(folders, writable=writable)
        namespaces.enter()
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        drop_privileges(folders)
        rules.apply()
        _prctl(_PR_SET_DUMPABLE, 0)  # no ptrace, no /proc/PID/mem for processes of the same user
        for limit, value in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, LARGEST_FILE),
            (resource.RLIMIT_NOFILE, OPEN_FILES),
        ):
            resource.setrlimit(limit, (value, value))
        seccomp.Filter(seccomp.build(seccomp.SERVER_CALLS)).install()
    except OSError as error:
        raise LockdownError(f"the sandbox cannot be set up: {error.strerror or error}") from error
    _check_effective()


def lock_compiler(executable: Sequence[str], writable: Sequence[str]) -> None:
    """Give up all but reading and executing a compiler's files and writing its results.

    No seccomp, as a compiler starts other programs: it is trusted, and only its input is not.
    """
    try:
        rules = landlock.Ruleset((), executable, writable)
        namespaces.enter()
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        drop_privileges([*executable, *writable])
        rules.apply()
    except OSError as error:
        raise LockdownError(f"the sandbox cannot be set up: {error.strerror or error}") from error


def _check_effective() -> None:
    """Try what must now fail: a layer that installs without effect must not go unnoticed."""
    try:
        os.listdir("/")
    except PermissionError:
        pass
    else:
        raise LockdownError("landlock was installed but files can still be read")
    af_unix, stream = ctypes.c_long(1), ctypes.c_long(1)
    number = ctypes.c_long(_SOCKET[os.uname().machine])
    if _LIBC.syscall(number, af_unix, stream, ctypes.c_long(0)) >= 0:
        raise LockdownError("seccomp was installed but sockets can still be opened")


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies; leave at once if it has."""
    if _libc_prctl and _libc_prctl(*_DIE_WITH_PARENT):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if getppid() != parent:
        os._exit(1)
