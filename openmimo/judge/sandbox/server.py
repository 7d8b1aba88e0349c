"""The fork server: a pre-warmed, locked-down interpreter that forks a process for each test.

Protocol. At start it sends `<I` length and JSON {"error": text | null}. Then for each request
(`REQUEST`, followed by its blobs) it answers `REPLY`, followed by its two files' bytes. A request
either loads a program or runs the loaded one on one test. It ends when its standard input closes.

Blobs go from the pipe straight into files in memory, and results from there to the pipe, so nothing
of a program or a test ever lies in the memory that children are forked from.
"""

import functools
import gc
import json
import math
import os
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Callable

# By name: a look-up of an attribute costs a child some pages more.
from os import SEEK_CUR, _exit, closerange, dup2, lseek
from resource import RLIMIT_AS, RLIMIT_CPU, RLIMIT_FSIZE, setrlimit
from typing import Any, NamedTuple

from . import child, lockdown, remote, seccomp
from .child import read_all
from .lockdown import LARGEST_FILE, OPEN_FILES, die_with_parent

Body = Callable[..., int | None]
"""What a child does with the bytes of its blobs; returns its exit status (None: 0)."""
Files = tuple[tuple[int, int], ...]
HardLimits = tuple[tuple[int, tuple[int, int]], ...]

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
# Reads and prints as most programs do; often enough to be specialised (PEP 659).
_REHEARSAL = """
import sys
a, b = map(int, input().split())
for line in sys.stdin: print(*(int(x) + a for x in line.split()), sep=" ", end="\\n")
print(sys.stdin.read(), f"{b:.3f}", [a], " ".join(str(i) for i in range(b)))
"""
_REHEARSAL_INPUT, _REHEARSALS = b"1 2\n3 4\n", 10
_SOLUTION = ["solution"]  # the arguments of a program


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
    """Answers requests until the supervisor closes the pipe.

    The path of a test is kept short, on both sides of the fork: each page that either of them
    writes to afterwards costs a fault and mostly a copy, and to use an object is to write to it
    (its reference count). See docs/judge.md, "Speed".
    """

    def __init__(self, requests: int, replies: int, own_memory: int, unsafe: bool) -> None:
        self._requests, self._replies = requests, replies
        self._filters: dict[bool, seccomp.Filter] = {}
        if not unsafe:
            for compiled, refused in (
                (False, seccomp.CANDIDATE_REFUSALS), (True, seccomp.COMPILED_REFUSALS),
            ):  # fmt: skip
                self._filters[compiled] = seccomp.Filter(seccomp.build_refusals(refused))
        self._answers: dict[int, Callable[..., Result]] = {
            LOAD: self._load, LOAD_COMPILED: self._load_compiled, SCRIPT: self._script,
            CALL: self._call, ASSERT: self._assert, CHECK: self._check,
        }  # fmt: skip
        self._pid = os.getpid()
        self._cores = os.cpu_count() or 1
        self._program = _file()
        self._compiled = False
        self._own_memory = own_memory
        self._limits: Limits | None = None  # of the last child
        self._hard_limits: HardLimits = ()  # the same, for `setrlimit`
        # The offset of a child's file moves when it is ready to run its program, and the file is
        # closed for it then: what a candidate does can never make its end look like a fault of the
        # judge's. One for each of two children: two at once may move one offset by one.
        self._ready = (_file(), _file())
        self._poll = select.poll()
        self._poll.register(requests, 0)  # reports only that the supervisor went away

    def serve(self) -> None:
        """Answer requests until standard input closes."""
        while header := _read_header(self._requests):
            kind, cpu, wall, memory, output, *sizes = REQUEST.unpack(header)
            blobs = list(map(self._receive, sizes[: BLOBS_OF[kind]]))
            result = self._answers[kind](Limits(cpu, wall, memory, output), *blobs)
            self._reply(result)
            for fd in {*blobs, result.output, result.report}:
                os.close(fd)

    def rehearse(self) -> None:
        """Run a program of our own here, so that the interpreter's caches (of attributes, of
        specialised instructions) are full before the first fork, not anew in each child: 17 page
        faults of a test less."""
        stdin = _file()
        os.write(stdin, _REHEARSAL_INPUT)
        os.dup2(stdin, 0)
        for _ in range(_REHEARSALS):
            os.lseek(stdin, 0, os.SEEK_SET)
            child.rehearse(_REHEARSAL)
            child.standard_streams()
        os.dup2(2, 0)
        os.close(stdin)

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
        *numbers, output, report = result
        output_size, report_size = _size(output), _size(report)
        header = REPLY.pack(*numbers, output_size, report_size)
        length = LENGTH.pack(len(header) + output_size + report_size)
        os.write(self._replies, length + header)
        self._send(output, output_size)
        self._send(report, report_size)

    def _send(self, fd: int, size: int) -> None:
        sent = 0
        while sent < size:
            sent += os.sendfile(self._replies, fd, sent, size - sent)

    def _load(self, limits: Limits, source: int) -> Result:
        os.close(self._program)
        self._program, self._compiled, self._limits = _file(), False, None
        limits = Limits(_COMPILE_SECONDS, 3 * _COMPILE_SECONDS, _COMPILE_MEMORY, _COMPILE_MEMORY)
        report = _file()
        files = ((report, 3), (self._program, 4))
        return self._run(limits, child.compile_program, (source,), files, _file(), report)

    def _load_compiled(self, limits: Limits, binary: int) -> Result:
        os.close(self._program)
        # A file that is open for writing cannot be executed.
        self._program = os.open(f"/proc/self/fd/{binary}", os.O_RDONLY)
        self._compiled, self._limits = True, None
        return Result(EXITED, 0, 0.0, 0.0, _file(), _file())

    def _script(self, limits: Limits, stdin: int) -> Result:
        return self._run_program(limits, _SOLUTION, stdin, ())

    def _check(
        self, limits: Limits, given: int, output: int, answer: int, arguments: int
    ) -> Result:
        argv = ["checker", *json.loads(child.read_all(arguments))]
        return self._run_program(limits, argv, output, ((given, 4), (output, 5), (answer, 6)))

    def _run_program(self, limits: Limits, argv: list[str], stdin: int, files: Files) -> Result:
        output, report = _file(), _file()
        sys.argv = argv
        if self._compiled:
            # Its standard error is the report: nothing else can say why it ended.
            files = ((report, 2), (report, 3), *files, (self._program, _PROGRAM_FD))
            body: Body = functools.partial(_execute, argv, limits)
            blobs: tuple[int, ...] = ()
        else:
            files = ((report, 3), *files)
            body, blobs = child.run_script, (self._program,)
        return self._run(limits, body, blobs, ((stdin, 0), (output, 1), *files), output, report)

    def _call(self, limits: Limits, call: int) -> Result:
        report = _file()
        blobs = (self._program, call)
        return self._run(limits, child.run_call, blobs, ((report, 3),), _file(), report)

    def _assert(self, limits: Limits, job: int) -> Result:
        """Two children. The result is the tester's, with its report as the output; where the
        tester lost the candidate, it is the candidate's. The report is the candidate's."""
        requests, to_candidate = os.pipe()
        from_candidate, replies = os.pipe()
        verdict, report = _file(), _file()
        started = time.monotonic()
        files = ((report, 3), (replies, 4), (requests, 5))
        candidate = self._fork(limits, remote.run_candidate, (self._program,), files, 0)
        files = ((verdict, 3), (to_candidate, 4), (from_candidate, 5))
        tester = self._fork(limits, remote.run_tester, (job,), files, 1)
        for fd in (requests, to_candidate, from_candidate, replies):
            os.close(fd)
        pids = (candidate, tester)
        ending = self._wait(tester, pids, limits, started)
        if not all(os.lseek(ready, 0, os.SEEK_CUR) for ready in self._ready):
            ending = NOT_STARTED
        lost = os.pread(verdict, 1, 0) == remote.LOST
        if lost and ending == EXITED:  # its end was first, but the clocks may still have the word
            ending = self._wait(candidate, (candidate,), limits, started)
        (candidate_status, cpu), (status, tester_cpu) = map(_reap, pids)
        wall = time.monotonic() - started
        status = candidate_status if lost else status
        return Result(ending, status, cpu + tester_cpu, wall, verdict, report)

    def _run(
        self, limits: Limits, body: Body, blobs: tuple[int, ...], files: Files, output: int,
        report: int,
    ) -> Result:  # fmt: skip
        """Fork one child, wait for its end; `output` and `report` are files that it may fill."""
        started = time.monotonic()
        pid = self._fork(limits, body, blobs, files, 0)
        ending = self._wait(pid, (pid,), limits, started)
        status, cpu = _reap(pid)
        if not os.lseek(self._ready[0], 0, os.SEEK_CUR):
            ending = NOT_STARTED
        return Result(ending, status, cpu, time.monotonic() - started, output, report)

    def _fork(
        self, limits: Limits, body: Body, blobs: tuple[int, ...], files: Files, mark: int
    ) -> int:
        """A locked-down child that runs `body` on the bytes of `blobs`, with `files` (pairs of a
        descriptor and its number there, 3 or above last) and none but the standard ones besides."""
        # Whatever can be done before the fork, or once for many.
        if limits != self._limits:
            self._limits, self._hard_limits = limits, self._in_kernel(limits)
        refuse, hard_limits = self._filters.get(self._compiled), self._hard_limits
        ready, server = self._ready[mark], self._pid
        os.lseek(ready, 0, os.SEEK_SET)
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            die_with_parent(server)
            contents = tuple(map(read_all, blobs))
            for fd, target in files:
                dup2(fd, target)
            for resource, limit in hard_limits:
                setrlimit(resource, limit)
            if refuse:
                refuse.install()
            lseek(ready, 1, SEEK_CUR)
            closerange(target + 1, OPEN_FILES)
            status = body(*contents) or 0
        finally:
            _exit(status)

    def _in_kernel(self, limits: Limits) -> HardLimits:
        """A backstop behind the clocks, and what only the kernel can hold a child to.

        RLIMIT_NPROC is left alone: it counts all processes of the user, and seccomp refuses new
        processes anyway. Threads are bounded by their stacks' share of the address space.
        """
        memory = limits.memory_bytes + (0 if self._compiled else self._own_memory)
        file = min(max(limits.output_bytes + 2, _MINIMUM_FILE), LARGEST_FILE)
        cpu = math.ceil(limits.cpu_seconds) + 1
        return (
            (RLIMIT_CPU, (cpu, cpu)), (RLIMIT_AS, (memory, memory)), (RLIMIT_FSIZE, (file, file)),
        )  # fmt: skip

    def _wait(self, last: int, pids: tuple[int, ...], limits: Limits, started: float) -> int:
        """Wait until `last` ends, or a clock of one of `pids` runs out; returns the ending."""
        cpu_seconds, wall_seconds, _, _ = limits
        fd = os.pidfd_open(last)
        self._poll.register(fd, select.POLLIN)
        cpu, wall = cpu_seconds, wall_seconds
        try:
            while True:
                # Threads on several cores use CPU time faster than the wall clock runs.
                events = self._poll.poll(max(2, 1000 * min(wall, cpu / self._cores) + 1))
                for ready, _ in events:
                    if ready == self._requests:
                        os._exit(0)  # the children follow: they die with their parent
                    return EXITED
                cpu = cpu_seconds - max(map(_cpu_time, pids))
                wall = started + wall_seconds - time.monotonic()
                if cpu <= 0:
                    return OUT_OF_CPU
                if wall <= 0:
                    return OUT_OF_TIME
        finally:
            self._poll.unregister(fd)
            os.close(fd)


def _cpu_time(pid: int) -> float:
    """Seconds of CPU time of a child, all threads. Also of one that has ended, until it is
    reaped."""
    # The clock of another process's CPU time: CPUCLOCK_SCHED of `pid`, see clock_getcpuclockid.
    return time.clock_gettime((~pid << 3) | 2)


def _reap(pid: int) -> tuple[int, float]:
    """Kill the child if it still runs; its wait status and the CPU seconds it used."""
    cpu = _cpu_time(pid)
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1], cpu


def _execute(argv: list[str], limits: Limits) -> None:
    for number in (signal.SIGXFSZ, signal.SIGPIPE):  # which the interpreter ignores
        signal.signal(number, signal.SIG_DFL)
    _, most = resource.getrlimit(resource.RLIMIT_STACK)
    stack = limits.memory_bytes // _STACK_SHARE  # of the main thread, and of each other one
    if most != resource.RLIM_INFINITY:
        stack = min(stack, most)
    resource.setrlimit(resource.RLIMIT_STACK, (stack, most))
    os.execve(f"/proc/self/fd/{_PROGRAM_FD}", argv, {})


def _size(fd: int) -> int:
    return os.lseek(fd, 0, os.SEEK_END)


def _file() -> int:
    return os.memfd_create("")


def _read_header(fd: int) -> bytes:
    """The next request's first bytes; none if the pipe was closed."""
    data = os.read(fd, REQUEST.size)
    while data and len(data) < REQUEST.size:
        more = os.read(fd, REQUEST.size - len(data))
        if not more:
            return b""
        data += more
    return data


def main(options: dict[str, Any]) -> None:
    """Take over standard input and output, lock down, and serve. Options: see `serve.main`."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3, _FIRST_FREE_FD):  # taken, so that no file of the server's gets them
        os.dup2(null, fd)
    requests, replies = os.dup(0), os.dup(1)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    child.standard_streams()
    child.prepare()
    with open("/proc/self/statm") as file:
        own_memory = int(file.read().split()[0]) * resource.getpagesize()
    error = None
    try:
        if not options["unsafe"]:
            lockdown.lock_server(options["writable"])
    except lockdown.LockdownError as failure:
        error = str(failure)
    message = json.dumps({"error": error}).encode()
    os.write(replies, LENGTH.pack(len(message)) + message)
    if error is None:
        server = Server(requests, replies, own_memory, options["unsafe"])
        server.rehearse()
        gc.collect()
        gc.freeze()  # so that a child's collections do not copy the shared pages
        server.serve()
