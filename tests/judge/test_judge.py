"""Function calls: honest programs, their verdicts, and the judge's own life."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from openmimo.errors import UserError
from openmimo.judge import CallTest, Judge, Limits, Rule, Status


@pytest.fixture(scope="module")
def judge():
    with Judge() as judge:
        yield judge


def calls(args, expected):
    return [CallTest("f", a, value) for a, value in zip(args, expected, strict=True)]


def submit(judge, program, args, expected, **options):
    return judge.submit(textwrap.dedent(program), calls(args, expected), **options)


def run(judge, program, args, expected, **options):
    return submit(judge, program, args, expected, **options).result(timeout=60)


HONEST = {
    "imports": (
        """
        import math, collections, itertools, re, heapq, bisect, functools, string, random
        import statistics, threading, hashlib, decimal, fractions, operator, copy, queue
        from typing import *
        def f(x): return [math.gcd(x, 6), re.sub("a", "b", "aa"), statistics.mean([x, x])]""",
        [4],
        [2, "bb", 4],
    ),
    "recursion": ("def f(n): return n if n < 2 else f(n - 1) + f(n - 2)", [15], 610),
    "generator to tuple": ("def f(n): return tuple(i * i for i in range(n))", [3], [0, 1, 4]),
    "prints": ("def f(n):\n    print('debug', n, flush=True)\n    return n", [7], 7),
    "standard error": (
        "import sys\ndef f(n):\n    sys.stderr.write('x' * 99999)\n    return n",
        [7],
        7,
    ),
    "dataclass": (
        """
        from __future__ import annotations
        from dataclasses import dataclass
        @dataclass
        class P:
            x: int
        def f(n): return P(n).x""",
        [3],
        3,
    ),
    "threads": (
        """
        import threading
        def f(n):
            out = []
            thread = threading.Thread(target=lambda: out.append(n))
            thread.start(); thread.join()
            return out""",
        [3],
        [3],
    ),
    "integer keys": ("def f(n): return {n: n}", [3], {"3": 3}),
    "none": ("def f(n): return None", [3], None),
    "unicode": ("def f(s): return s[::-1]", ["aé漢😀"], "😀漢éa"),
    "lambda": ("f = lambda *xs: sum(xs)", [1, 2, 3], 6),
    "main guard": ("def f(n): return n\nif __name__ == '__main__':\n    input()", [1], 1),
    "big integer": ("def f(n): return 2 ** n", [2000], 2**2000),
    "float": ("def f(n): return 0.1 + 0.2", [0], 0.3),
    "integer for a float": ("def f(n): return 2", [0], 2.0),
}


@pytest.mark.parametrize(("program", "args", "expected"), HONEST.values(), ids=HONEST.keys())
def test_honest_program_passes(judge, program, args, expected):
    verdict = run(judge, program, [args], [expected])
    assert verdict.passed == (True,), verdict
    assert not verdict.unsafe


WRONG = {
    "true for one": ("def f(): return True", 1),
    "one for true": ("def f(): return 1", True),
    "float for an integer": ("def f(): return 2.0", 2),
    "almost": ("def f(): return 0.3001", 0.3),
    "almost an integer": ("def f(): return 10**17 + 1", 10**17),
    "not a number": ("def f(): return float('nan')", 0.5),
    "string for a number": ("def f(): return '1'", 1),
    "set": ("def f(): return {1}", [1]),
    "order": ("def f(): return [2, 1]", [1, 2]),
    "longer": ("def f(): return [1, 2, 3]", [1, 2]),
    "other key": ("def f(): return {'b': 1}", {"a": 1}),
    "clashing keys": ("def f(): return {'1': 1, 1: 1}", {"1": 1}),
    "nothing": ("def f(): pass", 0),
    "generator": ("def f(): yield 1", [1]),
}


@pytest.mark.parametrize(("program", "expected"), WRONG.values(), ids=WRONG.keys())
def test_other_values_are_wrong(judge, program, expected):
    assert run(judge, program, [[]], [expected]).tests[0].status is Status.WRONG


def test_every_test_has_a_process_of_its_own(judge):
    program = """
        import json
        count = 0
        def f(xs):
            global count
            count += 1
            json.dumps = None
            xs.append(count)
            return xs
        """
    assert run(judge, program, [[[]]] * 4, [[1]] * 4).passed == (True,) * 4


LEETCODE = """
class Solution:
    def __init__(self):
        self.seen = 0
    def f(self, xs: List[int], root: Optional[int] = None) -> Dict[str, int]:
        heapify(xs)
        return {"smallest": xs[0], "half": gcd(len(xs), 2), "seen": self.seen}
"""


def test_a_method_in_the_form_of_leetcode(judge):
    tests = [
        CallTest("Solution.f", [[3, 1, 2, 4]], {"smallest": 1, "half": 2, "seen": 0}),
        CallTest("Solution.g", [[3]], 0),
        CallTest("Absent.f", [[3]], 0),
    ]
    statuses = [verdict.status for verdict in judge.run(LEETCODE, tests)]
    assert statuses == [Status.OK, Status.COMPILE, Status.COMPILE]


def test_rules_for_values(judge):
    program = "def f(): return [[1, 2], [0.5000001]]"
    rules = [Rule("floats"), Rule("exact"), Rule("unordered"), Rule("floats", 0, 1e-9)]
    tests = [CallTest("f", [], [[1, 2], [0.5]], rule) for rule in rules]
    tests.append(CallTest("f", [], [[0.5], [1, 2]], Rule("unordered")))
    tests.append(CallTest("f", [], [[0.5], [2, 1]], Rule("unordered")))
    passed = [verdict.status is Status.OK for verdict in judge.run(program, tests)]
    assert passed == [True, False, True, False, True, False]


def test_exception_fails_its_own_test_only_and_is_described(judge):
    verdict = run(judge, "def f(x): return 6 / x", [[0], [2]], [0, 3.0])
    assert [test.status for test in verdict.tests] == [Status.CRASH, Status.OK]
    assert verdict.tests[0].detail == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("def f(:", Status.COMPILE),
        ("", Status.COMPILE),
        ("f = 3", Status.COMPILE),
        ("def g(): pass", Status.COMPILE),
        ("import absent_module\ndef f(): return 1", Status.CRASH),
        ("import os; os._exit(0)", Status.CRASH),
        ("raise SystemExit", Status.CRASH),
        ("x = [0] * 10**11\ndef f(): return 1", Status.MEMORY),
        ("\x00", Status.COMPILE),
        ("\ud800", Status.COMPILE),
        ("(" * 5000, Status.COMPILE),
        ("-" * 10**6 + "1", Status.COMPILE),
        ("x = (1,) * 10**9", Status.MEMORY),
    ],
)
def test_program_that_cannot_be_defined_fails_every_test(judge, program, status):
    verdict = run(judge, program, [[], []], [1, 1])
    assert [test.status for test in verdict.tests] == [status, status], verdict


def test_large_requests_and_replies(judge):
    numbers = list(range(10_000))
    verdict = run(judge, "def f(xs): return xs[::-1]", [[numbers]] * 20, [numbers[::-1]] * 20)
    assert verdict.passed == (True,) * 20


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


def test_a_dead_server_is_replaced_and_nothing_is_lost():
    with Judge() as judge:
        pid = judge._workers[0].pid
        idle = len(_descendants(pid))
        slow = submit(judge, "import time\ndef f(): time.sleep(1)", [[]], [None])
        while len(_descendants(pid)) == idle:
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        assert slow.result(timeout=30).passed == (True,)
        os.kill(judge._workers[0].pid, signal.SIGKILL)  # while idle
        while judge._workers[0].alive():
            time.sleep(0.01)
        assert run(judge, "def f(): return 1", [[]], [1]).passed == (True,)


def test_a_server_that_dies_twice_is_a_judge_error():
    with Judge() as judge:
        slow = submit(judge, "import time\ndef f(): time.sleep(3)", [[]], [None])
        killed = set()
        while not slow.done():
            pid = judge._workers[0].pid
            if pid not in killed and len(_descendants(pid)) > 1:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            time.sleep(0.01)
        assert len(killed) == 2
        assert slow.result().judge_failed
        assert run(judge, "def f(): return 1", [[]], [1]).passed == (True,)


def test_close_does_not_wait_for_a_long_run():
    judge = Judge(limits=Limits(wall_seconds=100.0))
    idle = len(_descendants(judge._workers[0].pid))
    programs = [f"import time\ndef f(): time.sleep({seconds})" for seconds in (90, 91)]
    running, waiting = [submit(judge, program, [[]], [None]) for program in programs]
    while len(_descendants(judge._workers[0].pid)) == idle:
        time.sleep(0.01)
    start = time.monotonic()
    judge.close()
    assert time.monotonic() - start < 5
    assert running.result(timeout=0).judge_failed
    assert waiting.result(timeout=0).judge_failed
    with pytest.raises(UserError, match="closed"):
        submit(judge, programs[0], [[]], [None])


def test_each_solution_has_its_own_limits(judge):
    program = "def f(): return len(bytearray(400 << 20))"
    test = [CallTest("f", [], 400 << 20)]
    for megabytes, status in ((600, Status.OK), (300, Status.MEMORY), (600, Status.OK)):
        (verdict,) = judge.run(program, test, Limits(memory_mb=megabytes, cpu_seconds=5.0))
        assert verdict.status is status, megabytes
        program += " "  # another one, or the verdict would be remembered


def test_unsafe_judges_without_the_sandbox_and_says_so():
    with Judge(limits=Limits(cpu_seconds=0.2), unsafe=True) as judge:
        verdict = run(judge, "import os\ndef f(): return os.path.exists('/')", [[]], [True])
        assert verdict.passed == (True,)
        assert verdict.unsafe
        assert run(judge, "while True: pass", [[]], [1]).tests[0].status is Status.TIMEOUT


# Forbids some system calls with a filter of its own, as a container may, then starts a judge.
_HANDICAPPED = """
import ctypes, os, struct, sys
from openmimo.errors import UserError
from openmimo.judge import CallTest, Judge
from openmimo.judge.sandbox.seccomp import Filter
x86 = os.uname().machine == "x86_64"
op = lambda code, k, t=0, f=0: struct.pack("=HBBI", code, t, f, k)
program = op(0x20, 0)
if sys.argv[1] == "seccomp":  # prctl(PR_SET_SECCOMP): once for this filter, never again
    program += op(0x15, 157 if x86 else 167, 0, 3)
    program += op(0x20, 16) + op(0x15, 22, 0, 1) + op(6, 0x50000 | 22)
else:
    numbers = (444, 445, 446) if sys.argv[1] == "landlock" else (272 if x86 else 97,)
    program += b"".join(op(0x15, number, 0, 1) + op(6, 0x50000 | 38) for number in numbers)
program += op(6, 0x7FFF0000)
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # no_new_privs, without which nobody may install filters
Filter(program).install()
for unsafe in (False, True):
    try:
        with Judge(unsafe=unsafe) as judge:
            print(*judge.run("def f(): return 1", [CallTest("f", [], 1)]))
    except UserError as error:
        print("refused:", error)
"""


def handicapped(missing):
    output = subprocess.run(
        [sys.executable, "-c", _HANDICAPPED, missing],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert output.stdout.count("\n") == 2, output.stderr
    return output.stdout.splitlines()


@pytest.mark.parametrize("missing", ["landlock", "seccomp"])
def test_refuses_to_run_where_the_sandbox_cannot_be_installed(missing):
    safe, unsafe = handicapped(missing)
    assert safe.startswith("refused: judge: ")
    assert missing in safe
    assert "--unsafe-local" in safe
    assert "unsafe=True" in unsafe


def test_works_where_namespaces_are_forbidden():
    safe, _ = handicapped("namespaces")
    assert safe.startswith("Verdict(status=<Status.OK")
    assert "unsafe=False" in safe


@pytest.mark.slow
def test_every_solution_gets_one_verdict_while_servers_are_killed():
    programs = [f"def f(x): return x + 1  # {number}" for number in range(600)]
    with Judge(workers=2) as judge:
        futures = [submit(judge, program, [[1], [2]], [2, 3]) for program in programs]
        killed = set()
        while not all(future.done() for future in futures):
            pid = judge._workers[len(killed) % 2].pid
            if pid not in killed and len(killed) < 12:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            time.sleep(0.3)
        verdicts = [future.result(timeout=60) for future in futures]
    failed = sum(verdict.judge_failed for verdict in verdicts)
    assert len(killed) > 2
    assert failed <= len(killed) // 2  # one whose second server was killed, too
    assert sum(verdict.passed == (True, True) for verdict in verdicts) == 600 - failed


_ORPHANS = """
import time
from openmimo.judge import CallTest, Judge, Limits
judge = Judge(limits=Limits(wall_seconds=100.0))
judge.submit("import time\\ndef f(): time.sleep(99)", [CallTest("f", [], 1)])
print(judge._workers[0].pid, flush=True)
time.sleep(99)
"""


def test_no_process_outlives_a_killed_parent():
    parent = subprocess.Popen(
        [sys.executable, "-c", _ORPHANS],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    with parent:
        server = int(parent.stdout.readline())
        deadline = time.monotonic() + 20
        while len(children := _descendants(server)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        parent.kill()
    while any(_running(pid) for pid in (server, *children)):
        assert time.monotonic() < deadline, "orphans"
        time.sleep(0.01)


def _descendants(pid):
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    children = [int(child) for child in text.split()]
    return children + [below for child in children for below in _descendants(child)]


def _running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
