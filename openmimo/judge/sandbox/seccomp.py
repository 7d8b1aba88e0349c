"""A seccomp-BPF allow-list, installed with plain `prctl`.

An allow-list rather than a deny-list: a system call that a future kernel adds is refused until
somebody decides otherwise. Numbers are those of the kernel's `unistd.h` for each architecture.
"""

import ctypes
import os
import struct
from collections.abc import Iterable, Sequence

# name: (x86-64, aarch64); None where the architecture lacks the call.
_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    # input and output on what is already open, and reading below the library folders (landlock)
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "close": (3, 57),
    "close_range": (436, 436),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "stat": (4, None),
    "lstat": (6, None),
    "statx": (332, 291),
    "lseek": (8, 62),
    "open": (2, None),
    "openat": (257, 56),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    # memory
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "mprotect": (10, 226),
    "madvise": (28, 233),
    "brk": (12, 214),
    # the process's own signals, threads and clocks
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "set_tid_address": (218, 96),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "getcpu": (309, 168),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    "getitimer": (36, 102),
    "setitimer": (38, 103),
    "alarm": (37, None),
    # harmless questions
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getgroups": (115, 158),
    "getrusage": (98, 165),
    "getrlimit": (97, 163),
    "setrlimit": (160, 164),
    "sysinfo": (99, 179),
    "uname": (63, 160),
    "getrandom": (318, 278),
    # leaving
    "exit": (60, 93),
    "exit_group": (231, 94),
    "restart_syscall": (219, 128),
    # what the start-up code of C and C++ programs asks for
    "arch_prctl": (158, None),
    # allowed with some arguments only, for the fork server only, or to start a compiled program
    "clone": (56, 220),
    "fcntl": (72, 25),
    "prlimit64": (302, 261),
    "clone3": (435, 435),
    "wait4": (61, 260),
    "kill": (62, 129),
    "prctl": (157, 167),
    "seccomp": (317, 277),
    "memfd_create": (319, 279),
    "pidfd_open": (434, 434),
    "sendfile": (40, 71),
    "splice": (275, 76),
    "execve": (59, 221),
}
_SERVER_ONLY = (
    "clone", "wait4", "kill", "prctl", "seccomp", "memfd_create", "pidfd_open", "sendfile",
    "splice", "execve",
)  # fmt: skip
_CONDITIONAL = ("clone", "fcntl", "prlimit64", "clone3")
SERVER_CALLS = tuple(n for n in _NUMBERS if n not in _CONDITIONAL or n in _SERVER_ONLY)
# What a candidate loses on top.
CANDIDATE_REFUSALS = _SERVER_ONLY
# A compiled program's process has to start it. Afterwards it could start only what it wrote to its
# own output, under the same filter and limits.
COMPILED_REFUSALS = tuple(n for n in _SERVER_ONLY if n != "execve")

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_LOAD, _RETURN = 0x20, 0x06
_JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_ANY_BIT = 0x15, 0x35, 0x45
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_NUMBER_OFFSET, _ARCH_OFFSET = 0, 4
_CLONE_THREAD = 0x00010000
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC. Not F_SETOWN: it can aim a signal
# at another process.
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 1030)

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2


def supported(machine: str | None = None) -> bool:
    """Whether the table holds numbers for this architecture."""
    return (machine or os.uname().machine) in _ARCHITECTURES


def _argument_offset(index: int) -> int:
    # The low word (both architectures are little-endian); every argument tested here is an int.
    return 16 + 8 * index


def _op(code: int, k: int, jump_true: int = 0, jump_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, jump_true, jump_false, k)


_ALLOWED, _REFUSED = _op(_RETURN, _ALLOW), _op(_RETURN, _ERRNO | _EPERM)
# Calls that depend on an argument, or fail in another way.
_DECISIONS = {
    "clone": b"".join(
        (_op(_LOAD, _argument_offset(0)), _op(_JUMP_ANY_BIT, _CLONE_THREAD, 0, 1), _ALLOWED,
         _REFUSED)
    ),
    "fcntl": b"".join(
        (_op(_LOAD, _argument_offset(1)),
         *(_op(_JUMP_EQUAL, command, 0, 1) + _ALLOWED for command in _FCNTL_COMMANDS), _REFUSED)
    ),
    "prlimit64": b"".join(
        (_op(_LOAD, _argument_offset(0)), _op(_JUMP_EQUAL, 0, 0, 1), _ALLOWED, _REFUSED)
    ),
    "clone3": _op(_RETURN, _ERRNO | _ENOSYS),
}  # fmt: skip


def build(calls: Iterable[str], machine: str | None = None) -> bytes:
    """The BPF program that allows `calls`, some others with harmless arguments, and nothing else.

    Everything else fails with EPERM, except `clone3` (ENOSYS, so that libc falls back to `clone`,
    whose flags a filter can read). A foreign architecture kills the process.

    A binary search, as every system call of a candidate goes through it.
    """
    column, arch = _ARCHITECTURES[machine or os.uname().machine]
    decisions = _DECISIONS | dict.fromkeys(calls, _ALLOWED)
    numbers = {_NUMBERS[name][column]: code for name, code in decisions.items()}
    present = {number: code for number, code in numbers.items() if number is not None}
    edges = sorted({0, *present, *(number + 1 for number in present)})
    ranges: list[tuple[int, bytes]] = []  # the first number of each, and what happens there
    for edge in edges:
        code = present.get(edge, _REFUSED)
        if not ranges or ranges[-1][1] != code:
            ranges.append((edge, code))
    start = (_op(_LOAD, _ARCH_OFFSET), _op(_JUMP_EQUAL, arch, 1, 0), _op(_RETURN, _KILL))
    return b"".join((*start, _op(_LOAD, _NUMBER_OFFSET), _search(ranges)))


def build_refusals(calls: Iterable[str], machine: str | None = None) -> bytes:
    """The BPF program that refuses `calls`, but for `clone` of threads, and allows all others.

    On top of `build(SERVER_CALLS)`, which a child inherits: the kernel takes the stricter answer.
    The kernel compiles a new filter and tries it on every system call there is, once a test: this
    one takes a third of the time of the whole allow-list.
    """
    column, _ = _ARCHITECTURES[machine or os.uname().machine]
    program = _op(_LOAD, _NUMBER_OFFSET)
    for name in calls:
        number = _NUMBERS[name][column]
        if number is not None:
            decision = _DECISIONS.get(name, _REFUSED)
            program += _op(_JUMP_EQUAL, number, 0, len(decision) // 8) + decision
    return program + _ALLOWED


def _search(ranges: Sequence[tuple[int, bytes]]) -> bytes:
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    below, above = _search(ranges[:middle]), _search(ranges[middle:])
    return _op(_JUMP_GREATER_EQUAL, ranges[middle][0], len(below) // 8, 0) + below + above


class Filter:
    """A BPF program laid out for the kernel once, so that installing it costs one system call."""

    class _Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    def __init__(self, program: bytes) -> None:
        self._bytes = ctypes.create_string_buffer(program, len(program))
        self._program = self._Program(len(program) // 8, ctypes.addressof(self._bytes))
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl
        address, none = ctypes.addressof(self._program), ctypes.c_ulong(0)
        self._arguments = (
            _PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.c_ulong(address), none,
            none,
        )  # fmt: skip

    def install(self) -> None:
        """Apply to this thread and all it starts, for ever; needs no_new_privs. OSError if the
        kernel refuses."""
        if self._prctl(*self._arguments):
            raise OSError(ctypes.get_errno(), "cannot install a seccomp filter")
