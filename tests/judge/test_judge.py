"""The queue of solutions: workers, order, limits, costs, what is judged once."""

import asyncio
import time

import pytest

from openmimo.errors import UserError
from openmimo.judge import CallTest, Judge, Limits, Rule, Status

from .calls import calls, run, submit


@pytest.fixture(scope="module")
def judge():
    with Judge() as judge:
        yield judge


def test_workers_judge_side_by_side():
    with Judge(workers=2, limits=Limits(wall_seconds=30.0)) as judge:
        start = time.monotonic()
        sleepers = [
            submit(judge, f"import time\ndef f(): time.sleep(1.{n})", [[]], [None])
            for n in range(2)
        ]
        assert all(future.result(timeout=60).passed == (True,) for future in sleepers)
        assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    "tests", [[], [CallTest("f", [1], {1, 2})], [CallTest("f", [object()], 1)]]
)
def test_bad_tests_are_the_users_error(judge, tests):
    with pytest.raises(UserError):
        judge.submit("def f(): pass", tests)


@pytest.mark.parametrize("order", [[0], [0, 0], [0, 2], [0, 1, 2]])
def test_an_order_that_is_none_is_the_users_error(judge, order):
    with pytest.raises(UserError, match="exactly once"):
        judge.submit("def f(): pass", calls([[], []], [1, 1]), order=order)


def test_bad_limits_and_rules_are_the_users_error():
    for make in (
        lambda: Limits(cpu_seconds=0),
        lambda: Limits(memory_mb=-1),
        lambda: Rule("tokenz"),
        lambda: Rule("floats", absolute=-1),
        lambda: Rule("floats", relative=float("nan")),
        lambda: Judge(workers=0),
    ):
        with pytest.raises(UserError):
            make()


def test_stopping_at_the_first_failure_skips_the_rest_in_order(judge):
    program = "def f(x): return x % 3"
    verdict = run(
        judge, program, [[0], [1], [2], [3]], [0, 1, 2, 1], order=[2, 3, 0, 1], stop_at_failure=True
    )
    statuses = [test.status for test in verdict.tests]
    assert statuses == [Status.SKIPPED, Status.SKIPPED, Status.OK, Status.WRONG]


def test_the_same_program_is_judged_once():
    program = "import time\ndef f(): return time.time()"
    with Judge(workers=2) as judge:
        while_running = [submit(judge, program, [[]], [1]) for _ in range(5)]
        assert len({future.result(timeout=60).tests[0] for future in while_running}) == 1
        again = run(judge, program, [[]], [1])
        assert again == while_running[0].result()
        other_limits = submit(judge, program, [[]], [1], limits=Limits(cpu_seconds=2.0))
        assert other_limits.result(timeout=60) != again


def test_the_most_expensive_solutions_are_taken_first():
    with Judge() as judge:
        run(judge, "def f(x):\n    for _ in range(5 * 10**6): pass", [[0]], [None])
        run(judge, "def f(x): pass", [[1]], [None])
        blocker = submit(judge, "import time\ndef f(x): time.sleep(0.5)", [[0]], [None])
        ends = []
        for number, x in enumerate((1, 0, 1, 0)):
            future = submit(judge, f"def f(x): pass  # {number}", [[x]], [None])
            future.add_done_callback(lambda _, x=x: ends.append(x))
        blocker.result(timeout=60)
        while len(ends) < 4:
            time.sleep(0.01)
    assert ends == [0, 0, 1, 1]


def test_costs_are_counted(judge):
    program = "def f(n):\n    for _ in range(n): pass"
    cheap, dear = run(judge, program, [[1], [10**7]], [None, None]).tests
    assert cheap.cpu_seconds < 0.05 < dear.cpu_seconds < dear.wall_seconds + 0.02
    sleeper = run(judge, "import time\ndef f(): time.sleep(0.3)", [[]], [None])
    assert sleeper.tests[0].wall_seconds > 0.3
    assert sleeper.cpu_seconds < 0.1


def test_the_asynchronous_twin_gives_the_same(judge):
    program, tests = "def f(x): return x", calls([[1], [2]], [1, 1])

    async def both():
        return await asyncio.gather(*(judge.run_async(program, tests) for _ in range(2)))

    expected = [verdict.status for verdict in judge.run(program, tests)]
    for verdicts in asyncio.run(both()):
        assert [verdict.status for verdict in verdicts] == expected == [Status.OK, Status.WRONG]


def test_each_solution_has_its_own_limits(judge):
    program = "def f(): return len(bytearray(400 << 20))"
    test = [CallTest("f", [], 400 << 20)]
    for megabytes, status in ((600, Status.OK), (300, Status.MEMORY), (600, Status.OK)):
        (verdict,) = judge.run(program, test, Limits(5.0, 60.0, memory_mb=megabytes))
        assert verdict.status is status, megabytes
        program += " "  # another one, or the verdict would be remembered


def test_expensive_solutions_go_first_but_cheap_ones_do_not_wait_for_ever():
    ended = []

    def queue(judge, name, seconds):
        test, limits = [CallTest("f", [], 1)], Limits(cpu_seconds=seconds)
        future = judge.submit(f"def f(): return 1 # {name}", test, limits)
        future.add_done_callback(lambda _: ended.append(name))
        return future

    with Judge() as judge:
        judge.submit("import time\ndef f(): time.sleep(0.8)", [CallTest("f", [], None)])
        futures = [queue(judge, "cheap", 0.1), queue(judge, "dear", 0.2)]
        time.sleep(0.4)
        futures += [queue(judge, "dear, late", 0.3)]
        for future in futures:
            assert future.result(timeout=60).passed == (True,)
    assert ended == ["dear", "cheap", "dear, late"]
