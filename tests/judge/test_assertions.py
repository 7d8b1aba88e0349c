"""Assertion blocks: the tests in one process, the candidate in another."""

import textwrap

import pytest

from openmimo.judge import AssertTest, Judge, Limits, Status


@pytest.fixture(scope="module")
def judge():
    with Judge(limits=Limits(cpu_seconds=0.5)) as judge:
        yield judge


def status(judge, program, code, **options):
    test = AssertTest(textwrap.dedent(code), **options)
    (verdict,) = judge.run(textwrap.dedent(program), [test])
    return verdict.status


# Values that cross between the processes, as the body of `f` and an assertion about it.
CROSSING = {
    "integer": ("return x + 1", "f(2) == 3"),
    "large integer": ("return -x", "f(10**5000) == -10**5000"),
    "tuple": ("return (1, [2])", "f(0) == (1, [2]) and f(0) != [1, [2]]"),
    "set": ("return {1, 2}", "f(0) == {2, 1} and isinstance(f(0), set)"),
    "dict with any keys": ("return {(1, 2): [3], 4: None}", "f(0) == {(1, 2): [3], 4: None}"),
    "bytes": ("return bytes([0, 255])", "f(0) == b'\\0\\xff'"),
    "complex": ("return x * 1j", "f(2) == 2j"),
    "infinity": ("return [float('inf'), -x]", "f(float('inf')) == [float('inf'), -float('inf')]"),
    "nan": ("return x", "f(float('nan')) != f(float('nan'))"),
    "counter": ("from collections import Counter; return Counter('aab')", "f(0)['a'] == 2"),
    "frozenset": ("return frozenset('a')", "f(0) == frozenset('a')"),
    "named tuple": (
        "from collections import namedtuple; return namedtuple('P', 'x y')(1, 2)",
        "f(0) == (1, 2)",
    ),
    "keyword": ("return x", "f(x=7) == 7"),
    "unicode": ("return x[::-1]", "f('aé漢😀\\udc80') == '\\udc80😀漢éa'"),
    "true is one": ("return True", "f(0) == 1"),
    "types": ("return x", "f([int, str]) == [int, str]"),
    "generator": ("return (i * i for i in range(x))", "list(f(4)) == [0, 1, 4, 9]"),
    "function": ("return lambda y: x + y", "f(1)(2) == 3"),
}


@pytest.mark.parametrize(("body", "claim"), CROSSING.values(), ids=CROSSING.keys())
def test_values_cross(judge, body, claim):
    program = f"def f(x):\n    {body}\n"
    assert status(judge, program, f"assert {claim}") is Status.OK
    assert status(judge, program, f"assert not ({claim})") is Status.WRONG


def test_objects_stay_in_their_process_and_can_be_used(judge):
    program = """
        class Node:
            def __init__(self, value, next=None): self.value, self.next = value, next
            def __getitem__(self, i): return self.value if i == 0 else self.next[i - 1]
        def total(node): return node.value + total(node.next) if node else 0
        """
    code = """
        chain = Node(1, Node(2, Node(3)))
        assert total(chain) == 6
        assert chain.next.value == 2 and chain[2] == 3
        chain.next.next = Node(4, chain.next.next)
        assert total(chain) == 10
        """
    assert status(judge, program, code) is Status.OK


def test_changed_arguments_come_back(judge):
    program = """
        def f(xs, table, seen):
            xs.sort(); table['n'] = len(xs); seen |= set(xs); xs.append(xs)
        def g(xs): xs.sort(); return None
        """
    code = """
        xs, table, seen = [2, 1], {'m': 0}, {9}
        assert g(xs) is None and xs == [1, 2]
        alias = table
        g(xs)
        assert xs == [1, 2] and alias is table
        """
    assert status(judge, program, code) is Status.OK


def test_exceptions_of_the_program_reach_the_tests(judge):
    program = """
        class Own(Exception): pass
        def f(x):
            if x == 0: raise ValueError("zero")
            if x == 1: raise Own("own")
            raise AssertionError("mine")
        """
    code = """
        for x, kind in ((0, ValueError), (1, RuntimeError), (2, RuntimeError)):
            try: f(x)
            except kind: continue
            raise AssertionError(x)
        """
    assert status(judge, program, code) is Status.OK
    assert status(judge, program, "f(0)") is Status.CRASH
    # What the candidate raises is never the tests' own verdict.
    assert status(judge, program, "f(2)") is Status.CRASH


CHECK = """
def check(candidate):
    assert candidate(2) == 4
    assert [candidate(i) for i in range(3)] == [0, 1, 4]
check(square)
"""


def test_a_check_function_as_in_humaneval(judge):
    assert status(judge, "def square(x): return x * x", CHECK) is Status.OK
    assert status(judge, "def square(x): return x + x", CHECK) is Status.WRONG
    assert status(judge, "def square(x): return x[0]", CHECK) is Status.CRASH
    assert status(judge, "def cube(x): return x", CHECK) is Status.CRASH
    assert status(judge, "def square(x:", CHECK) is Status.COMPILE


def test_setup_has_nothing_of_the_programs_and_names_can_be_given(judge):
    program = "def helper(x): return 0\ndef f(x): return helper(x) + 5"
    code = "assert f(1) == 5 and helper(1) == 100"
    setup = "def helper(x): return 100 * x\ndef f(x): 'a stub'"
    assert status(judge, program, code, setup=setup) is Status.WRONG  # the stub's None
    assert status(judge, program, code, setup=setup, names=("f",)) is Status.OK
    assert status(judge, program, code, names=("f", "helper")) is Status.WRONG


# None of these may pass `assert f(1) == 424242`, or any other assertion about f.
CHEATS = {
    "exit": "import os; os._exit(0)",
    "exit in the call": "def f(x):\n    import os; os._exit(0)",
    "system exit": "def f(x): raise SystemExit(0)",
    "keyboard interrupt": "def f(x): raise KeyboardInterrupt",
    "equal to all": """
        class Yes(int):
            def __eq__(self, other): return True
            __hash__ = int.__hash__
        def f(x): return Yes(1)""",
    "equal to all in a list": """
        class Yes(list):
            def __eq__(self, other): return True
        def f(x): return Yes()""",
    "patched builtins": """
        import builtins
        builtins.print = builtins.isinstance = builtins.abs = lambda *a: True
        def f(x): return object()""",
    "search for the tests": """
        import gc, sys
        def f(x):
            frame, found = sys._getframe(), []
            while frame:
                found += [repr(v) for v in (*frame.f_locals.values(), *frame.f_globals.values())]
                frame = frame.f_back
            found += map(str, gc.get_objects())
            needle = 3 * (chr(52) + chr(50))
            return int(needle) if any(needle in text for text in found) else None""",
    "read every descriptor": """
        import os
        def f(x):
            for fd in range(64):
                path = f"/proc/self/fd/{fd}"
                for read in (lambda: os.pread(fd, 10**6, 0), lambda: open(path, "rb").read()):
                    if 2 < fd < 6: continue  # the test's own pipe would wait
                    try:
                        if str(424240 + 2).encode() in read(): return 424240 + 2
                    except OSError: pass""",
    "verdicts to every descriptor": """
        import os
        for fd in range(64):
            try: os.write(fd, b"K")
            except OSError: pass
        def f(x): os._exit(0)""",
    "a verdict as its own report": """
        import os
        os.write(3, b"K")
        def f(x): os._exit(0)""",
    "forged replies": """
        import json, os, struct
        def f(x):
            text = json.dumps(["v", {"f": 424242, "assert": True}, None]).encode()
            for fd in range(3, 64):
                try: os.write(fd, (struct.pack("<I", len(text)) + text) * 9)
                except OSError: pass""",
    "nonsense": "import os\ndef f(x):\n    for fd in range(3, 64):\n"
    "        try: os.write(fd, os.urandom(4000))\n        except OSError: pass",
    "huge message": "import os\nfor fd in range(3, 9):\n"
    "    try: os.write(fd, b'\\xff' * 100)\n    except OSError: pass",
    "deep value": "def f(x):\n    a = []\n    for _ in range(10**5): a = [a]\n    return a",
    "loop": "def f(x):\n    while True: pass",
    "sleep": "import time\ndef f(x): time.sleep(99)",
    "closed descriptors": "import os\nos.closerange(0, 64)\ndef f(x): return 424242",
    "assertion error of its own": "def f(x): raise AssertionError",
    "names of builtins": "def AssertionError(x): pass\ndef f(x): return 3\nprint = len = f",
}


@pytest.mark.parametrize("program", CHEATS.values(), ids=CHEATS.keys())
def test_cheat_gains_nothing(judge, program):
    tests = [
        AssertTest("assert f(1) == 424242"),
        AssertTest("def check(g):\n    assert g(1) == 424242\n    assert g(1) < 424243\ncheck(f)"),
        AssertTest("try: result = f(1)\nexcept Exception: result = 0\nassert result == 424242"),
    ]
    limits = Limits(cpu_seconds=0.2, wall_seconds=1.0)
    for verdict in judge.run(textwrap.dedent(program), tests, limits):
        assert verdict.status not in (Status.OK, Status.JUDGE_ERROR), verdict
    (honest,) = judge.run("def f(x): return 424242", tests[:1])
    assert honest.status is Status.OK


# Replies to the tester, written by the program itself.
FORGED = """
import json, os, struct
def receive(): return json.loads(os.read(5, *struct.unpack("<I", os.read(5, 4))))
def send(*reply):
    text = json.dumps(reply).encode()
    os.write(4, struct.pack("<I", len(text)) + text)
receive()
"""


@pytest.mark.parametrize(
    ("name", "reply", "code", "setup"),
    [
        ("abs", -1, "assert abs(f(2) - 3) < 1e-6", ""),
        ("set", 1, "assert set(f(2)) == set([4, 5])", ""),
        ("check", None, "check(f)", "def check(g): assert g(2) == 3"),
        ("isclose", True, "assert isclose(f(2), 3.5)", "from math import isclose"),
    ],
)
def test_a_forged_reply_binds_no_name_of_the_tests(judge, name, reply, code, setup):
    program = f"""{FORGED}
send("v", {{"f": ["r", 0], {name!r}: ["r", 1]}})
while True: send("v", {reply!r} if receive()[1] else 7, None)"""
    for names in ((), ("f",)):
        assert status(judge, program, code, setup=setup, names=names) is not Status.OK


def test_no_address_of_the_tests_memory_is_read_as_an_answer(judge):
    program = """
        import numpy
        class Anything: pass
        def f(x):  # both processes are forks of one, so their addresses are the same
            answer, digits = Anything(), {"shape": (), "typestr": "<u4", "version": 3}
            answer.__array_interface__ = digits | {"data": (id(200) + 24, False)}
            return answer
        """
    setup = "import numpy as np"
    assert status(judge, program, "assert np.array_equal(f(1), 200)", setup=setup) is Status.WRONG


def test_the_end_of_an_iteration_is_not_the_programs_to_declare(judge):
    program = "def f(x): raise StopIteration"
    code = "assert all(map(lambda case: f(case[0]) == case[1], [(1, 2)]))"
    assert status(judge, program, code) is Status.CRASH


def test_a_program_replaces_no_builtin_of_the_tests(judge):
    program = """
        def f(x): return [2, 1]
        def sorted(x): return [1, 2, 3]
        len = abs = isinstance = lambda *a: 3
        """
    code = "assert sorted(f(0)) == [1, 2] and len(f(0)) == 2 and abs(-1) == 1"
    assert status(judge, program, code) is Status.OK


def test_tests_that_are_broken_pass_nobody(judge):
    program = "def f(x): return x"
    for code in ("f(1) ==", "assert absent", "import absent_module", "raise SystemExit(0)"):
        assert status(judge, program, code) is Status.CRASH
    assert status(judge, program, "import os; os._exit(0)") is Status.CRASH
    assert status(judge, program, "while True: pass") is Status.TIMEOUT
