"""Asynchronous rewards: each response's verdict is a future.

The pool starts its processes with the first response that needs one, scores equal answers to one
problem once, and never waits for ever: each test and each comparison has a deadline of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import TYPE_CHECKING, Any

from openmimo.errors import UserError
from openmimo.judge import Limits, SolutionVerdict
from openmimo.judge.connect import LOCAL, RAY, open_judge
from openmimo.judge.protocol import SolutionJudge
from openmimo.judge.records import parse_test
from openmimo.rewards import code, math
from openmimo.rewards.grading import ALL_TESTS, Grading
from openmimo.rewards.math_verifier import NO_BOX, MathVerifier
from openmimo.rewards.verdict import Verdict
from openmimo.rewards.verdict_cache import VerdictCache, done

if TYPE_CHECKING:
    from openmimo.rewards.ray_math import RayMathVerifier


class RewardPool:
    """Scores responses to problems (records as in the problem files, "math" or "code").

    `grading` is the reward of code problems, `judge` the limits of their tests, `judge_at` where
    they are judged (see `open_judge`); mathematics is too if that is a Ray cluster, else here.
    Tests that cannot change a score are not run, but with `every_test`. `math_seconds` bounds one
    comparison by Math-Verify, in CPU time. `cache_size` results of each domain are kept.

    Not for use from several threads at once. `score` raises UserError where the judge cannot set
    its sandbox up or does not answer, so call `start_judge` first to learn it early.

    Raises UserError where there is no Ray or no cluster, but is to be used.
    """

    def __init__(
        self,
        math_workers: int = 1,
        judge_workers: int = 1,
        grading: Grading = ALL_TESTS,
        math_seconds: float = 3.0,
        judge: Limits | None = None,
        every_test: bool = False,
        cache_size: int = 20_000,
        judge_at: str = LOCAL,
    ) -> None:
        self._grading, self._every_test = grading, every_test
        self._judge_at, self._judge_workers = judge_at, judge_workers
        self._workers = math_workers + judge_workers
        self._limits = judge or Limits()
        self._judge: SolutionJudge | None = None
        self._math = _open_verifier(judge_at, math_workers, math_seconds, cache_size)
        self._programs = VerdictCache(cache_size)

    @property
    def scored(self) -> int:
        """How many responses were worked out."""
        return self._math.scored + self._programs.scored

    @property
    def cached(self) -> int:
        """How many responses had an answer or a program with a verdict already."""
        return self._math.cached + self._programs.cached

    def start_judge(self) -> SolutionJudge:
        """Start the code judge now rather than with the first program."""
        if self._judge is None:
            self._judge = open_judge(self._judge_at, self._judge_workers, self._limits)
        return self._judge

    def score(self, problem: Mapping[str, Any], response: str) -> Future[Verdict]:
        """The verdict on a response, as it comes; it may be another response's too."""
        if problem["domain"] == "math":
            answer = math.extract_answer(response)
            if answer is None:
                return done(NO_BOX)
            return self._math.submit(answer, problem["answer"])
        if problem["domain"] == "code":
            program = code.extract_program(response)
            if program is None:
                return done(code.NO_PROGRAM)
            key = ("code", problem["id"], program)
            return self._programs.once(key, lambda: self._judge_program(problem, program))
        raise UserError(f"problem {problem['id']}: no reward for domain {problem['domain']!r}")

    @property
    def at_once(self) -> int:
        """Responses to hand over at once: enough for all workers, and few enough that what waits
        can still be put in order, and its deadline does not run."""
        return 4 * self._workers if self._judge_at == LOCAL else 1024

    def longest(self, problems: Iterable[Mapping[str, Any]]) -> float:
        """Most seconds that a program can spend in the tests of one of the problems."""
        tests = (len(problem.get("tests") or ()) for problem in problems)
        return self._limits.wall_seconds * max(tests, default=0)

    def close(self) -> None:
        """Stop all processes; what is unfinished becomes `judge_error`."""
        if self._judge is not None:
            self._judge.close()
        self._math.close()

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _judge_program(self, problem: Mapping[str, Any], program: str) -> Future[Verdict]:
        tests = [parse_test(test, problem.get("entry_point")) for test in problem["tests"]]
        order, stop = None, False
        if not self._every_test:
            order, stop = self._grading.shortest_run(problem.get("levels"))
        levels = {name: problem.get(name) for name in ("levels", "level_scores")}
        verdict = self.start_judge().submit(program, tests, order=order, stop_at_failure=stop)
        result: Future[Verdict] = Future()

        def finish(done: Future[SolutionVerdict]) -> None:
            try:
                result.set_result(code.score_verdict(done.result(), self._grading, **levels))
            except (Exception, CancelledError) as error:
                result.set_exception(error)

        verdict.add_done_callback(finish)
        return result


def _open_verifier(
    judge_at: str, workers: int, seconds: float, cache_size: int
) -> MathVerifier | RayMathVerifier:
    """The verifier beside a judge. A judge's service knows no mathematics."""
    if judge_at != RAY:
        return MathVerifier(workers, seconds, cache_size)
    from openmimo.rewards.ray_math import RayMathVerifier  # an extra that may not be installed

    return RayMathVerifier(seconds=seconds, cache_size=cache_size)
