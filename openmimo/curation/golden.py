"""The gate of references: can a model give this answer, does the golden solution pass?"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self

from openmimo.curation.formats import Problem
from openmimo.curation.gates import Drop, Sifted
from openmimo.curation.journal import Journal, content_key, problem_key
from openmimo.errors import UserError
from openmimo.judge import Limits, SolutionVerdict, Status
from openmimo.judge.cases import Test
from openmimo.judge.connect import LOCAL, open_judge
from openmimo.judge.protocol import SolutionJudge
from openmimo.judge.records import parse_test
from openmimo.rewards.code import program_limits
from openmimo.rewards.grading import check_levels, scaled_scores
from openmimo.rewards.math import MAX_ANSWER_CHARS, extract_answer
from openmimo.rewards.math_spelling import normalise
from openmimo.runs import Interrupt

TEST_MEMORY_MB = 1024
"""Memory of a program in one test, in MiB."""
RUNS = 2
"""Of a golden solution: one that passes only sometimes says nothing about others."""

WINDOW = 128
"""Problems in memory while golden solutions run."""

NOT_JUDGED = "not judged yet"
"""A fault of the judge's, twice: says nothing about the problem, and the next run tries again."""

MAX_WORDS = 4
"""Of an answer: two sentences that say the same are no text for a rule to compare."""

_COMMAND = re.compile(r"\\[a-zA-Z]+")
_WORD = re.compile(r"[^\W\d_]{2,}")


Fault = tuple[str, str]
"""A reason to drop a problem, and a detail."""

Settle = Callable[[], Problem | Drop]
"""Waits, if it must, and says what becomes of a problem."""


def check_references(
    problems: Iterable[Problem],
    seconds: float,
    journal: Journal,
    interrupt: Interrupt,
    judge_at: str = LOCAL,
) -> Sifted:
    """Drop problems whose reference is of no use to the verifier.

    Mathematics: the answer stands in a box, and is no sentence. (That Math-Verify finds it equal to
    itself says nothing: it does so of any text.) Code: the golden solution passes all tests, RUNS
    times. Problems without one pass here: whether their tests can be passed is left to the
    rollouts.

    seconds: CPU time of one test.
    journal: of golden solutions (reason, detail); what it knows does not run again.
    judge_at: where programs are judged, see `open_judge`.

    Raises UserError where the judge cannot set its sandbox up, or does not answer.
    """
    waiting: deque[Settle] = deque()
    with _GoldenJudge(seconds, journal, judge_at) as judge:
        for problem in problems:
            code = problem["domain"] == "code"
            waiting.append(judge.begin(problem) if code else partial(_sift_answer, problem))
            if len(waiting) > WINDOW:
                interrupt.check()
                yield waiting.popleft()()
        for settle in waiting:
            interrupt.check()
            yield settle()


def _sift_answer(problem: Problem) -> Problem | Drop:
    fault = _check_answer(problem["answer"])
    return Drop(problem, *fault) if fault else problem


def _check_answer(answer: str) -> Fault | None:
    """Reason and detail if a model cannot give this answer, or no rule can compare it."""
    if extract_answer(f"\\boxed{{{answer}}}") != answer:
        return "answer that fits in no box", answer
    if not re.search(r"\w", normalise(answer)):
        return "unreadable answer", answer
    words = len(_WORD.findall(_COMMAND.sub(" ", answer)))
    if words > MAX_WORDS or len(answer) > MAX_ANSWER_CHARS:
        return "answer in prose", answer
    return None


class _GoldenJudge:
    """Runs golden solutions that the journal does not know; its processes start with the first."""

    def __init__(self, seconds: float, journal: Journal, judge_at: str) -> None:
        self._seconds, self._journal, self._judge_at = seconds, journal, judge_at
        self._limits = program_limits(seconds, TEST_MEMORY_MB)
        self._judge: SolutionJudge | None = None

    def begin(self, problem: Problem) -> Settle:
        """Let a problem's golden solution run, if it has one."""
        try:
            tests = _parse_tests(problem)
        except UserError as error:
            return partial(Drop, problem, "unusable tests", str(error))
        if not problem.get("golden"):
            return lambda: problem
        fields = problem_key(problem, ("golden", "tests", "entry_point"))
        key = content_key(fields, self._seconds, RUNS)
        known = self._journal.get(key)
        if known is not None:
            reason, detail = known
            return lambda: Drop(problem, reason, detail) if reason else problem
        # Each with another comment, else the second run would be a remembered one.
        programs = [f"{problem['golden']}\n# run {number}" for number in range(RUNS)]
        runs = [self._submit(program, tests, self._limits) for program in programs]
        return lambda: self._settle(problem, tests, key, runs)

    def _settle(
        self,
        problem: Problem,
        tests: Sequence[Test],
        key: str,
        runs: Sequence[Future[SolutionVerdict]],
    ) -> Problem | Drop:
        verdicts = []
        for run in runs:
            verdict = run.result()
            if verdict.judge_failed:  # so busy a machine that the judge gave up: once more, slower
                patient = replace(self._limits, wall_seconds=2 * self._limits.wall_seconds)
                verdict = self._submit(problem["golden"], tests, patient).result()
            verdicts.append(verdict)
        fault = _fault(verdicts)
        if fault is None and any(verdict.judge_failed for verdict in verdicts):
            return Drop(problem, NOT_JUDGED, _judge_error(verdicts), undecided=True)
        reason, detail = fault or ("", "")
        self._journal.add(key, id=problem["id"], reason=reason, detail=detail)
        return Drop(problem, reason, detail) if fault else problem

    def _submit(
        self, golden: str, tests: Sequence[Test], limits: Limits
    ) -> Future[SolutionVerdict]:
        if self._judge is None:
            self._judge = open_judge(self._judge_at, os.cpu_count() or 1)
        return self._judge.submit(golden, tests, limits)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._judge is not None:
            self._judge.close()


def _parse_tests(problem: Problem) -> list[Test]:
    """Raises UserError for tests and levels that the judge and the reward cannot take."""
    tests = [parse_test(test, problem.get("entry_point")) for test in problem["tests"]]
    if problem.get("levels"):
        check_levels(problem["levels"], len(tests))
        scaled_scores(len(problem["levels"]), problem.get("level_scores") or ())
    return tests


def _judge_error(verdicts: Sequence[SolutionVerdict]) -> str:
    tests = [test for verdict in verdicts for test in verdict.tests]
    return next(test.detail for test in tests if test.status is Status.JUDGE_ERROR)


def _fault(runs: Sequence[SolutionVerdict]) -> Fault | None:
    """Why a golden solution is no good; None if it passed all tests in all runs that were judged.

    Tests that the judge failed on say nothing.
    """
    judged = [run for run in runs if not run.judge_failed]
    failures = [
        (number, test)
        for run in judged
        for number, test in enumerate(run.tests)
        if test.status is not Status.OK
    ]
    if not failures:
        return None
    number, test = failures[0]
    detail = f"test {number}: {test.status}" + (f", {test.detail}" if test.detail else "")
    flaky = any(all(run.passed) for run in judged)
    return ("golden solution passes only sometimes" if flaky else "golden solution fails"), detail
