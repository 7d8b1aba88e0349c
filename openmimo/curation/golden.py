"""The gate of references: can the verifier read the answer, does the golden solution pass?"""

from __future__ import annotations

import os
from collections.abc import Sequence

from openmimo.curation.formats import Problem
from openmimo.curation.gates import Drop, Sifted
from openmimo.errors import UserError
from openmimo.judge import Judge, Limits, SolutionVerdict, Status
from openmimo.judge.records import parse_test
from openmimo.rewards.grading import check_levels
from openmimo.rewards.math import rational
from openmimo.rewards.math_spelling import normalise
from openmimo.rewards.math_verifier import MathVerifier
from openmimo.runs import Interrupt

RUNS = 2
"""Of a golden solution: one that passes only sometimes says nothing about others."""


def test_limits(seconds: float) -> Limits:
    """Limits of one test that takes `seconds` of CPU time at most; one timeout ends a program."""
    return Limits(cpu_seconds=seconds, wall_seconds=10 * seconds, memory_mb=1024, max_timeouts=1)


def check_references(problems: Sequence[Problem], seconds: float, interrupt: Interrupt) -> Sifted:
    """Drop problems whose reference is of no use to the verifier.

    Mathematics: Math-Verify reads the answer and finds it equal to itself. Code: the golden
    solution passes all tests, RUNS times. Problems without one pass here: whether their tests can
    be passed is left to the rollouts.

    seconds: CPU time of one test.

    Raises UserError where the judge cannot set its sandbox up.
    """
    drops: dict[int, Drop] = {}
    math = {i: problem for i, problem in enumerate(problems) if problem["domain"] == "math"}
    code = {i: problem for i, problem in enumerate(problems) if problem["domain"] == "code"}
    drops |= _check_answers(math, interrupt)
    if code:
        drops |= _check_programs(code, seconds, interrupt)
    kept = [problem for index, problem in enumerate(problems) if index not in drops]
    return kept, [drops[index] for index in sorted(drops)]


def _check_answers(problems: dict[int, Problem], interrupt: Interrupt) -> dict[int, Drop]:
    drops = {}
    with MathVerifier(workers=os.cpu_count() or 1) as verifier:
        asked = {
            index: verifier.submit_raw(f"${problem['answer']}$", f"${problem['answer']}$")
            for index, problem in problems.items()
            if rational(normalise(problem["answer"])) is None
        }
        for index, future in asked.items():
            interrupt.check()
            verdict = future.result()
            if verdict.status is not Status.OK:
                detail = f"{problems[index]['answer']}: {verdict.detail or verdict.status}"
                drops[index] = Drop(problems[index], "unreadable answer", detail)
    return drops


def _check_programs(
    problems: dict[int, Problem], seconds: float, interrupt: Interrupt
) -> dict[int, Drop]:
    drops = {}
    # Without a cache, else the second run would be the first one's verdict.
    with Judge(os.cpu_count() or 1, test_limits(seconds), cache_size=0) as judge:
        running = {}
        for index, problem in problems.items():
            try:
                tests = [parse_test(test, problem.get("entry_point")) for test in problem["tests"]]
                if problem.get("levels"):
                    check_levels(problem["levels"], len(tests))
                if problem.get("golden"):
                    golden = problem["golden"]
                    running[index] = [judge.submit(golden, tests) for _ in range(RUNS)]
            except UserError as error:
                drops[index] = Drop(problem, "unusable tests", str(error))
        for index, futures in running.items():
            interrupt.check()
            if reason := _fault([future.result() for future in futures]):
                drops[index] = Drop(problems[index], *reason)
    return drops


def _fault(runs: Sequence[SolutionVerdict]) -> tuple[str, str] | None:
    """Reason and detail if the golden solution did not pass all tests in all runs."""
    if any(run.judge_failed for run in runs):
        return "not judged", next(t.detail for run in runs for t in run.tests if t.detail)
    failures = [
        (number, test)
        for run in runs
        for number, test in enumerate(run.tests)
        if test.status is not Status.OK
    ]
    if not failures:
        return None
    number, test = failures[0]
    detail = f"test {number}: {test.status}" + (f", {test.detail}" if test.detail else "")
    flaky = any(all(run.passed) for run in runs)
    return ("golden solution passes only sometimes" if flaky else "golden solution fails"), detail
