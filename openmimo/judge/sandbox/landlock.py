"""Landlock by plain system calls: no file can be opened except below a few read-only folders."""

import ctypes
import os
import struct
from collections.abc import Sequence

# The same numbers on every architecture (they were added after the tables were unified).
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG, _RULE_PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_FILE, _MAKE_FILE, _TRUNCATE = 1 << 5, 1 << 8, 1 << 14
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE  # what a rule on a file may hold

# How many file-system rights each ABI version knows, in bit order; later versions know 16.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_LATEST_FILE_RIGHTS = 16
_NETWORK_ABI, _NETWORK_RIGHTS = 4, 0b11  # bind and connect TCP
_SCOPE_ABI, _SCOPES = 6, 0b11  # abstract unix sockets and signals reach no other domain


def _syscall(number: int, *arguments: object) -> int:
    call = ctypes.CDLL(None, use_errno=True).syscall
    result: int = call(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def abi() -> int:
    """The kernel's landlock ABI version, 0 where landlock is missing, disabled or forbidden."""
    try:
        flags = ctypes.c_uint(_VERSION_FLAG)
        return _syscall(_CREATE_RULESET, ctypes.c_void_p(None), ctypes.c_size_t(0), flags)
    except OSError:
        return 0


def _ruleset_attributes(version: int) -> bytes:
    rights = (1 << _FILE_RIGHTS.get(version, _LATEST_FILE_RIGHTS)) - 1
    attributes = struct.pack("=Q", rights)
    if version >= _NETWORK_ABI:
        attributes += struct.pack("=Q", _NETWORK_RIGHTS)
    if version >= _SCOPE_ABI:
        attributes += struct.pack("=Q", _SCOPES)
    return attributes


class Ruleset:
    """Rules that are opened while the folders can still be reached, and applied later.

    Each names folders, or single files, and holds for all below. What may be executed or written
    may also be read; files may be made in writable folders, and nothing else.
    """

    def __init__(
        self,
        readable: Sequence[str],
        executable: Sequence[str] = (),
        writable: Sequence[str] = (),
    ) -> None:
        version = abi()
        if version < 1:
            raise OSError("this kernel offers no landlock (Linux 5.13 or later, enabled)")
        attributes = _ruleset_attributes(version)
        size = ctypes.c_size_t(len(attributes))
        self._fd = _syscall(_CREATE_RULESET, attributes, size, ctypes.c_uint(0))
        known = (1 << _FILE_RIGHTS.get(version, _LATEST_FILE_RIGHTS)) - 1
        read = _READ_FILE | _READ_DIR
        write = read | _WRITE_FILE | _REMOVE_FILE | _MAKE_FILE | _TRUNCATE
        for paths, rights in ((readable, read), (executable, read | _EXECUTE), (writable, write)):
            for path in paths:
                self._allow(path, rights & known)

    def _allow(self, path: str, rights: int) -> None:
        path_fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not os.path.isdir(path):
            rights &= _OF_FILES
        rule = struct.pack("=Qi", rights, path_fd)
        kind = ctypes.c_int(_RULE_PATH_BENEATH)
        _syscall(_ADD_RULE, ctypes.c_int(self._fd), kind, rule, ctypes.c_uint(0))
        os.close(path_fd)

    def apply(self) -> None:
        """Restrict this process and its children for ever; needs no_new_privs."""
        _syscall(_RESTRICT_SELF, ctypes.c_int(self._fd), ctypes.c_uint(0))
        os.close(self._fd)
