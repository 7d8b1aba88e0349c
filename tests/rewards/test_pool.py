"""The pool: results, caching, deadlines, and processes that do not outlive it."""

import pytest

from openmimo.curation.golden import TEST_MEMORY_MB
from openmimo.errors import UserError
from openmimo.judge import Limits, Status
from openmimo.rewards.code import program_limits
from openmimo.rewards.grading import Grading
from openmimo.rewards.pool import RewardPool
from openmimo.rollout.driver import Patience

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


def scores(pool, *asked):
    """The verdicts on some responses, which are all asked for before the first is waited for."""
    futures = [pool.score(problem, response) for problem, response in asked]
    return [future.result(timeout=60) for future in futures]


@pytest.fixture(scope="module")
def pool():
    with RewardPool(grading=Grading("soft"), math_seconds=20.0) as pool:
        yield pool


def test_scores_both_domains(pool):
    asked = {
        "right": (MATH, r"\boxed{1+x}"),
        "wrong": (MATH, r"\boxed{x+2}"),
        "no box": (MATH, "x+1"),
        "square": (CODE, block("def f(x): return x * x")),
        "half": (CODE, block("def f(x): return x")),
        "crash": (CODE, block("raise ValueError")),
        "prose": (CODE, "def f(x): return x * x"),
    }
    results = dict(zip(asked, scores(pool, *asked.values()), strict=True))
    assert {key: result.score for key, result in results.items()} == {
        "right": 1, "wrong": 0, "no box": 0, "square": 1, "half": 0.5, "crash": 0, "prose": 0
    }  # fmt: skip
    assert results["no box"].status is results["prose"].status is Status.UNPARSEABLE
    assert results["half"].passed == (True, True, False, False)


def test_equal_answers_are_scored_once(pool):
    before = pool.scored
    program = block("def f(x): return x ** 2")
    results = scores(
        pool,
        *((MATH, rf"thought {i} \boxed{{2+x}}") for i in range(16)),
        *((CODE, f"thought {i}\n{program}") for i in range(16)),
    )
    assert [result.score for result in results] == [0] * 16 + [1] * 16
    assert pool.scored - before == 2


def test_the_cache_keeps_problems_apart(pool):
    other = {**CODE, "id": "other", "tests": [{"args": [3], "expected": 27}], "levels": None}
    program = block("def f(x): return x ** 3")
    cube, square = scores(pool, (other, program), (CODE, program))
    assert (cube.score, square.score) == (1, 0.5)


def test_unknown_domain(pool):
    with pytest.raises(UserError, match="poetry"):
        pool.score({"id": "p", "domain": "poetry"}, "")


def test_closing_leaves_nothing_unanswered():
    pool = RewardPool(judge=Limits(wall_seconds=60.0))
    programs = [block(f"import time\ndef f(x): time.sleep({50 + i})") for i in range(3)]
    futures = [pool.score(CODE, program) for program in programs]
    pool.close()
    assert {future.result(timeout=10).score for future in futures} == {None}


def test_a_program_may_use_the_whole_time_of_each_test():
    """As one that only sleeps; CPU time is less."""
    two, one = {"tests": [{}, {}]}, {"tests": [{}]}
    with RewardPool(judge=program_limits(3.0)) as pool:
        assert pool.longest([one, MATH, two, one]) == 2 * 30.0
        assert pool.longest([MATH]) == pool.longest([]) == 0.0
        assert pool.at_once == 4 * 2  # a judge and a verifier
    patience = Patience.beyond(60.0, 8)
    assert patience.rewards == 8
    assert patience.reward - Patience().reward == 60.0
    assert patience.silence - patience.reward == Patience().silence - Patience().reward


def test_a_heavy_program_passes_with_the_limits_it_was_curated_with():
    heavy = block("x = bytearray(400 << 20)\ndef f(x): return x * x")
    verdicts = []
    for limits in program_limits(), program_limits(5.0, TEST_MEMORY_MB):
        with RewardPool(judge=limits) as pool:
            verdicts += scores(pool, (CODE, heavy))
    assert [verdict.score for verdict in verdicts] == [0, 1]
