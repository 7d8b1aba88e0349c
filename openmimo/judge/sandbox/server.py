"""The fork server: one pre-warmed, locked-down interpreter that forks once for a solution.

Protocol, both ways `<I` length and a message. At start it sends JSON {"error": text | null}. Then
for each request (`<I` number of tests, then the JSON of `candidate.run`) it answers one frame
(`candidate.FRAME`) for each test, in order, with STARTED and DEFINED frames in between. It
ends when its standard input closes.
"""

import gc
import importlib
import json
import math
import mmap
import os
import select
import signal
import struct
import time
from typing import NamedTuple

from . import candidate, lockdown, seccomp

# What honest solutions import most: loaded once here, they cost a child nothing. The rest of the
# library still loads from its folder, unless it needs a system library. `threading` and `random`
# are left out because their own hooks at each fork take as long as the fork.
PRELOADED = (
    "array", "ast", "base64", "bisect", "calendar", "cmath", "collections.abc", "copy",
    "dataclasses", "datetime", "decimal", "fractions", "functools", "heapq", "io", "itertools",
    "json", "math", "numbers", "operator", "re", "string", "textwrap", "time", "typing",
    "unicodedata", "zlib",
)  # fmt: skip

_LENGTH = struct.Struct("<I")
_DEFINITION_KINDS = (
    candidate.DEFINED, candidate.UNPARSEABLE, candidate.ERROR, candidate.MEMORY,
)  # fmt: skip
_RESULT_KINDS = (
    candidate.VALUE, candidate.OTHER, candidate.ERROR, candidate.OVERSIZE, candidate.MEMORY,
)  # fmt: skip
_MINIMUM_PAYLOAD = 256  # room for an error's text under any output limit


class Limits(NamedTuple):
    """Limits of one test (CPU and wall seconds, output bytes) and of one child (memory bytes)."""

    cpu_seconds: float
    wall_seconds: float
    memory_bytes: int
    output_bytes: int
    max_timeouts: int  # 0: no limit


class OutOfTime(Exception):
    """A test used up its CPU or wall time."""


class Child:
    """One forked candidate: reads its frames against the clock of the running test."""

    def __init__(self, pid: int, results: int, supervisor: int, limits: Limits) -> None:
        self.pid, self.results, self._limits = pid, results, limits
        # The clock of another process's CPU time: CPUCLOCK_SCHED of `pid`, see clock_getcpuclockid.
        self._cpu_clock = (~pid << 3) | 2
        self._poll = select.poll()
        self._poll.register(results, select.POLLIN)
        self._poll.register(supervisor, 0)  # reports only that the supervisor went away
        self._supervisor = supervisor
        self._ahead = 0  # bytes read beyond the last frame
        self._restart_clock()

    def _cpu(self) -> float:
        try:
            return time.clock_gettime(self._cpu_clock)
        except OSError:  # already a zombie
            return 0.0

    def _restart_clock(self) -> None:
        self._cpu_start, self._wall_start = self._cpu(), time.monotonic()

    def _wait(self) -> None:
        """Return when there is something to read (or the end of it); raise OutOfTime."""
        while True:
            wall = self._wall_start + self._limits.wall_seconds - time.monotonic()
            left = min(wall, self._cpu_start + self._limits.cpu_seconds - self._cpu())
            if left <= 0:
                raise OutOfTime
            events = dict(self._poll.poll(math.ceil(left * 1000)))
            if self._supervisor in events:
                os._exit(0)  # the child follows: it dies with its parent
            if events:
                return

    def read_frame(self, view: memoryview, kinds: tuple[int, ...]) -> tuple[int, int]:
        """Read one frame to the start of `view`; return its kind and size.

        What arrives beyond it stays in `view` as the start of the next frame, so the caller must
        go on where this frame ends. OutOfTime; EOFError if the stream ends; ValueError if it is
        malformed.
        """
        self._fill(view, candidate.FRAME.size)
        kind, length = candidate.FRAME.unpack_from(view)
        if kind not in kinds or length > max(self._limits.output_bytes, _MINIMUM_PAYLOAD):
            raise ValueError
        size = candidate.FRAME.size + length
        self._fill(view, size)
        self._ahead -= size
        self._restart_clock()
        return kind, size

    def _fill(self, view: memoryview, size: int) -> None:
        while self._ahead < size:
            self._wait()
            count = os.readv(self.results, [view[self._ahead :]])
            if not count:
                raise EOFError
            self._ahead += count

    def reap(self) -> int:
        """Kill the child and return its wait status."""
        os.close(self.results)
        os.kill(self.pid, signal.SIGKILL)
        return os.waitpid(self.pid, 0)[1]


class Reply:
    """The answer's bytes, in a private mapping that is unmapped afterwards.

    Nothing of a solution stays in the server's heap, where a later candidate could read it.
    """

    def __init__(self, tests: int, output_bytes: int) -> None:
        # Room for a result and, where the test needs a fork of its own, STARTED and DEFINED.
        frame = 3 * candidate.FRAME.size + max(output_bytes, _MINIMUM_PAYLOAD)
        size = _LENGTH.size + tests * frame
        self._map = _private_map(size)
        self._view = memoryview(self._map)
        self._end = _LENGTH.size

    def tail(self) -> memoryview:
        return self._view[self._end :]

    def keep(self, size: int) -> None:
        self._end += size

    def add(self, kind: int, payload: bytes = b"") -> None:
        frame = candidate.FRAME.pack(kind, len(payload)) + payload
        self.tail()[: len(frame)] = frame
        self.keep(len(frame))

    def send(self, fd: int) -> None:
        self._view[: _LENGTH.size] = _LENGTH.pack(self._end - _LENGTH.size)
        rest = self._view[: self._end]
        while rest:
            rest = rest[os.write(fd, rest) :]

    def close(self) -> None:
        self._view.release()
        self._map.close()


class Server:
    """Answers requests until the supervisor closes the pipe."""

    def __init__(self, requests: int, replies: int, limits: Limits, unsafe: bool) -> None:
        self._requests, self._replies, self._limits = requests, replies, limits
        self._filter = None if unsafe else seccomp.Filter(seccomp.build(seccomp.CANDIDATE_CALLS))

    def _fork(self, request: memoryview, reply: Reply, first: int, tests: int) -> Child:
        results, write_end = os.pipe()
        server = os.getpid()
        pid = os.fork()
        if pid:
            os.close(write_end)
            return Child(pid, results, self._requests, self._limits)
        try:
            lockdown.die_with_parent(server)
            for fd in (self._requests, self._replies, results):
                os.close(fd)
            reply.close()
            seconds = math.ceil((tests - first + 1) * self._limits.cpu_seconds) + 1
            lockdown.limit_resources(seconds, self._limits.memory_bytes)
            if self._filter:
                self._filter.install()
            candidate.run(bytes(request), first, write_end, self._limits.output_bytes)
        finally:
            os._exit(0)

    def _run_child(
        self, request: memoryview, reply: Reply, first: int, tests: int
    ) -> tuple[int, bool]:
        """Fork, and answer the tests from `first` on until they are done or the child fails.

        A failure of the running test answers that test, a failure of the program's definition all
        that remain. Returns the number of the next unanswered test, and whether time ran out.
        """
        child = self._fork(request, reply, first, tests)
        index, started, defined, ending = first, False, False, None
        try:
            _, size = child.read_frame(reply.tail(), (candidate.STARTED,))
            started = True
            reply.keep(size)
            kind, size = child.read_frame(reply.tail(), _DEFINITION_KINDS)
            defined = kind == candidate.DEFINED
            if defined:
                reply.keep(size)
            else:
                ending = (kind, bytes(reply.tail()[candidate.FRAME.size : size]))
            while defined and index < tests and kind != candidate.MEMORY:
                kind, size = child.read_frame(reply.tail(), _RESULT_KINDS)
                reply.keep(size)
                index += 1
        except OutOfTime:
            ending = (candidate.TIMEOUT, b"")
        except ValueError:
            ending = (candidate.CRASH, b"malformed result stream")
        except EOFError:
            ending = (candidate.CRASH, b"")
        status = child.reap()
        if ending:
            kind, detail = ending if started else (candidate.JUDGE_ERROR, b"no candidate started")
            detail = detail or _describe_death(kind, status)
            answered = 1 if defined else tests - index
            for _ in range(answered):
                reply.add(kind, detail)
            index += answered
        return index, bool(ending) and kind == candidate.TIMEOUT

    def _answer(self, request: memoryview, tests: int) -> None:
        reply = Reply(tests, self._limits.output_bytes)
        index = timeouts = 0
        while index < tests:
            if self._limits.max_timeouts and timeouts >= self._limits.max_timeouts:
                reply.add(candidate.TIMEOUT, b"not run: too many tests timed out before")
                index += 1
                continue
            index, timed_out = self._run_child(request, reply, index, tests)
            timeouts += timed_out
        reply.send(self._replies)
        reply.close()

    def serve(self) -> None:
        """Answer requests until standard input closes."""
        header = bytearray(2 * _LENGTH.size)
        while _read_exactly(self._requests, memoryview(header)):
            length, tests = struct.unpack("<II", header)
            # A private mapping, like the reply's: gone from memory once the solution is judged.
            with _private_map(length) as request, memoryview(request) as view:
                if not _read_exactly(self._requests, view):
                    return
                self._answer(view, tests)


def _private_map(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _read_exactly(fd: int, view: memoryview) -> bool:
    while view:
        count = os.readv(fd, [view])
        if not count:
            return False
        view = view[count:]
    return True


def _describe_death(kind: int, status: int) -> bytes:
    if kind != candidate.CRASH:
        return b""
    if os.WIFSIGNALED(status):
        return f"killed by signal {os.WTERMSIG(status)}".encode()
    return f"ended with exit status {os.WEXITSTATUS(status)}".encode()


def main(arguments: list[str]) -> None:
    """Start with JSON arguments {"unsafe": bool, "limits": [...]} (see `Limits`), and serve."""
    options = json.loads(arguments[0])
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):  # all that a candidate has; what it prints goes nowhere
        os.dup2(null, fd)
    os.close(null)
    for name in PRELOADED:
        importlib.import_module(name)
    error = None
    try:
        if not options["unsafe"]:
            lockdown.lock_server()
    except lockdown.LockdownError as failure:
        error = str(failure)
    message = json.dumps({"error": error}).encode()
    os.write(replies, _LENGTH.pack(len(message)) + message)
    if error is None:
        gc.collect()
        gc.freeze()  # so that a child's collections do not copy the shared pages
        Server(requests, replies, Limits(*options["limits"]), options["unsafe"]).serve()
