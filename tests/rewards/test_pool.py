"""The pool: results, caching, deadlines, and processes that do not outlive it."""

import pytest

from openmimo.errors import UserError
from openmimo.judge import Limits, Status
from openmimo.rewards.grading import Grading
from openmimo.rewards.pool import RewardPool

MATH = {"id": "m", "domain": "math", "answer": "x+1"}
CODE = {
    "id": "c",
    "domain": "code",
    "entry_point": "f",
    "tests": [{"args": [i], "expected": i * i} for i in range(4)],
    "levels": [[0, 1], [2, 3]],
}


def block(program):
    return f"```python\n{program}\n```"


def collect(pool):
    results = {}
    while pool.in_flight:
        batch = pool.wait(timeout=60)
        assert batch, "a result is overdue"
        results.update(batch)
    return results


@pytest.fixture(scope="module")
def pool():
    with RewardPool(grading=Grading("soft"), math_seconds=20.0) as pool:
        yield pool


def test_scores_both_domains_and_keeps_keys_apart(pool):
    pool.submit("right", MATH, r"\boxed{1+x}")
    pool.submit("wrong", MATH, r"\boxed{x+2}")
    pool.submit("no box", MATH, "x+1")
    pool.submit("square", CODE, block("def f(x): return x * x"))
    pool.submit("half", CODE, block("def f(x): return x"))
    pool.submit("crash", CODE, block("raise ValueError"))
    pool.submit("prose", CODE, "def f(x): return x * x")
    results = collect(pool)
    scores = {key: result.score for key, result in results.items()}
    assert scores == {
        "right": 1, "wrong": 0, "no box": 0, "square": 1, "half": 0.5, "crash": 0, "prose": 0
    }  # fmt: skip
    assert results["no box"].status is results["prose"].status is Status.UNPARSEABLE
    assert results["half"].passed == (True, True, False, False)
    assert pool.poll() == []
    assert pool.wait() == []


def test_equal_answers_are_scored_once(pool):
    before = pool.scored
    for i in range(16):
        pool.submit(i, MATH, rf"thought {i} \boxed{{2+x}}")
        pool.submit(-1 - i, CODE, f"thought {i}\n" + block("def f(x): return x ** 2"))
    results = collect(pool)
    assert len(results) == 32
    assert {result.score for key, result in results.items() if key >= 0} == {0}
    assert {result.score for key, result in results.items() if key < 0} == {1}
    assert pool.scored - before == 2


def test_the_cache_keeps_problems_apart(pool):
    other = {**CODE, "id": "other", "tests": [{"args": [3], "expected": 27}], "levels": None}
    program = block("def f(x): return x ** 3")
    pool.submit("cube", other, program)
    pool.submit("square", CODE, program)
    results = collect(pool)
    assert results["cube"].score == 1
    assert results["square"].score == 0.5


def test_unknown_domain(pool):
    with pytest.raises(UserError, match="poetry"):
        pool.submit("x", {"id": "p", "domain": "poetry"}, "")


def test_closing_leaves_nothing_unanswered():
    pool = RewardPool(judge=Limits(wall_seconds=60.0))
    for i in range(3):
        pool.submit(i, CODE, block(f"import time\ndef f(x): time.sleep({50 + i})"))
    pool.close()
    results = dict(pool.wait(timeout=10))
    assert len(results) == 3
    assert {result.score for result in results.values()} == {None}
