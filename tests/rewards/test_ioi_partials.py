"""How brittle each scheme is, on partial solutions of a real olympiad problem.

The outcomes below were measured: the jury's own solutions of "Machine" (practice session of the
IOI 2024, github.com/ioi-2024/tasks, CC0), each run on all 43 tests with the jury's manager. A group
of digits is the sample, then a subtask; its points are in POINTS. A solution of 38 points passes
all tests of three subtasks, so what a scheme makes of it is no accident of random data.
"""

import re
from pathlib import Path

import pytest

from openmimo.rewards.difficulty import choose_levels, cluster_levels, pass_rates
from openmimo.rewards.grading import Grading

POINTS = (7, 12, 19, 21, 10, 31)
OUTCOMES = {
    "sol": "1 1111111 1111111 1111111 1111111 1111111 1111111",
    "sol-zoooma13": "1 1111111 1111111 1111111 1111111 1111111 1111111",
    "2n": "1 1111111 1111111 1111111 1111111 0000011 0000011",
    "sub123": "1 1111111 1111111 1111111 0000000 0000000 0000000",
    "nx": "1 1111111 1111111 1111111 0000000 0000000 0000000",
    "twoqueries": "1 1111111 1111111 0000000 0000000 0000000 0000000",
    "sol_2": "1 1111111 1111111 0000000 0000000 0000000 0000000",
    "oddn": "1 1000000 1000000 1000000 1000000 1111111 1000000",
    "nplusone": "1 1111111 0000000 0000000 0000000 0000000 0000000",
    "wa_nplusone": "1 1011111 0000000 0000000 0000000 0000000 0000000",
}
FAILED = 7  # more solutions passed no test at all

PASSED = {
    name: [digit == "1" for digit in digits.replace(" ", "")] for name, digits in OUTCOMES.items()
}
MATRIX = [*PASSED.values(), *[[False] * 43] * FAILED]
RATES = pass_rates(MATRIX)
SUBTASKS = [range(1 + 7 * n, 8 + 7 * n) for n in range(6)]
GIVEN = [[0, *SUBTASKS[0]], *SUBTASKS[1:]]  # the sample is worth nothing, and none fails it alone
STRICT, SOFT, ALONE = Grading("strict"), Grading("soft"), Grading("strict", cumulative=False)


def points(passed):
    """By the IOI's rule, written down again: a subtask's points for all of its tests."""
    return sum(p for p, t in zip(POINTS, SUBTASKS, strict=True) if all(passed[i] for i in t))


def row(name):
    passed = PASSED[name]
    three, six = cluster_levels(RATES, 3), cluster_levels(RATES, 6)
    rewards = [
        points(passed) / 100,
        sum(passed) / len(passed),
        STRICT.reward(passed, three),
        STRICT.reward(passed, six),
        STRICT.reward(passed, GIVEN, POINTS),
        ALONE.reward(passed, GIVEN, POINTS),
        SOFT.reward(passed, three),
        SOFT.reward(passed, GIVEN, POINTS),
    ]
    return f"| {name} | " + " | ".join(f"{reward:.2f}" for reward in rewards) + " |"


def test_the_table_in_the_documentation():
    text = (Path(__file__).parents[2] / "docs/rewards.md").read_text()
    table = re.findall(r"^\| [\w-]+ (?:\| \d\.\d\d ){8}\|$", text, re.MULTILINE)
    assert table == [row(name) for name in PASSED]


@pytest.mark.parametrize("name", PASSED)
def test_given_subtasks_without_the_cumulative_rule_are_the_ioi(name):
    assert ALONE.reward(PASSED[name], GIVEN, POINTS) == pytest.approx(points(PASSED[name]) / 100)


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 6])
def test_strict_gives_nothing_to_a_solution_that_misses_easy_tests(levels):
    """oddn solves a hard subtask, for odd n, and six tests of each easier one are even."""
    by_rate = cluster_levels(RATES, levels)
    assert points(PASSED["oddn"]) == 10
    assert STRICT.reward(PASSED["oddn"], by_rate) == 0
    assert SOFT.reward(PASSED["oddn"], by_rate) > 0.2


def test_one_easy_test_costs_strict_everything_and_soft_its_share():
    levels = cluster_levels(RATES, 3)
    whole = [True] * 43
    whole[levels[0][0]] = False
    assert STRICT.reward(whole, levels) == 0
    assert SOFT.reward(whole, levels) == pytest.approx(1 - 1 / 3 / len(levels[0]))


def test_strict_knows_fewer_values_than_there_are_scores():
    levels = cluster_levels(RATES, 3)
    by_points = {points(passed): STRICT.reward(passed, levels) for passed in PASSED.values()}
    assert by_points[59] == by_points[38]
    assert by_points[10] == by_points[7] == by_points[0] == 0


def test_seventeen_solutions_tell_two_levels_apart():
    assert [len(level) for level in choose_levels(RATES, len(MATRIX))] == [16, 27]
