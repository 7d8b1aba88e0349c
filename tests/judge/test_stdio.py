"""Programs that read standard input and print: honest styles, endings, limits."""

import textwrap

import pytest

from openmimo.judge import Judge, Limits, Rule, Status, StdioTest

STDIN, EXPECTED = "3\n10 20 30\nend of input\n", "60\nend of input\n"

# Each reads a count, that many numbers and a line, and prints the sum and the line.
STYLES = {
    "input": """
        n = int(input()); print(sum(map(int, input().split()))); print(input())""",
    "iterate stdin": """
        import sys
        lines = [line.rstrip("\\n") for line in sys.stdin]
        print(sum(map(int, lines[1].split()))); print(lines[2])""",
    "readline": """
        import sys
        input = sys.stdin.readline
        input(); print(sum(map(int, input().split()))); print(input().strip())""",
    "readlines": """
        import sys
        _, numbers, last = sys.stdin.readlines()
        sys.stdout.write(f"{sum(map(int, numbers.split()))}\\n{last}")""",
    "read": """
        import sys
        _, numbers, last = sys.stdin.read().splitlines()
        print(sum(map(int, numbers.split())), last, sep="\\n")""",
    "buffer read": """
        import sys
        _, numbers, last = sys.stdin.buffer.read().splitlines()
        print(sum(map(int, numbers.split()))); print(last.decode())""",
    "buffer readline": """
        import sys
        read = sys.stdin.buffer.readline
        read(); print(sum(map(int, read().split()))); print(read().decode().strip())""",
    "iterate buffer": """
        import sys
        lines = list(sys.stdin.buffer)
        print(sum(map(int, lines[1].split()))); print(lines[2].decode().rstrip())""",
    "open(0)": """
        lines = open(0).read().split("\\n")
        print(sum(map(int, lines[1].split()))); print(lines[2])""",
    "open(0, 'rb')": """
        with open(0, "rb") as file: lines = file.read().split(b"\\n")
        print(sum(map(int, lines[1].split()))); print(lines[2].decode())""",
    "open('/dev/stdin')": """
        _, numbers, last = open("/dev/stdin")
        print(sum(map(int, numbers.split()))); print(last, end="")""",
    "os.read": """
        import os
        lines = os.read(0, 10**6).decode().split("\\n")
        print(sum(map(int, lines[1].split()))); print(lines[2])""",
    "fileinput": """
        import fileinput
        lines = [line.strip() for line in fileinput.input()]
        print(sum(map(int, lines[1].split()))); print(lines[2])""",
    "io.BytesIO": """
        import io, os, sys
        input = io.BytesIO(os.read(0, os.fstat(0).st_size)).readline
        input(); print(sum(map(int, input().split()))); print(input().decode().strip())""",
    "main with guard": """
        def main():
            input(); print(sum(map(int, input().split()))); print(input())
        if __name__ == "__main__":
            main()""",
    "global": """
        total = 0
        def add(x):
            global total
            total += x
        input()
        for x in input().split(): add(int(x))
        print(total); print(input())""",
    "stdout.buffer": """
        import sys
        input(); sys.stdout.buffer.write(b"%d\\n" % sum(map(int, input().split())))
        sys.stdout.buffer.write(input().encode())""",
    "os.write": """
        import os
        input(); os.write(1, b"%d\\n" % sum(map(int, input().split())))
        os.write(1, input().encode())""",
    "quit()": """
        input(); print(sum(map(int, input().split()))); print(input())
        quit()
        print("never")""",
    "sys.exit": """
        import sys
        input(); print(sum(map(int, input().split()))); print(input())
        sys.exit(0)""",
    "os._exit after flush": """
        import os
        input(); print(sum(map(int, input().split()))); print(input(), flush=True)
        os._exit(0)""",
    "from __future__": """
        from __future__ import annotations
        def add(xs: list[int]) -> Undefined: return sum(xs)
        input(); print(add(list(map(int, input().split())))); print(input())""",
    "thread with a deep stack": """
        import sys, threading
        sys.setrecursionlimit(10**6); threading.stack_size(1 << 25)
        def depth(n): return 0 if n == 0 else 1 + depth(n - 1)
        def main():
            depth(5000); input(); print(sum(map(int, input().split()))); print(input())
        threading.Thread(target=main).start()""",
    "atexit": """
        import atexit, io, sys
        sys.stdout = io.StringIO()
        atexit.register(lambda: sys.__stdout__.write(sys.stdout.getvalue()))
        input(); print(sum(map(int, input().split()))); print(input())""",
    "file left open": """
        out = open(1, "w")
        input(); out.write(str(sum(map(int, input().split()))) + "\\n" + input())""",
    "modules": """
        import bisect, collections, fractions, heapq, itertools, math, random, re, string, typing
        import array, datetime, decimal, functools, operator, queue, statistics, hashlib, copy
        input(); print(math.fsum(map(int, input().split())).__int__()); print(input())""",
    "class and dataclass": """
        from dataclasses import dataclass
        @dataclass(order=True)
        class Sum:
            value: int = 0
        input(); print(Sum(sum(map(int, input().split()))).value); print(input())""",
    "debug on stderr": """
        import sys
        print("x" * 100000, file=sys.stderr)
        input(); print(sum(map(int, input().split()))); print(input())""",
}


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
    program = textwrap.dedent(program)
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
    flood = "while True: print('x' * 10000)"
    assert status(judge, flood, "", "", output_bytes=10**6) is Status.OUTPUT_LIMIT


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
