"""The judge on a Ray cluster: actors with a `Judge` each, and one queue and cache here."""

from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial

from openmimo.cluster.pool import ActorLost, ActorPool
from openmimo.errors import UserError
from openmimo.judge.cases import Checker, Limits, Program, StdioTest, Test
from openmimo.judge.intake import Intake, Job
from openmimo.judge.judge import Judge
from openmimo.judge.verdict import SolutionVerdict

_PROGRAM_SECONDS = 300.0  # twice: a server's start, the compiler's, and some for a busy machine
_TEST_SECONDS = 30.0  # beyond its own limit, twice: the slack of its server, and starting another
_CHECK_SECONDS = 150.0  # twice a checker's limit


class RayJudge:
    """Judges programs on a cluster; `submit` and `close` are those of `Judge`, as are the verdicts.

    Args:
        workers: how many actors with one worker each, spread over the nodes. None: one actor on
            each node, with a worker for each of its CPUs, which it shares with whatever else is
            there; nodes that come and go are followed.
        limits, unsafe, cache_size: as of `Judge`. Equal solutions are judged once on the whole
            cluster.
        address: of the cluster; empty: RAY_ADDRESS, else a cluster of this machine alone
            (`cluster.session.join`).

    A solution whose worker, actor or node is lost is judged on another one, up to four times. The
    nodes need the same version of openmimo, and what the sandbox needs.

    Raises UserError where there is no Ray or no cluster, where it has no free CPU within two
    minutes, or where the first node to answer cannot set the sandbox up.
    """

    def __init__(
        self,
        workers: int | None = None,
        limits: Limits | None = None,
        unsafe: bool = False,
        cache_size: int = 10_000,
        address: str = "",
    ) -> None:
        self._limits, self._unsafe = limits or Limits(), unsafe
        self._intake = Intake(cache_size)
        self._pool = ActorPool(partial(_make_judge, unsafe=unsafe), workers, address)

    def submit(
        self,
        program: Program | str,
        tests: Sequence[Test],
        limits: Limits | None = None,
        order: Sequence[int] | None = None,
        stop_at_failure: bool = False,
    ) -> Future[SolutionVerdict]:
        """Queue a program: see `Judge.submit`."""
        limits = limits or self._limits
        job = self._intake.enter(program, tests, limits, order, stop_at_failure)
        if isinstance(job, Future):
            return job
        arguments = (job.program, job.tests, job.limits, job.order, job.stop_at_failure)
        try:
            answer = self._pool.submit(*arguments, seconds=_longest(job), cost=job.cost)
        except UserError as error:
            self._intake.leave(job, job.failed(str(error), self._unsafe))
            raise
        answer.add_done_callback(partial(self._finish, job))
        return job.future

    def close(self) -> None:
        """Stop at once: what is running or waiting gives `judge_error`."""
        self._pool.close()

    def __enter__(self) -> "RayJudge":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _finish(self, job: Job, answer: Future[SolutionVerdict]) -> None:
        error = answer.exception()
        if error is None:
            verdict = answer.result()
        else:
            kind = "" if isinstance(error, ActorLost) else f"{type(error).__name__}: "
            verdict = job.failed(f"{kind}{error}", self._unsafe)
        self._intake.leave(job, verdict)


def _make_judge(workers: int, unsafe: bool) -> Judge:
    """What an actor holds. The cache is before the cluster."""
    return Judge(workers, unsafe=unsafe, cache_size=0)


def _longest(job: Job) -> float:
    """Seconds within which a `Judge` with nothing else to do has judged a solution, whatever it
    does: each of its waits has a deadline."""
    seconds = _PROGRAM_SECONDS
    for test in job.tests:
        checked = isinstance(test, StdioTest) and isinstance(test.rule, Checker)
        seconds += 2 * job.limits.wall_seconds + _TEST_SECONDS + checked * _CHECK_SECONDS
    return seconds
