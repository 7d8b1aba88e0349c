"""Landlock by plain system calls: no file can be opened except below a few read-only folders."""

import ctypes
import os
import struct
from collections.abc import Sequence

# The same numbers on every architecture (they were added after the tables were unified).
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG, _RULE_PATH_BENEATH = 1, 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3

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
    """Rules that are opened while the folders can still be reached, and applied later."""

    def __init__(self, readable: Sequence[str]) -> None:
        version = abi()
        if version < 1:
            raise OSError("this kernel offers no landlock (Linux 5.13 or later, enabled)")
        attributes = _ruleset_attributes(version)
        size = ctypes.c_size_t(len(attributes))
        self._fd = _syscall(_CREATE_RULESET, attributes, size, ctypes.c_uint(0))
        for folder in readable:
            folder_fd = os.open(folder, os.O_PATH | os.O_CLOEXEC)
            rule = struct.pack("=Qi", _READ_FILE | _READ_DIR, folder_fd)
            kind = ctypes.c_int(_RULE_PATH_BENEATH)
            _syscall(_ADD_RULE, ctypes.c_int(self._fd), kind, rule, ctypes.c_uint(0))
            os.close(folder_fd)

    def apply(self) -> None:
        """Restrict this process and its children for ever; needs no_new_privs."""
        _syscall(_RESTRICT_SELF, ctypes.c_int(self._fd), ctypes.c_uint(0))
        os.close(self._fd)
