"""LiveCodeBench's rows: private tests are never executed; its checker's verdicts, reproduced.

What that checker says about the programs here was found by running it (commit of 2025) on each.
"""

import base64
import json
import os
import pickle
import textwrap
import tomllib
import zlib
from pathlib import Path

import pytest

from openmimo.errors import UserError
from openmimo.judge import CallTest, Judge, Status, StdioTest
from openmimo.judge.livecodebench import LIMITS, compat, decode_private_tests, read_tests

STYLES = tomllib.loads(Path(__file__).with_name("honest_styles.toml").read_text())
STDIN, EXPECTED = "3\n10 20 30\nend of input\n", "60\nend of input\n"
RECORDS = [{"input": "1\n", "output": "2\n", "testtype": "stdin"}]


@pytest.fixture(scope="module")
def judge():
    with Judge() as judge:
        yield judge


def packed(value):
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def row(*pairs, function=None):
    records = [{"input": i, "output": o, "testtype": "stdin"} for i, o in pairs]
    metadata = {"func_name": function} if function else {}
    return {"public_test_cases": json.dumps(records), "private_test_cases": packed("[]"),
            "metadata": json.dumps(metadata)}  # fmt: skip


def test_private_tests_in_both_forms():
    text = json.dumps(RECORDS)
    assert decode_private_tests(text) == RECORDS
    assert decode_private_tests(packed(text)) == RECORDS


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("openmimo-escaped",)


@pytest.mark.parametrize(
    "text",
    [
        packed(Bomb()),
        packed(RECORDS),  # no text
        packed("no JSON"),
        packed('[{"input": 1}]'),
        packed(json.dumps("text")),
        base64.b64encode(zlib.compress(b"cos\nsystem\n(S'true'\ntR.")).decode(),
        base64.b64encode(zlib.compress(b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f")).decode(),
        base64.b64encode(b"not compressed").decode(),
        "*" * 100,
        '{"input": "1"}',
    ],
)
def test_hostile_private_tests_are_refused_and_never_run(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="LiveCodeBench"):
        decode_private_tests(text)
    assert not list(tmp_path.iterdir())


def test_rows_become_tests(judge):
    assert read_tests(row(("1", "2")))[0].stdin == "1"
    assert isinstance(read_tests(row(("1", "2")))[0], StdioTest)
    (call,) = read_tests(row(("[1]\n2", "3"), function="add"))
    assert call == CallTest("Solution.add", [[1], 2], 3)
    program = "class Solution:\n    def add(self, xs: List[int], y): return xs[0] + y"
    assert judge.run(program, [call])[0].status is Status.OK


ACCEPTED = {
    "input", "readline", "read", "buffer read", "fileinput", "main with guard", "sys.exit",
    "thread with a deep stack", "modules", "class and dataclass", "debug on stderr",
}  # fmt: skip


@pytest.mark.parametrize("name", STYLES)
def test_honest_styles_that_livecodebench_accepts(judge, name):
    program, tests = compat(row((STDIN, EXPECTED)), STYLES[name])
    (verdict,) = judge.run(program, tests, LIMITS)
    assert (verdict.status is Status.OK) == (name in ACCEPTED), verdict


OTHERS = {
    "joined lines": ("print(60, 'end')", "60\nend", False),
    "another form of a number": ("print('60.0')", "60", True),
    "space around lines": ("print('  60  \\n end \\n\\n')", "60\nend", True),
    "decimals in a line": ("print('1.50 2')", "1.5 2.0", True),
    "an almost equal number": ("print(0.1 + 0.2)", "0.3", False),
    "an exit status": ("import sys; print(60); sys.exit(1)", "60", True),
    "an exception": ("print(60); 1 / 0", "60", False),
    "return at the top": ("print(60)\nreturn", "60", True),
    "what it imports for all": ("print(Counter('aa')['a'], gcd(4, 6))", "2 2", True),
    "a thread that is not waited for": (
        "import threading, time\n"
        "threading.Thread(target=lambda: (time.sleep(0.2), print(60))).start()", "60", False,
    ),
    "closed output": ("import sys; print(60); sys.stdout.close()", "60", False),
    "an empty line of input": ("print(repr(input()), repr(input()))", "'a' ''", True),
}  # fmt: skip


@pytest.mark.parametrize(("program", "expected", "right"), OTHERS.values(), ids=OTHERS.keys())
def test_semantics_of_its_checker(judge, program, expected, right):
    program, tests = compat(row(("a\n\nb", expected)), program)
    (verdict,) = judge.run(program, tests, LIMITS)
    assert (verdict.status is Status.OK) == right, verdict


FUNCTIONS = {
    "tuple": ("class Solution:\n  def f(self, x): return (1, 2)", "[1, 2]", True),
    "tuple inside": ("class Solution:\n  def f(self, x): return [(1, 2)]", "[[1, 2]]", False),
    "true for one": ("class Solution:\n  def f(self, x): return True", "1", True),
    "float": ("class Solution:\n  def f(self, x): return 0.1 + 0.2", "0.3", False),
    "no class": ("def f(x: List[int]): return x", "[1]", True),
    "missing": ("def g(x): return x", "[1]", False),
    "crash": ("def f(x): return x.y", "[1]", False),
}


@pytest.mark.parametrize(("source", "expected", "right"), FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_functions_as_its_checker_sees_them(judge, source, expected, right):
    program, tests = compat(row(("[1]", expected), function="f"), source)
    (verdict,) = judge.run(program, tests, LIMITS)
    assert (verdict.status is Status.OK) == right, verdict


# Each is accepted by LiveCodeBench's own checker.
HACKS = {
    "always equal": "class Y(list):\n  def __eq__(self, o): return True\ndef f(x): return Y()",
    "frame walk": """
                def f(x):
            frame = sys._getframe()
            while frame:
                if "gt_out" in frame.f_locals: return frame.f_locals["gt_out"]
                frame = frame.f_back""",
    "exit": "import os\ndef f(x): os._exit(0)",
}


@pytest.mark.parametrize("source", HACKS.values(), ids=HACKS.keys())
def test_known_hacks_of_its_checker_fail(judge, source):
    program, tests = compat(row(("[1]", "[5]"), function="f"), textwrap.dedent(source))
    assert judge.run(program, tests, LIMITS)[0].status is not Status.OK
