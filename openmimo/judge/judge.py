"""The supervisor: sends programs to fork servers and compares what comes back.

Expected outputs never leave this process; candidate code never enters it.
"""

import json
import os
import queue
import struct
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from openmimo.errors import UserError
from openmimo.judge.compare import decode, matches
from openmimo.judge.pipes import PipeProcess
from openmimo.judge.sandbox import candidate
from openmimo.judge.verdict import SolutionVerdict, Status, TestVerdict

_START = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from sandbox import server; del sys.path[0]; server.main(sys.argv[1:])"
)
_START_SECONDS = 30.0
_SLACK_SECONDS = 10.0  # beyond a solution's own limits, before its server counts as hung
_STATUS = {
    candidate.OTHER: Status.WRONG,
    candidate.ERROR: Status.CRASH,
    candidate.OVERSIZE: Status.CRASH,
    candidate.MEMORY: Status.MEMORY,
    candidate.UNPARSEABLE: Status.UNPARSEABLE,
    candidate.TIMEOUT: Status.TIMEOUT,
    candidate.CRASH: Status.CRASH,
    candidate.JUDGE_ERROR: Status.JUDGE_ERROR,
}


class Judge:
    """Judges Python functions, `workers` at a time. A context manager; safe to use from threads.

    A test's limits are `cpu_seconds` and `wall_seconds`; `memory_mb` bounds the address space of
    the process that runs a solution, `output_bytes` the JSON of one returned value. After
    `max_timeouts` tests of a solution have timed out, its remaining ones count as timed out
    without being run (0: run them all).

    Raises UserError at once where the sandbox cannot be set up; `unsafe=True` is the only way
    around it, judges without the sandbox (with time and memory limits only), and marks every
    verdict.
    """

    def __init__(
        self,
        workers: int = 1,
        cpu_seconds: float = 1.0,
        wall_seconds: float = 3.0,
        memory_mb: int = 256,
        output_bytes: int = 65536,
        max_timeouts: int = 0,
        unsafe: bool = False,
    ) -> None:
        if workers < 1 or min(cpu_seconds, wall_seconds, memory_mb, output_bytes) <= 0:
            raise UserError("judge: workers and all limits must be positive")
        limits = [cpu_seconds, wall_seconds, memory_mb << 20, output_bytes, max_timeouts]
        self._options = json.dumps({"unsafe": unsafe, "limits": limits})
        self._wall_seconds = wall_seconds
        self._unsafe = unsafe
        self._servers: list[PipeProcess] = []
        self._idle: queue.SimpleQueue[PipeProcess] = queue.SimpleQueue()
        self._closed = False
        try:
            for _ in range(workers):
                self._servers.append(self._spawn())
            for server in self._servers:
                _check_started(server)
                self._idle.put(server)
        except BaseException:
            self._kill_servers()
            raise
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="judge")

    def submit(
        self,
        program: str,
        entry_point: str,
        args: Sequence[Sequence[object]],
        expected: Sequence[object],
    ) -> Future[SolutionVerdict]:
        """Judge `program`: call its function `entry_point` with each of `args`, in order.

        Arguments and expected results are JSON values. All tests of a solution run in one process,
        so the program's own global state lasts from test to test. UserError for bad tests. The
        future always gives a verdict: a fault of the judge's own is the status `judge_error`.
        """
        if len(args) != len(expected) or not args:
            raise UserError(f"{len(args)} argument lists but {len(expected)} expected results")
        try:
            texts = [json.dumps(list(arguments)) for arguments in args]
            wanted = [decode(json.dumps(value).encode()) for value in expected]
        except (TypeError, ValueError) as error:
            raise UserError(f"a test holds what is not a JSON value: {error}") from error
        task = {"program": program, "entry_point": entry_point, "args": texts}
        return self._threads.submit(self._judge, json.dumps(task).encode(), wanted)

    def close(self) -> None:
        """Stop at once: what is running gives `judge_error`, what is waiting is cancelled."""
        self._closed = True
        for server in self._servers:
            server.interrupt()
        self._threads.shutdown(cancel_futures=True)
        self._kill_servers()

    def __enter__(self) -> "Judge":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _spawn(self) -> PipeProcess:
        # -I without its -E, so that the hash seed is fixed: the same program gets the same verdict
        # every time. The environment is ours alone, so nothing of the user's can leak in.
        environment = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
        if "LD_LIBRARY_PATH" in os.environ:  # an interpreter that finds its libpython by it
            environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        python = [sys.executable, "-s", "-P", "-S", "-B"]
        return PipeProcess(
            [*python, "-c", _START, str(Path(__file__).parent), self._options], environment
        )

    def _kill_servers(self) -> None:
        for server in self._servers:
            server.kill()

    def _judge(self, request: bytes, expected: list[object]) -> SolutionVerdict:
        server = self._idle.get()
        try:
            if not server.alive():
                server = self._replace(server)
            frames = self._ask(server, request, len(expected))
            tests = tuple(map(_verdict, frames, expected))
        except (OSError, EOFError, ValueError, UserError) as error:
            server.kill()  # out of step with us, whatever happened: never reuse it
            failure = TestVerdict(Status.JUDGE_ERROR, f"{type(error).__name__}: {error}")
            tests = (failure,) * len(expected)
        finally:
            self._idle.put(server)
        return SolutionVerdict(tests, self._unsafe)

    def _replace(self, dead: PipeProcess) -> PipeProcess:
        dead.kill()
        if self._closed:
            raise UserError("the judge is closed")
        server = self._spawn()
        self._servers[self._servers.index(dead)] = server
        _check_started(server)
        return server

    def _ask(self, server: PipeProcess, request: bytes, tests: int) -> list[tuple[int, bytes]]:
        server.send(struct.pack("<II", len(request), tests) + request, _SLACK_SECONDS)
        reply = server.receive(tests * self._wall_seconds + _SLACK_SECONDS)
        frames, position = [], 0
        while position < len(reply):
            kind, length = candidate.FRAME.unpack_from(reply, position)
            position += candidate.FRAME.size
            if kind not in (candidate.STARTED, candidate.DEFINED):
                frames.append((kind, reply[position : position + length]))
            position += length
        if len(frames) != tests:
            raise ValueError(f"{len(frames)} results for {tests} tests")
        return frames


def _check_started(server: PipeProcess) -> None:
    try:
        error = json.loads(server.receive(_START_SECONDS))["error"]
    except (EOFError, OSError) as failure:
        error = f"the sandbox process did not start ({failure})"
    if error:
        raise UserError(
            f"judge: {error}; programs are not run unprotected. Use a Linux kernel with landlock "
            "and seccomp, or pass --unsafe-local to run them without a sandbox, at your own risk"
        )


def _verdict(frame: tuple[int, bytes], expected: object) -> TestVerdict:
    kind, payload = frame
    if kind != candidate.VALUE:
        return TestVerdict(_STATUS[kind], payload.decode("utf-8", "replace"))
    try:
        value = decode(payload)
    except ValueError:  # only a forged frame can hold this
        return TestVerdict(Status.CRASH, "malformed result")
    return TestVerdict(Status.OK if matches(expected, value) else Status.WRONG)
