"""The judge: a queue of solutions, a fork server for each worker, a cache of verdicts."""

import asyncio
import itertools
import math
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType

from openmimo.errors import UserError
from openmimo.judge.cases import Limits, Program, Test
from openmimo.judge.compiler import Compiler
from openmimo.judge.fork_server import NotStartedError
from openmimo.judge.intake import Intake, Job
from openmimo.judge.verdict import SolutionVerdict, Verdict
from openmimo.judge.worker import Worker

CLOSED = "the judge was closed"

_ATTEMPTS = 5  # at a solution whose worker is lost on the way: the last loss is a judge_error
_STARTS = 10  # of a worker's successor that is killed before it is ready


@dataclass(frozen=True, slots=True)
class JudgeStats:
    """Of a judge at one moment; the last two count from its start.

    waiting: solutions that no worker has taken yet.
    alive: workers whose processes run; a dead one is replaced when a solution needs it.
    cached: solutions whose verdict was known, or on the way.
    restarts: workers that were replaced.
    """

    workers: int
    alive: int
    waiting: int
    cached: int
    restarts: int


class Judge:
    """Judges programs, `workers` at a time. A context manager; safe to use from threads.

    Every test runs in a process of its own, which sees nothing of the test but its input. `limits`
    are those of calls that give none. The verdicts of `cache_size` solutions are remembered, and
    a solution that is being judged is not judged again: the same program, tests and limits give
    the same verdicts, but for time limits on a busy machine.

    Raises UserError at once where the sandbox cannot be set up; `unsafe=True` is the only way
    around it, judges without the sandbox (with time and memory limits only), and marks every
    verdict.
    """

    def __init__(
        self,
        workers: int = 1,
        limits: Limits | None = None,
        unsafe: bool = False,
        cache_size: int = 10_000,
    ) -> None:
        if workers < 1:
            raise UserError("judge: workers must be positive")
        self._limits = limits or Limits()
        self._unsafe = unsafe
        self._intake = Intake(cache_size)
        self._lock = threading.Lock()  # of _closed and _workers, once threads run
        self._numbers = itertools.count()
        # By when it should begin, see `submit`; None tells a thread to end.
        self._jobs: queue.PriorityQueue[tuple[float, int, Job | None]] = queue.PriorityQueue()
        self._closed = False
        self._restarts = 0
        self._compiler = Compiler(unsafe)
        self._workers: list[Worker] = []
        try:
            for _ in range(workers):
                self._workers.append(Worker(self._compiler, unsafe))
            for worker in self._workers:
                worker.wait_until_ready()
        except BaseException:
            self._kill_workers()
            raise
        self._threads = [
            threading.Thread(target=self._work, args=(slot,), name=f"judge-{slot}", daemon=True)
            for slot in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def run(
        self, program: Program | str, tests: Sequence[Test], limits: Limits | None = None
    ) -> list[Verdict]:
        """Judge a program on every test: one verdict each, in order. A text is Python."""
        return list(self.submit(program, tests, limits).result().tests)

    async def run_async(
        self, program: Program | str, tests: Sequence[Test], limits: Limits | None = None
    ) -> list[Verdict]:
        """`run`, without blocking the event loop."""
        future = self.submit(program, tests, limits)
        return list((await asyncio.wrap_future(future)).tests)

    def submit(
        self,
        program: Program | str,
        tests: Sequence[Test],
        limits: Limits | None = None,
        order: Sequence[int] | None = None,
        stop_at_failure: bool = False,
    ) -> Future[SolutionVerdict]:
        """Queue a program; what is expected to take longest is judged first.

        The tests run in `order` (their indices; default: as given). `stop_at_failure` skips those
        after the first failure, which gets every score right that a failure decides: all or
        nothing in any order, and strict levels in the order of difficulty.

        The future always gives a verdict, and cannot be cancelled, as others may wait for the
        same: a fault of the judge's own is the status `judge_error`. UserError for bad tests.
        """
        if self._closed:
            raise UserError(CLOSED)
        job = self._intake.enter(program, tests, limits or self._limits, order, stop_at_failure)
        if isinstance(job, Future):
            return job
        with self._lock:
            if not self._closed:
                # The most expensive first, but none for ever: it overtakes what came at most as
                # many seconds before it as it is expected to take.
                self._jobs.put((time.monotonic() - job.cost, next(self._numbers), job))
                return job.future
        # Closed on the way, after `close` has emptied the queue.
        self._intake.leave(job, job.failed(CLOSED, self._unsafe))
        raise UserError(CLOSED)

    def stats(self) -> JudgeStats:
        """What is going on, for monitoring."""
        alive = sum(worker.alive() for worker in self._workers)
        waiting = self._jobs.qsize()
        return JudgeStats(len(self._workers), alive, waiting, self._intake.cached, self._restarts)

    def close(self) -> None:
        """Stop at once: what is running or waiting gives `judge_error`."""
        with self._lock:
            self._closed = True
        for _ in self._threads:
            self._jobs.put((-math.inf, next(self._numbers), None))
        for worker in self._workers:
            worker.interrupt()
        for thread in self._threads:
            thread.join()
        self._kill_workers()
        self._compiler.close()
        while not self._jobs.empty():
            job = self._jobs.get()[-1]
            if job is not None:
                self._intake.leave(job, job.failed(CLOSED, self._unsafe))

    def __enter__(self) -> "Judge":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _kill_workers(self) -> None:
        for worker in self._workers:
            worker.kill()

    def _work(self, slot: int) -> None:
        while (job := self._jobs.get()[-1]) is not None:
            try:
                verdict = self._judge(slot, job)
            except Exception as error:  # else this worker's thread would end, and the job hang
                self._workers[slot].kill()  # out of step with us, whatever happened
                verdict = job.failed(f"{type(error).__name__}: {error}", self._unsafe)
            self._intake.leave(job, verdict)

    def _judge(self, slot: int, job: Job, attempts: int = _ATTEMPTS) -> SolutionVerdict:
        """Run a job; anew on a new server if one is lost on the way."""
        try:
            if not self._workers[slot].alive():
                self._replace(slot)
            return _run(self._workers[slot], job)
        except (OSError, EOFError, ValueError, NotStartedError):
            self._workers[slot].kill()
            if attempts == 1:
                raise
        return self._judge(slot, job, attempts - 1)

    def _replace(self, slot: int, attempts: int = _STARTS) -> None:
        self._workers[slot].kill()
        worker = Worker(self._compiler, self._unsafe)
        with self._lock:
            self._workers[slot] = worker
            self._restarts += 1
            closed = self._closed
        if closed:  # after `close` has interrupted the workers it knew
            worker.kill()
            raise UserError(CLOSED)
        try:
            worker.wait_until_ready()
        except NotStartedError:
            if attempts == 1:
                raise
            self._replace(slot, attempts - 1)


def _run(worker: Worker, job: Job) -> SolutionVerdict:
    return worker.judge(job.program, job.tests, job.limits, job.order, job.stop_at_failure)
