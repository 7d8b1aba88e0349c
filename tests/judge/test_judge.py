"""Honest programs, verdicts and the judge's own life."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from openmimo.errors import UserError
from openmimo.judge.judge import Judge
from openmimo.judge.verdict import Status


@pytest.fixture(scope="module")
def judge():
    with Judge() as judge:
        yield judge


def run(judge, program, args, expected):
    return judge.submit(textwrap.dedent(program), "f", args, expected).result(timeout=60)


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


def test_tests_share_a_process_in_order_but_not_their_arguments(judge):
    program = """
        count = 0
        def f(xs):
            global count
            count += 1
            xs.append(count)
            return xs
        """
    assert run(judge, program, [[[]]] * 4, [[1], [2], [3], [4]]).passed == (True,) * 4


def test_exception_fails_its_own_test_only_and_is_described(judge):
    verdict = run(judge, "def f(x): return 6 / x", [[0], [2]], [0, 3.0])
    assert [test.status for test in verdict.tests] == [Status.CRASH, Status.OK]
    assert verdict.tests[0].detail == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("def f(:", Status.UNPARSEABLE),
        ("", Status.UNPARSEABLE),
        ("f = 3", Status.UNPARSEABLE),
        ("def g(): pass", Status.UNPARSEABLE),
        ("import absent_module\ndef f(): return 1", Status.CRASH),
        ("import os; os._exit(0)", Status.CRASH),
        ("raise SystemExit", Status.CRASH),
        ("x = [0] * 10**11\ndef f(): return 1", Status.MEMORY),
        ("\x00", Status.UNPARSEABLE),
        ("\ud800", Status.UNPARSEABLE),
        ("(" * 5000, Status.UNPARSEABLE),
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
    with Judge(workers=2, wall_seconds=20.0) as judge:
        sleepers = [
            judge.submit("import time\ndef f(): time.sleep(0.6)", "f", [[]], [None])
            for _ in range(2)
        ]
        start = time.monotonic()
        assert all(future.result(timeout=60).passed == (True,) for future in sleepers)
        assert time.monotonic() - start < 1.1


@pytest.mark.parametrize(
    ("args", "expected"), [([], []), ([[1]], [1, 2]), ([[1]], [{1, 2}]), ([[object()]], [1])]
)
def test_bad_tests_are_the_users_error(judge, args, expected):
    with pytest.raises(UserError):
        judge.submit("def f(): pass", "f", args, expected)


def test_dead_server_is_a_judge_error_once_and_is_replaced():
    with Judge() as judge:
        pid = judge._servers[0].pid
        slow = judge.submit("import time\ndef f(): time.sleep(2)", "f", [[]], [None])
        while not _children(pid):
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        assert slow.result(timeout=30).judge_failed
        assert run(judge, "def f(): return 1", [[]], [1]).passed == (True,)
        os.kill(judge._servers[0].pid, signal.SIGKILL)  # while idle: nothing is lost
        while judge._servers[0].alive():
            time.sleep(0.01)
        assert run(judge, "def f(): return 1", [[]], [1]).passed == (True,)


def test_close_does_not_wait_for_a_long_run():
    judge = Judge(wall_seconds=100.0)
    future = judge.submit("import time\ndef f(): time.sleep(90)", "f", [[]], [None])
    while not _children(judge._servers[0].pid):
        time.sleep(0.01)
    start = time.monotonic()
    judge.close()
    assert time.monotonic() - start < 5
    assert future.result(timeout=0).judge_failed


def test_unsafe_judges_without_the_sandbox_and_says_so():
    with Judge(unsafe=True, cpu_seconds=0.2) as judge:
        verdict = run(judge, "import os\ndef f(): return os.path.exists('/')", [[]], [True])
        assert verdict.passed == (True,)
        assert verdict.unsafe
        assert run(judge, "while True: pass", [[]], [1]).tests[0].status is Status.TIMEOUT


# Forbids some system calls with a filter of its own, as a container may, then starts a judge.
_HANDICAPPED = """
import ctypes, struct, sys
from openmimo.errors import UserError
from openmimo.judge.judge import Judge
from openmimo.judge.sandbox.seccomp import Filter
op = lambda code, k, t=0, f=0: struct.pack("=HBBI", code, t, f, k)
program = op(0x20, 0)
if sys.argv[1] == "landlock":
    program += b"".join(op(0x15, number, 0, 1) + op(6, 0x50000 | 38) for number in (444, 445, 446))
else:  # prctl(PR_SET_SECCOMP): once for this filter, never again
    numbers = {"x86_64": 157, "aarch64": 167}
    import os
    program += op(0x15, numbers[os.uname().machine], 0, 3)
    program += op(0x20, 16) + op(0x15, 22, 0, 1) + op(6, 0x50000 | 22)
program += op(6, 0x7FFF0000)
Filter(program).install()
try:
    Judge()
except UserError as error:
    print("refused:", error)
with Judge(unsafe=True) as judge:
    print("unsafe:", judge.submit("def f(): return 1", "f", [[]], [1]).result())
"""


@pytest.mark.parametrize("missing", ["landlock", "seccomp"])
def test_refuses_to_run_where_the_sandbox_cannot_be_installed(missing):
    output = subprocess.run(
        [sys.executable, "-c", _HANDICAPPED, missing],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    lines = output.stdout.splitlines()
    assert len(lines) == 2, output.stderr
    assert lines[0].startswith("refused: judge: ")
    assert missing in lines[0]
    assert "--unsafe-local" in lines[0]
    assert "unsafe=True" in lines[1]


_ORPHANS = """
import time
from openmimo.judge.judge import Judge
judge = Judge(wall_seconds=100.0)
judge.submit("import time\\ndef f(): time.sleep(99)", "f", [[]], [1])
print(judge._servers[0].pid, flush=True)
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
        while not (children := _children(server)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        parent.kill()
    while any(_running(pid) for pid in (server, *children)):
        assert time.monotonic() < deadline, "orphans"
        time.sleep(0.01)


def _children(pid):
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def _running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
