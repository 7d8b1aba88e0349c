"""The report's rules on pass rates, at their boundaries."""

import pytest

from openmimo.curation.keep import Outcomes, keep
from openmimo.curation.rollouts import outcomes_of

from .conftest import split

MATH = {"id": "m", "domain": "math", "prompt": "?", "answer": "1"}
CODE = {"id": "c", "domain": "code", "prompt": "?", "tests": [{}, {}], "golden": "pass"}
BARE = CODE | {"golden": None}


def verdict(problem, strong, own):
    """The reason for which it is dropped, or the problem that stays."""
    measured = [None if each is None else {problem["id"]: each} for each in (strong, own)]
    kept, dropped = split(keep([problem], *measured))
    return dropped[0].reason if dropped else kept[0]


@pytest.mark.parametrize(
    ("problem", "strong", "own", "reason"),
    [
        (MATH, None, Outcomes(16, 15), "too easy"),  # 0.9375
        (MATH, None, Outcomes(16, 14), None),  # 0.875
        (MATH, None, Outcomes(10, 9), None),  # exactly 0.9
        (MATH, None, Outcomes(16, 0), None),  # too hard for now is no fault
        (MATH, Outcomes(16, 0), Outcomes(16, 3), "unsolved by the strong model"),
        (MATH, Outcomes(16, 1), None, None),
        (CODE, None, Outcomes(16, 16), "too easy"),
        (CODE, None, Outcomes(16, 15), None),
        (CODE, Outcomes(16, 0, (0, 0)), None, None),  # the golden solution vouches for the tests
        (BARE, Outcomes(16, 0, (0, 0)), None, "no test was passed"),
        (BARE, Outcomes(16, 0), None, "no test was passed"),
        (BARE, Outcomes(16, 0, (0, 1)), None, None),
        (BARE, None, None, "no golden solution"),
        (BARE, None, Outcomes(16, 3, (9, 3)), "no golden solution"),
        (CODE, None, None, None),
        (MATH, None, Outcomes(0, 0), "no rollout could be judged"),
        (MATH, Outcomes(0, 0), None, "no rollout could be judged"),
    ],
)
def test_rules(problem, strong, own, reason):
    result = verdict(problem, strong, own)
    assert result == reason if reason else result["id"] == problem["id"]


def test_a_problem_that_no_model_could_be_asked_is_said_to_be():
    (drop,) = keep([MATH], None, {})
    assert (drop.reason, drop.detail) == ("prompt longer than the context", "of the own model")


def test_pass_rates_go_with_what_is_kept():
    kept = verdict(CODE, Outcomes(4, 1, (4, 1)), Outcomes(12, 3, (8, 3)))
    assert (kept["strong_pass_rate"], kept["own_pass_rate"]) == (0.25, 0.25)
    assert (kept["strong_answers"], kept["own_answers"]) == (4, 12)
    assert kept["pass_rates"] == [12 / 16, 4 / 16]


def test_what_was_not_judged_is_no_failure():
    answers = [(True, "11"), (False, "10"), (None, ""), (False, ""), None]
    assert outcomes_of(answers) == Outcomes(3, 1, (2, 1))
    assert outcomes_of([(None, "")]) == Outcomes(0, 0)
