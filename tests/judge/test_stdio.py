"""Programs that read standard input and print: honest styles, endings, limits."""

import textwrap
import tomllib
from pathlib import Path

import pytest

from openmimo.judge import Judge, Limits, Rule, Status, StdioTest

STDIN, EXPECTED = "3\n10 20 30\nend of input\n", "60\nend of input\n"

STYLES = tomllib.loads(Path(__file__).with_name("honest_styles.toml").read_text())


@pytest.fixture(scope="module")
def judge():
    with Judge() as judge:
        yield judge


def status(judge, program, stdin, expected, rule=None, **limits):
    test = StdioTest(stdin, expected, rule or Rule("lines"))
    (verdict,) = judge.run(textwrap.dedent(program), [test], Limits(**limits))
    return verdict.status


@pytest.mark.parametrize("program", STYLES.values(), ids=STYLES.keys())
def test_honest_style_is_accepted(judge, program):
    tests = [StdioTest(STDIN, EXPECTED, Rule("lines")), StdioTest(STDIN, "61\n", Rule("lines"))]
    right, wrong = judge.run(program, tests)
    assert right.status is Status.OK, right
    assert wrong.status is Status.WRONG, wrong


ENDINGS = {
    "exception after the right output": ("print(60); 1 / 0", Status.CRASH),
    "exit status 1": ("import sys; print(60); sys.exit(1)", Status.CRASH),
    "exit with a message": ("print(60); exit('bad')", Status.CRASH),
    "exit(True)": ("print(60); exit(True)", Status.CRASH),
    "exit(None)": ("print(60); exit(None)", Status.OK),
    "output never flushed": ("import os; print(60); os._exit(0)", Status.WRONG),
    "no output": ("pass", Status.WRONG),
    "no input left": ("print(60)\nwhile True: input()", Status.CRASH),
    "memory": ("print(60)\nx = [0] * 10**10", Status.MEMORY),
    "syntax": ("print(60", Status.COMPILE),
    "missing module": ("print(60); import absent_module", Status.CRASH),
    "exception in a thread": (
        "import threading\nprint(60)\nthreading.Thread(target=lambda: 1 / 0).start()",
        Status.OK,  # as the interpreter: it says so on standard error and exits with 0
    ),
    "closed stdout": ("import sys; print(60); sys.stdout.close()", Status.OK),
    "waits for a thread": (
        "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.1), print(60)))"
        ".start()",
        Status.OK,
    ),
    "leaves a daemon thread": (
        "import threading, time\nprint(60)\nthreading.Thread(target=time.sleep, args=(99,), "
        "daemon=True).start()",
        Status.OK,
    ),
}


@pytest.mark.parametrize(("program", "expected"), ENDINGS.values(), ids=ENDINGS.keys())
def test_how_a_program_ends(judge, program, expected):
    assert status(judge, program, STDIN, "60") is expected


def test_output_up_to_its_limit_and_beyond(judge):
    program = "print('x' * int(input()), end='')"
    assert status(judge, program, "5000", "x" * 5000, output_bytes=5000) is Status.OK
    assert status(judge, program, "5001", "x" * 5001, output_bytes=5000) is Status.OUTPUT_LIMIT
    assert status(judge, program, "20", "x" * 20, output_bytes=10) is Status.OUTPUT_LIMIT
    for flood in ("while True: print('x' * 10000)", "import os\nwhile True: os.write(1, b'x')"):
        (verdict,) = judge.run(flood, [StdioTest("", "")], Limits(output_bytes=10**5))
        assert verdict.status is Status.OUTPUT_LIMIT
        assert verdict.cpu_seconds < 0.8  # it ends there, not at its time limit


def test_large_input_and_output(judge):
    text = "\n".join(map(str, range(10**5)))
    program = "import sys; sys.stdout.write(sys.stdin.read())"
    assert status(judge, program, text, text, Rule("exact")) is Status.OK


def test_bytes_that_are_no_text(judge):
    program = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read()[::-1])"
    data = bytes(range(256))
    assert status(judge, program, data, data[::-1], Rule("exact")) is Status.OK


def test_a_script_is_its_own_main_module(judge):
    program = """
        import sys, pickle
        class A: pass
        print(__name__, sys.modules["__main__"].A is A, type(pickle.loads(pickle.dumps(A()))) is A)
        print(sys.argv, len(sys.argv))"""
    assert status(judge, program, "", "__main__ True True\n['solution'] 1\n") is Status.OK
