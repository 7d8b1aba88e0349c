"""References that are of no use."""

import pytest

from openmimo.curation.golden import _fault, check_references
from openmimo.judge import SolutionVerdict, Status, Verdict
from openmimo.runs import Interrupt

from .conftest import code, math


def reasons(*rows):
    problems = [
        {"domain": "code" if "tests" in row else "math", "origin": str(index), "source": "s", **row}
        for index, row in enumerate(rows)
    ]
    kept, dropped = check_references(problems, 2.0, Interrupt())
    found = {drop.problem["origin"]: drop.reason for drop in dropped}
    assert len(kept) + len(dropped) == len(rows)
    return [found.get(problem["origin"]) for problem in problems]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("\\frac{1}{2}", None),
        ("(1, 2]", None),
        ("\\text{Tuesday}", None),
        ("\\text{no real solution}", None),
        ("x \\in (-\\infty, 1) \\cup \\left[2, \\infty\\right)", None),
        ("\\frac{1", "answer that fits in no box"),
        ("1}{", "answer that fits in no box"),
        ("---", "unreadable answer"),
        ("?", "unreadable answer"),
        ("all of the numbers that are odd", "answer in prose"),
        ("1+" * 200 + "1", "answer in prose"),
    ],
)
def test_answers_must_stand_in_a_box_and_be_no_sentence(answer, reason):
    assert reasons(math("?", answer)) == [reason]


def test_golden_solutions_must_pass_all_tests_every_time():
    assert reasons(
        code("?", "def f(n):\n    return n", "assert f(1) == 1", "assert f(2) == 2"),
        code("?", "def f(n):\n    return 1", "assert f(1) == 1", "assert f(2) == 2"),
        code("?", "def f(n", "assert f(1) == 1"),
        code("?", None, "assert f(1) == 1"),
        {**code("?", "n = 1"), "tests": [{"odd": 1}]},
        {**code("?", "n = 1", "assert n == 1"), "levels": [[0], [1]]},
        {**code("?", "print(int(input()) + 1)"), "tests": [{"stdin": "1\n", "stdout": "2\n"}]},
    ) == [
        None,
        "golden solution fails",
        "golden solution fails",
        None,
        "unusable tests",
        "unusable tests",
        None,
    ]


def test_golden_solutions_that_pass_only_sometimes_are_noticed():
    """Each fails by chance: with one run of each none would be found, with two every second one."""
    program = "import os\nx = os.urandom(1)[0] % 2"
    found = reasons(*(code(f"Question {n}", program, "assert x == 1") for n in range(24)))
    assert "golden solution passes only sometimes" in found


OK, WRONG, ERROR = (
    SolutionVerdict((Verdict(status, "why"),))
    for status in (Status.OK, Status.WRONG, Status.JUDGE_ERROR)
)


@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        ([OK, OK], None),
        ([OK, WRONG], "golden solution passes only sometimes"),
        ([WRONG, WRONG], "golden solution fails"),
        ([ERROR, ERROR], "not judged"),
        ([ERROR, OK], None),
        ([ERROR, WRONG], "golden solution fails"),
    ],
)
def test_a_fault_of_the_judge_is_none_of_the_solution(runs, reason):
    fault = _fault(runs)
    assert fault is None if reason is None else fault[0] == reason
