"""Function calls: honest programs and wrong ones, and how values are compared."""

import pytest

from openmimo.judge import CallTest, Judge, Rule, Status

from .calls import run


@pytest.fixture(scope="module")
def judge():
    with Judge() as judge:
        yield judge


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
