"""What comes before any worker: a solution is checked, and judged once however often it comes."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from openmimo.judge.cases import Limits, Program, Test, check_solution, content_key
from openmimo.judge.verdict import SolutionVerdict


@dataclass(frozen=True, slots=True)
class Job:
    """A solution to be judged. `suite` and `key` hash its tests, and all of it; `cost` is the CPU
    time that its tests are expected to take, in seconds."""

    key: bytes
    suite: bytes
    program: Program
    tests: Sequence[Test]
    limits: Limits
    order: Sequence[int]
    stop_at_failure: bool
    cost: float
    future: Future[SolutionVerdict] = field(default_factory=Future)

    def failed(self, detail: str, unsafe: bool) -> SolutionVerdict:
        """The verdict where the judge could give none."""
        return SolutionVerdict.failed(len(self.tests), detail, unsafe)


class Intake:
    """Remembers the verdicts of `size` solutions, and what the tests of as many suites cost.

    For use from several threads. `cached` counts the solutions that were known, or on the way.
    """

    def __init__(self, size: int) -> None:
        self.cached = 0
        self._size = size
        self._futures: OrderedDict[bytes, Future[SolutionVerdict]] = OrderedDict()
        self._costs: OrderedDict[bytes, float] = OrderedDict()  # of a solution, by its tests
        self._lock = threading.Lock()

    def enter(
        self,
        program: Program | str,
        tests: Sequence[Test],
        limits: Limits,
        order: Sequence[int] | None,
        stop_at_failure: bool,
    ) -> Job | Future[SolutionVerdict]:
        """A job that is new, or the future of the same one; arguments as of `Judge.submit`.

        Whoever gets the job calls `leave` with its verdict. UserError for bad tests.
        """
        program, tests, order = check_solution(program, tests, order)
        suite = content_key(tests, limits)
        key = content_key(program, suite, order, stop_at_failure)
        with self._lock:
            known = self._futures.get(key)
            if known is not None:
                self._futures.move_to_end(key)
                self.cached += 1
                return known
            cost = self._costs.get(suite, limits.cpu_seconds * len(tests))
            job = Job(key, suite, program, tests, limits, order, stop_at_failure, cost)
            job.future.set_running_or_notify_cancel()
            self._futures[key] = job.future
            while len(self._futures) > self._size:
                self._futures.popitem(last=False)
        return job

    def leave(self, job: Job, verdict: SolutionVerdict) -> None:
        """Give a job its verdict. A failure of the judge's is not remembered."""
        with self._lock:
            if verdict.judge_failed:
                self._futures.pop(job.key, None)
            else:
                before = self._costs.get(job.suite, verdict.cpu_seconds)
                self._costs[job.suite] = (before + verdict.cpu_seconds) / 2
                self._costs.move_to_end(job.suite)
                while len(self._costs) > self._size:
                    self._costs.popitem(last=False)
        job.future.set_result(verdict)
