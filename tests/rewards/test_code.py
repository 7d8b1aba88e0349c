"""Extraction of programs, and the score of verdicts."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.judge import SolutionVerdict, Status, Verdict
from openmimo.rewards.code import extract_program, score_verdict
from openmimo.rewards.grading import Grading, Scheme

GRADINGS = [
    Grading(scheme, cumulative=cumulative)
    for scheme in get_args(Scheme)
    for cumulative in (True, False)
]
PROGRAM = "def f():\n    return 1\n"
BLOCK = f"```python\n{PROGRAM}```"


@pytest.mark.parametrize(
    "response",
    [
        BLOCK,
        f"Some thoughts.\n{BLOCK}\nDone.",
        f"```python\ndef draft(): pass\n```\n{BLOCK}",
        f"```\nno language\n```\n{BLOCK}",
        f"<think>```python\nunclosed</think>\n{BLOCK}",
        BLOCK.replace("python", "Python"),
        BLOCK.replace("\n", "\r\n"),
    ],
)
def test_last_closed_python_block_counts(response):
    program = extract_program(response)
    assert program is not None
    assert program.replace("\r", "") == PROGRAM


@pytest.mark.parametrize(
    "response",
    [
        "",
        PROGRAM,
        f"```python\n{PROGRAM}",
        f"{BLOCK}\nBetter:\n```python\ndef f(",
        f"{BLOCK}\n```text\noutput\n```",
        "```python\n\n```",
        f"<think>{BLOCK}</think> no answer",
    ],
)
def test_no_program(response):
    assert extract_program(response) is None


def test_backticks_inside_a_line_are_no_fence():
    program = extract_program('```python\nx = "``` not a fence"\n```')
    assert program == 'x = "``` not a fence"\n'


def verdict(*statuses):
    return SolutionVerdict(tuple(Verdict(status) for status in statuses))


def test_scores_follow_the_scheme():
    mixed = verdict(Status.OK, Status.TIMEOUT, Status.OK, Status.CRASH)
    levels = [[0], [2], [1, 3]]
    assert score_verdict(mixed, Grading("all"), levels).score == 0
    assert score_verdict(mixed, Grading("strict"), levels).score == pytest.approx(2 / 3)
    assert score_verdict(mixed, Grading("soft"), levels).score == pytest.approx(2 / 3)
    result = score_verdict(mixed, Grading("soft"), None)
    assert result.score == 0.5
    assert result.status is Status.TIMEOUT
    assert result.passed == (True, False, True, False)
    assert not result.correct
    assert score_verdict(verdict(Status.OK), Grading("strict")).correct


def test_skipped_tests_are_no_failure_of_their_own():
    result = score_verdict(
        verdict(Status.SKIPPED, Status.OK, Status.TIMEOUT), Grading("strict"), [[1], [2], [0]]
    )
    assert result.score == pytest.approx(1 / 3)
    assert result.status is Status.TIMEOUT


levels_of_tests = st.permutations(range(6)).map(lambda tests: [tests[:2], tests[2:3], tests[3:]])


@given(levels_of_tests, st.lists(st.booleans(), min_size=6, max_size=6), st.sampled_from(GRADINGS))
def test_stopping_early_changes_no_score(levels, outcomes, grading):
    order, stop = grading.shortest_run(levels)
    statuses = [Status.SKIPPED] * 6
    for index in order or range(6):
        statuses[index] = Status.OK if outcomes[index] else Status.WRONG
        if stop and not outcomes[index]:
            break
    every = verdict(*(Status.OK if outcome else Status.WRONG for outcome in outcomes))
    assert (
        score_verdict(verdict(*statuses), grading, levels).score
        == score_verdict(every, grading, levels).score
    )


@pytest.mark.parametrize("status", [Status.CRASH, Status.UNPARSEABLE, Status.MEMORY])
def test_a_program_that_fails_is_a_zero_and_not_an_error(status):
    result = score_verdict(verdict(status, status), Grading("soft"))
    assert result.score == 0
    assert result.status is status


def test_a_fault_of_the_judge_is_no_score():
    result = score_verdict(verdict(Status.OK, Status.JUDGE_ERROR), Grading("soft"))
    assert result.score is None
    assert result.status is Status.JUDGE_ERROR
