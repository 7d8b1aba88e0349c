"""The gate of references: can a model give this answer, does the golden solution pass?"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence

from openmimo.curation.formats import Problem
from openmimo.curation.gates import Drop, Sifted
from openmimo.errors import UserError
from openmimo.judge import Limits, SolutionVerdict, Status
from openmimo.judge.connect import LOCAL, open_judge
from openmimo.judge.records import parse_test
from openmimo.rewards.grading import check_levels
from openmimo.rewards.math import MAX_ANSWER_CHARS, extract_answer
from openmimo.rewards.math_spelling import normalise
from openmimo.runs import Interrupt

RUNS = 2
"""Of a golden solution: one that passes only sometimes says nothing about others."""


MAX_WORDS = 4
"""Of an answer: two sentences that say the same are no text for a rule to compare."""

_COMMAND = re.compile(r"\\[a-zA-Z]+")
_WORD = re.compile(r"[^\W\d_]{2,}")


def test_limits(seconds: float) -> Limits:
    """Limits of one test that takes `seconds` of CPU time at most; one timeout ends a program."""
    return Limits(cpu_seconds=seconds, wall_seconds=10 * seconds, memory_mb=1024, max_timeouts=1)


def check_references(
    problems: Sequence[Problem], seconds: float, interrupt: Interrupt, judge_at: str = LOCAL
) -> Sifted:
    """Drop problems whose reference is of no use to the verifier.

    Mathematics: the answer stands in a box, and is no sentence. (That Math-Verify finds it equal to
    itself says nothing: it does so of any text.) Code: the golden solution passes all tests, RUNS
    times. Problems without one pass here: whether their tests can be passed is left to the
    rollouts.

    seconds: CPU time of one test.
    judge_at: where programs are judged, see `open_judge`.

    Raises UserError where the judge cannot set its sandbox up, or does not answer.
    """
    drops: dict[int, Drop] = {}
    code = {}
    for index, problem in enumerate(problems):
        if problem["domain"] == "code":
            code[index] = problem
        elif reason := _check_answer(problem["answer"]):
            drops[index] = Drop(problem, *reason)
    if code:
        drops |= _check_programs(code, seconds, interrupt, judge_at)
    kept = [problem for index, problem in enumerate(problems) if index not in drops]
    return kept, [drops[index] for index in sorted(drops)]


def _check_answer(answer: str) -> tuple[str, str] | None:
    """Reason and detail if a model cannot give this answer, or no rule can compare it."""
    if extract_answer(f"\\boxed{{{answer}}}") != answer:
        return "answer that fits in no box", answer
    if not re.search(r"\w", normalise(answer)):
        return "unreadable answer", answer
    words = len(_WORD.findall(_COMMAND.sub(" ", answer)))
    if words > MAX_WORDS or len(answer) > MAX_ANSWER_CHARS:
        return "answer in prose", answer
    return None


def _check_programs(
    problems: dict[int, Problem], seconds: float, interrupt: Interrupt, judge_at: str
) -> dict[int, Drop]:
    drops = {}
    workers = os.cpu_count() or 1
    with contextlib.closing(open_judge(judge_at, workers, test_limits(seconds))) as judge:
        running = {}
        for index, problem in problems.items():
            try:
                tests = [parse_test(test, problem.get("entry_point")) for test in problem["tests"]]
                if problem.get("levels"):
                    check_levels(problem["levels"], len(tests))
                if problem.get("golden"):
                    # Each with another comment, else the second run would be a remembered one.
                    runs = [f"{problem['golden']}\n# run {number}" for number in range(RUNS)]
                    running[index] = [judge.submit(program, tests) for program in runs]
            except UserError as error:
                drops[index] = Drop(problem, "unusable tests", str(error))
        for index, futures in running.items():
            interrupt.check()
            if reason := _fault([future.result() for future in futures]):
                drops[index] = Drop(problems[index], *reason)
    return drops


def _fault(runs: Sequence[SolutionVerdict]) -> tuple[str, str] | None:
    """Reason and detail if the golden solution did not pass all tests in all runs."""
    judged = [run for run in runs if not run.judge_failed]
    if not judged:
        failed = next(t for t in runs[0].tests if t.status is Status.JUDGE_ERROR)
        return "not judged", failed.detail
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
