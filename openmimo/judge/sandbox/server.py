"""The fork server: a pre-warmed, locked-down interpreter that forks a process for each test.

Protocol. At start it sends `<I` length and JSON {"error": text | null}. Then for each request
(`REQUEST`, followed by its blobs) it answers `REPLY`, followed by its two files' bytes. A request
either loads a program or runs the loaded one on one test. It ends when its standard input closes.

Blobs go from the pipe straight into files in memory, and results from there to the pipe, so nothing
of a program or a test ever lies in the memory that children are forked from.
"""

import builtins
import functools
import gc
import importlib
import json
import math
import mmap
import os
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from . import child, lockdown, remote, seccomp

Body = Callable[..., int | None]
"""What a child does with the bytes of its blobs; returns its exit status (None: 0)."""

# What honest solutions import most: loaded once here, they cost a child nothing. The rest of the
# library still loads from its folder, unless it needs a system library. `threading` and `random`
# are left out because their own hooks at each fork take as long as the fork.
PRELOADED = (
    "_sitebuiltins", "array", "ast", "base64", "bisect", "calendar", "cmath", "collections.abc",
    "copy", "dataclasses", "datetime", "decimal", "fractions", "functools", "heapq", "io",
    "itertools", "json", "math", "numbers", "operator", "re", "string", "textwrap", "time",
    "typing", "unicodedata", "zlib",
)  # fmt: skip

# kind, CPU seconds, wall seconds, bytes of memory, bytes of output, sizes of up to four blobs
BLOBS = 4
REQUEST = struct.Struct("<BddQQ4Q")
# ending, wait status, CPU seconds, wall seconds, sizes of output and report
REPLY = struct.Struct("<BiddQQ")
LENGTH = struct.Struct("<I")

# Kinds of request, with their blobs.
LOAD = ord("L")  # Python source: compiled and kept
LOAD_COMPILED = ord("B")  # an executable file: kept
SCRIPT = ord("S")  # standard input
CALL = ord("C")  # JSON for child.run_call
ASSERT = ord("A")  # JSON for remote.run_tester
CHECK = ord("K")  # input, output of a candidate, answer (see CHECK_FILES), JSON arguments

# How many of the blobs a kind has.
BLOBS_OF = {LOAD: 1, LOAD_COMPILED: 1, SCRIPT: 1, CALL: 1, ASSERT: 1, CHECK: 4}

# How a checker names its files. The output is its standard input, too.
CHECK_FILES = ("/proc/self/fd/4", "/proc/self/fd/5", "/proc/self/fd/6")

# Endings.
EXITED = ord("X")  # by itself; the wait status says how
OUT_OF_CPU = ord("U")
OUT_OF_TIME = ord("T")  # of the wall clock
NOT_STARTED = ord("J")  # the child could not be set up: no fault of the candidate

_MINIMUM_FILE = 4096  # room for a report under any output limit
_COMPILE_SECONDS, _COMPILE_MEMORY = 10.0, 1 << 30
_STACK_SHARE = 4  # a compiled program's memory by this is the size of its stacks
_FIRST_FREE_FD = 10  # those below have fixed meanings in children
_PROGRAM_FD = 7  # of a compiled program, until it starts


class Child:
    """A forked process, its clock of CPU time, and an end that can be waited for."""

    def __init__(self, pid: int, cpu_seconds: float) -> None:
        self._pid, self._cpu_seconds = pid, cpu_seconds
        self.fd = os.pidfd_open(pid)
        # The clock of another process's CPU time: CPUCLOCK_SCHED of `pid`, see clock_getcpuclockid.
        self._cpu_clock = (~pid << 3) | 2

    def cpu_left(self) -> float:
        try:
            return self._cpu_seconds - time.clock_gettime(self._cpu_clock)
        except OSError:  # already a zombie
            return math.inf

    def reap(self) -> tuple[int, float]:
        """Kill the child if it still runs; its wait status and the CPU seconds it used."""
        os.kill(self._pid, signal.SIGKILL)
        os.close(self.fd)
        _, status, usage = os.wait4(self._pid, 0)
        return status, usage.ru_utime + usage.ru_stime


class Limits(NamedTuple):
    """Of one test: CPU and wall seconds, bytes of address space beyond the interpreter's own,
    bytes of output."""

    cpu_seconds: float
    wall_seconds: float
    memory_bytes: int
    output_bytes: int


class Result(NamedTuple):
    """How a child ended, and the files (descriptors) with its output and its report."""

    ending: int
    status: int
    cpu_seconds: float
    wall_seconds: float
    output: int
    report: int


class Server:
    """Answers requests until the supervisor closes the pipe."""

    def __init__(self, requests: int, replies: int, own_memory: int, unsafe: bool) -> None:
        self._requests, self._replies = requests, replies
        self._filters: dict[bool, seccomp.Filter] = {}
        if not unsafe:
            self._filters[False] = seccomp.Filter(seccomp.build(seccomp.CANDIDATE_CALLS))
            self._filters[True] = seccomp.Filter(seccomp.build(seccomp.COMPILED_CALLS))
        self._answers: dict[int, Callable[..., Result]] = {
            LOAD: self._load, LOAD_COMPILED: self._load_compiled, SCRIPT: self._script,
            CALL: self._call, ASSERT: self._assert, CHECK: self._check,
        }  # fmt: skip
        self._pid = os.getpid()
        self._cores = os.cpu_count() or 1
        self._program = _file()
        self._compiled = False
        self._own_memory = own_memory
        # Set by a child that is ready to run its program, then unmapped there: what a candidate
        # writes can never make its end look like a fault of the judge's.
        self._started = mmap.mmap(-1, mmap.PAGESIZE)

    def serve(self) -> None:
        """Answer requests until standard input closes."""
        header = bytearray(REQUEST.size)
        while _read_exactly(self._requests, memoryview(header)):
            kind, cpu, wall, memory, output, *sizes = REQUEST.unpack(header)
            blobs = [self._receive(size) for size in sizes[: BLOBS_OF[kind]]]
            result = self._answers[kind](Limits(cpu, wall, memory, output), *blobs)
            self._reply(result)
            for fd in {*blobs, result.output, result.report}:
                os.close(fd)

    def _receive(self, size: int) -> int:
        fd = _file()
        while size:
            moved = os.splice(self._requests, fd, size)
            if not moved:
                os._exit(0)  # the supervisor is gone
            size -= moved
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    def _reply(self, result: Result) -> None:
        files = (result.output, result.report)
        sizes = [os.fstat(fd).st_size for fd in files]
        header = REPLY.pack(*result[:4], *sizes)
        os.write(self._replies, LENGTH.pack(len(header) + sum(sizes)) + header)
        for fd, size in zip(files, sizes, strict=True):
            sent = 0
            while sent < size:
                sent += os.sendfile(self._replies, fd, sent, size - sent)

    def _load(self, limits: Limits, source: int) -> Result:
        os.close(self._program)
        self._program, self._compiled = _file(), False
        limits = Limits(_COMPILE_SECONDS, 3 * _COMPILE_SECONDS, _COMPILE_MEMORY, _COMPILE_MEMORY)
        report = _file()
        files = {3: report, 4: self._program}
        return self._run(limits, child.compile_program, [source], files, _file(), report)

    def _load_compiled(self, limits: Limits, binary: int) -> Result:
        os.close(self._program)
        # A file that is open for writing cannot be executed.
        self._program = os.open(f"/proc/self/fd/{binary}", os.O_RDONLY)
        self._compiled = True
        return Result(EXITED, 0, 0.0, 0.0, _file(), _file())

    def _script(self, limits: Limits, stdin: int) -> Result:
        return self._run_program(limits, ["solution"], stdin, ())

    def _check(
        self, limits: Limits, given: int, output: int, answer: int, arguments: int
    ) -> Result:
        argv = ["checker", *json.loads(child.read_all(arguments))]
        return self._run_program(limits, argv, output, (given, output, answer))

    def _run_program(
        self, limits: Limits, argv: list[str], stdin: int, files: tuple[int, ...]
    ) -> Result:
        output, report = _file(), _file()
        layout = {0: stdin, 1: output, 3: report} | dict(enumerate(files, start=4))
        if self._compiled:
            # Its standard error is the report: nothing else can say why it ended.
            layout |= {2: report, _PROGRAM_FD: self._program}
            return self._run(limits, lambda: _execute(argv, limits), [], layout, output, report)
        body = functools.partial(child.run_script, argv)
        return self._run(limits, body, [self._program], layout, output, report)

    def _call(self, limits: Limits, call: int) -> Result:
        report = _file()
        return self._run(
            limits, child.run_call, [self._program, call], {3: report}, _file(), report
        )

    def _assert(self, limits: Limits, job: int) -> Result:
        """Two children. The result is the tester's, with its report as the output; where the
        tester lost the candidate, it is the candidate's. The report is the candidate's."""
        requests, to_candidate = os.pipe()
        from_candidate, replies = os.pipe()
        verdict, report = _file(), _file()
        started = time.monotonic()
        candidate = self._fork(
            limits, remote.run_candidate, [self._program], {3: report, 4: replies, 5: requests}
        )
        tester = self._fork(
            limits, remote.run_tester, [job], {3: verdict, 4: to_candidate, 5: from_candidate}, 1
        )
        for fd in (requests, to_candidate, from_candidate, replies):
            os.close(fd)
        ending = self._wait([candidate, tester], tester, limits, started)
        if not (self._started[0] and self._started[1]):
            ending = NOT_STARTED
        lost = os.pread(verdict, 1, 0) == remote.LOST
        if lost and ending == EXITED:  # its end was first, but the clocks may still have the word
            ending = self._wait([candidate], candidate, limits, started)
        (candidate_status, cpu), (status, tester_cpu) = candidate.reap(), tester.reap()
        wall = time.monotonic() - started
        status = candidate_status if lost else status
        return Result(ending, status, cpu + tester_cpu, wall, verdict, report)

    def _run(
        self, limits: Limits, body: Body, blobs: list[int], files: dict[int, int], output: int,
        report: int,
    ) -> Result:  # fmt: skip
        """Fork one child, wait for its end; `output` and `report` are files that it may fill."""
        started = time.monotonic()
        process = self._fork(limits, body, blobs, files)
        ending = self._wait([process], process, limits, started)
        status, cpu = process.reap()
        if not self._started[0]:
            ending = NOT_STARTED
        return Result(ending, status, cpu, time.monotonic() - started, output, report)

    def _fork(
        self, limits: Limits, body: Body, blobs: list[int], files: dict[int, int], number: int = 0
    ) -> Child:
        """A locked-down child that runs `body` on the bytes of `blobs`, with `files` at the
        descriptors given, and no others open but the standard ones."""
        self._started[number] = 0
        pid = os.fork()
        if pid:
            return Child(pid, limits.cpu_seconds)
        status = 1
        try:
            lockdown.die_with_parent(self._pid)
            contents = [child.read_all(blob) for blob in blobs]
            for target, fd in files.items():
                os.dup2(fd, target)
            os.closerange(max(2, *files) + 1, lockdown.OPEN_FILES)
            cpu = math.ceil(limits.cpu_seconds) + 1
            memory = limits.memory_bytes + (0 if self._compiled else self._own_memory)
            lockdown.limit_resources(cpu, memory, max(limits.output_bytes + 2, _MINIMUM_FILE))
            if self._filters:
                self._filters[self._compiled].install()
            self._started[number] = 1
            self._started.close()
            status = body(*contents) or 0
        finally:
            os._exit(status)

    def _wait(self, children: list[Child], last: Child, limits: Limits, started: float) -> int:
        """Wait until `last` ends, or a clock runs out; returns the ending."""
        poll = select.poll()
        poll.register(self._requests, 0)  # reports only that the supervisor went away
        poll.register(last.fd, select.POLLIN)
        while True:
            cpu = min(process.cpu_left() for process in children)
            wall = started + limits.wall_seconds - time.monotonic()
            if cpu <= 0:
                return OUT_OF_CPU
            if wall <= 0:
                return OUT_OF_TIME
            # Threads on several cores use CPU time faster than the wall clock runs.
            milliseconds = max(2, math.ceil(1000 * min(wall, cpu / self._cores)))
            events = poll.poll(milliseconds)
            if any(fd == self._requests for fd, _ in events):
                os._exit(0)  # the children follow: they die with their parent
            if events:
                return EXITED


def _execute(argv: list[str], limits: Limits) -> None:
    for number in (signal.SIGXFSZ, signal.SIGPIPE):  # which the interpreter ignores
        signal.signal(number, signal.SIG_DFL)
    _, most = resource.getrlimit(resource.RLIMIT_STACK)
    stack = limits.memory_bytes // _STACK_SHARE  # of the main thread, and of each other one
    if most != resource.RLIM_INFINITY:
        stack = min(stack, most)
    resource.setrlimit(resource.RLIMIT_STACK, (stack, most))
    os.execve(f"/proc/self/fd/{_PROGRAM_FD}", argv, {})


def _file() -> int:
    return os.memfd_create("")


def _read_exactly(fd: int, view: memoryview) -> bool:
    while view:
        count = os.readv(fd, [view])
        if not count:
            return False
        view = view[count:]
    return True


def _standard_streams() -> None:
    """Fresh `sys.stdin` and so on. Those of the interpreter's start remember a pipe."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        errors = "backslashreplace" if name == "stderr" else "surrogateescape"
        stream = open(fd, "w" if fd else "r", closefd=False, errors=errors)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _site_builtins() -> None:
    """`exit` and `quit`, which the interpreter leaves out under -S."""
    for name in ("exit", "quit"):
        setattr(builtins, name, sys.modules["_sitebuiltins"].Quitter(name, "Ctrl-D"))


def main(arguments: list[str]) -> None:
    """Start with JSON arguments, and serve.

    {"unsafe": bool, "folders": of more libraries, "modules": to load from them, "writable": folders
    that programs may make files in}
    """
    options = json.loads(arguments[0])
    sys.path += options["folders"]
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3, _FIRST_FREE_FD):  # taken, so that no file of the server's gets them
        os.dup2(null, fd)
    requests, replies = os.dup(0), os.dup(1)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    for name in (*PRELOADED, *options["modules"]):
        importlib.import_module(name)
    _standard_streams()
    _site_builtins()
    with open("/proc/self/statm") as file:
        own_memory = int(file.read().split()[0]) * mmap.PAGESIZE
    error = None
    try:
        if not options["unsafe"]:
            lockdown.lock_server(options["writable"])
    except lockdown.LockdownError as failure:
        error = str(failure)
    message = json.dumps({"error": error}).encode()
    os.write(replies, LENGTH.pack(len(message)) + message)
    if error is None:
        gc.collect()
        gc.freeze()  # so that a child's collections do not copy the shared pages
        Server(requests, replies, own_memory, options["unsafe"]).serve()
