"""The judge and the verifier on a cluster: the verdicts of the local ones, whatever is killed."""

import os
import random
import signal
import time

import pytest

from openmimo.errors import UserError
from openmimo.judge import (
    AssertTest,
    CallTest,
    Checker,
    Judge,
    Limits,
    Program,
    Rule,
    Status,
    StdioTest,
)
from openmimo.judge.ray_judge import RayJudge
from openmimo.rewards.math_verifier import MathVerifier
from openmimo.rewards.pool import RewardPool
from openmimo.rewards.ray_math import RayMathVerifier

LIMITS = Limits(cpu_seconds=0.5, wall_seconds=10.0)
ADD_ONE = [StdioTest("1\n", "2\n"), StdioTest("41\n", "42\n")]
SAME = Checker(
    Program("import sys\nsys.exit(open(sys.argv[2]).read() != open(sys.argv[3]).read())")
)
ZOO = {
    "right": ("print(int(input()) + 1)", ADD_ONE),
    "wrong once": ("n = int(input()); print(n + 1 + (n > 40))", ADD_ONE),
    "crash": ("print(1 // 0)", ADD_ONE),
    "no program": ("print(", ADD_ONE),
    "endless": ("while True: pass", ADD_ONE),
    "memory": ("x = 'x' * (1 << 40)", ADD_ONE),
    "flood": ("while True: print('x' * 65536)", ADD_ONE),
    "exit": ("import os; os._exit(0)", ADD_ONE),
    "bytes": ("import sys; print(sys.stdin.buffer.read())", [StdioTest(b"\xff", "b'\\xff'")]),
    "call": ("def f(x): return [x, x / 3]", [CallTest("f", [1], [1, 0.3333333333])]),
    "exact call": ("def f(x): return x / 3", [CallTest("f", [1], 0.3333, Rule("exact"))]),
    "assertions": ("def f(x): return {x}", [AssertTest("assert f(3) == {3}")]),
    "numpy": ("import numpy\nprint(numpy.arange(3).sum())", [StdioTest("", "3")]),
    "checked": ("print(input())", [StdioTest("a\n", "a\n", SAME), StdioTest("a\n", "b\n", SAME)]),
    "surrogate": ("print('\\ud800')", [StdioTest("", "x")]),
}


@pytest.fixture
def judge(cluster):
    with RayJudge(2, LIMITS, address=cluster.address) as judge:
        yield judge


def outline(verdict):
    return [(test.status, test.detail, test.unsafe) for test in verdict.tests]


@pytest.mark.slow
def test_the_verdicts_are_those_of_the_local_judge(judge):
    with Judge(1, LIMITS) as local:
        for stop in False, True:
            options = {"stop_at_failure": stop}
            futures = {name: judge.submit(*case, **options) for name, case in ZOO.items()}
            expected = {name: local.submit(*case, **options) for name, case in ZOO.items()}
            for name, future in futures.items():
                verdict = future.result(timeout=120)
                assert outline(verdict) == outline(expected[name].result(timeout=120)), name
                assert name == "no program" or verdict.cpu_seconds > 0


def test_equal_solutions_are_judged_once_and_bad_tests_refused(judge):
    first = judge.submit("print(2)", ADD_ONE)
    assert judge.submit("print(2)", list(ADD_ONE)) is first
    assert judge.submit("print(2)", ADD_ONE, order=[1, 0]) is not first
    assert first.result(timeout=60).passed == (True, False)
    with pytest.raises(UserError, match="order"):
        judge.submit("print(2)", ADD_ONE, order=[0, 0])
    with pytest.raises(UserError, match="without tests"):
        judge.submit("print(2)", [])


@pytest.mark.slow
def test_actors_and_fork_servers_are_killed_and_each_solution_gets_its_verdict(
    judge, actor_processes
):
    chance = random.Random(0)
    programs = [f"print(int(input()) + {1 + n % 3 // 2})  # {n}" for n in range(400)]
    futures = [judge.submit(program, ADD_ONE) for program in programs]
    counts = [0] * len(futures)
    for number, future in enumerate(futures):
        future.add_done_callback(lambda _, n=number: counts.__setitem__(n, counts[n] + 1))
    for _ in range(4):
        time.sleep(0.8)
        actors = actor_processes()
        if actors:
            os.kill(chance.choice(actors), signal.SIGKILL)
    for number, future in enumerate(futures):
        assert future.result(timeout=120).passed == ((number % 3 != 2),) * 2
    assert counts == [1] * len(futures)


def block(program):
    return f"```python\n{program}\n```"


@pytest.mark.slow
def test_rewards_come_from_all_nodes_and_one_is_lost(cluster, actor_processes, monkeypatch):
    """A judge and a verifier on each node, side by side."""
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    code = {"id": "c", "domain": "code", "tests": [{"stdin": "1", "stdout": "3"}] * 2}
    math = {"id": "m", "domain": "math", "answer": "x+1"}
    with RewardPool(judge=LIMITS, judge_at="ray") as pool:
        pool.start_judge()
        assert len(actor_processes()) == 2
        node = cluster.add_node(num_cpus=2, object_store_memory=80_000_000)
        deadline = time.monotonic() + 60
        while len(actor_processes()) < 4:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        programs = [block(f"import time; time.sleep(0.02); print({n % 5})#{n}") for n in range(120)]
        programs = [pool.score(code, program) for program in programs]
        answers = [pool.score(math, rf"\boxed{{1+x+{n % 2}+{n}-{n}}}") for n in range(4)]
        time.sleep(0.5)
        cluster.remove_node(node, allow_graceful=False)
        assert [f.result(120).score for f in programs] == [float(n % 5 == 3) for n in range(120)]
        assert [f.result(120).score for f in answers] == [1.0, 0.0, 1.0, 0.0]


def test_close_gives_every_solution_a_verdict(cluster):
    judge = RayJudge(1, LIMITS, address=cluster.address)
    futures = [judge.submit(f"import time; time.sleep(1)  # {n}", ADD_ONE) for n in range(20)]
    judge.close()
    for future in futures:
        verdict = future.result(timeout=0)
        assert {test.status for test in verdict.tests} == {Status.JUDGE_ERROR}
        assert len(verdict.tests) == 2
        assert "closed" in verdict.tests[0].detail
    with pytest.raises(UserError, match="closed"):
        judge.submit("print(1)", ADD_ONE)


PAIRS = [
    ("1", "1"), ("\\frac12", "0.5"), ("x^2 + 2x + 1", "(x+1)^2"), ("(x+1)^3", "(x+1)^2"),
    ("\\sqrt{8}", "2\\sqrt{2}"), ("", "3"), ("{", "x^2"), ("9" * 400, "1"),
    ("\\frac{1}{\\sqrt{2}}", "\\frac{\\sqrt{2}}{2}"), ("(1, 2)", "(2, 1)"),
]  # fmt: skip


@pytest.mark.slow
def test_mathematics_verdicts_are_those_of_the_local_verifier(cluster, actor_processes):
    with MathVerifier() as local, RayMathVerifier(1, address=cluster.address) as remote:
        expected = [local.submit(*pair).result(timeout=60) for pair in PAIRS]
        assert [remote.submit(*pair).result(timeout=60) for pair in PAIRS] == expected
        futures = [remote.submit(f"(x+{n})(x-{n})", f"x^2-{n}^2") for n in range(2, 22)]
        os.kill(actor_processes()[0], signal.SIGKILL)
        assert {future.result(timeout=60).status for future in futures} == {Status.OK}
        again = remote.submit("(x+2)(x-2)", "x^2-2^2")
        assert again is futures[0]
        pending = [remote.submit(f"(x+{n})^2", f"x^2+{2 * n}x+{n * n}") for n in range(50, 80)]
    ends = {future.result(timeout=0).status for future in pending}
    assert ends <= {Status.OK, Status.JUDGE_ERROR}
    assert Status.JUDGE_ERROR in ends
