"""What is judged: a program, its tests, and the limits they run under."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from openmimo.errors import UserError, shown
from openmimo.judge.compare import FLOATS, TOKENS, Rule

Language = Literal["python", "cpp"]
Protocol = Literal["testlib", "kattis", "cms"]

_FILE_NAME = re.compile(r"\w[\w.+-]{0,99}", re.ASCII)
MAX_SECONDS = 3600.0
MAX_MEMORY_MB = 1 << 20
MAX_OUTPUT_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one test, and after how many of a solution's timeouts the rest is not run.

    CPU time decides; `wall_seconds` bounds sleeping and waiting, so leave it generous on a busy
    machine. `memory_mb` is of address space (MiB), beyond what the interpreter has taken.
    `output_bytes` holds for what a program prints and for the JSON of a returned value.
    `max_timeouts`: 0 runs all tests. Processes are never allowed, files never created, and 64 may
    be open. UserError for limits that are not positive, or beyond MAX_SECONDS and the others.
    """

    cpu_seconds: float = 1.0
    wall_seconds: float = 5.0
    memory_mb: int = 256
    output_bytes: int = 1 << 22
    max_timeouts: int = 0

    def __post_init__(self) -> None:
        for name, most in _LARGEST.items():
            value = getattr(self, name)
            if not 0 < value <= most:
                raise UserError(f"judge: {name} is {value}; it must be positive, at most {most:g}")


_LARGEST = {
    "cpu_seconds": MAX_SECONDS, "wall_seconds": MAX_SECONDS, "memory_mb": MAX_MEMORY_MB,
    "output_bytes": MAX_OUTPUT_BYTES,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Program:
    """A program's text, its language and, for C++, further files (a grader, its header): name
    and text of each, compiled together with it. UserError for names that are no plain file
    names: they come from afar, and become files and arguments of the compiler."""

    source: str
    language: Language = "python"
    files: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.language not in get_args(Language):
            known = ", ".join(get_args(Language))
            raise UserError(f"no language {self.language!r}: use one of {known}")
        for name, _ in self.files:
            if not _FILE_NAME.fullmatch(name):
                raise UserError(f"a program's file cannot have the name {shown(name)}")


@dataclass(frozen=True, slots=True)
class Checker:
    """A program that decides about an output, in a sandbox of its own.

    testlib: its arguments are input, output and answer; exit status 0 accepts, 1 and 2 reject.
    kattis: its arguments are input, answer and a folder for messages, and `arguments`; the output
    is its standard input; exit status 42 accepts, 43 rejects. cms: its arguments are input, answer
    and output; the first word it prints is the score, and 1 accepts. Any other end is an error of
    the judge's.
    """

    program: Program
    protocol: Protocol = "testlib"
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StdioTest:
    """The program reads `stdin` and prints what `rule`, or a checker, accepts for `expected`."""

    stdin: str | bytes
    expected: str | bytes
    rule: Rule | Checker = TOKENS


@dataclass(frozen=True, slots=True)
class CallTest:
    """The function `entry_point` returns `expected` for `args`; both are JSON values.

    `Solution.f` is LeetCode's form: a method of a fresh object, in a program that may use what
    LeetCode imports for it.
    """

    entry_point: str
    args: Sequence[object]
    expected: object
    rule: Rule = FLOATS


@dataclass(frozen=True, slots=True)
class AssertTest:
    """The assertions of `code` hold, as in HumanEval and MBPP.

    They run outside the program's process (see `sandbox/remote.py`), so the program sees neither
    them nor the expected values. `setup` runs before, with nothing of the program's. `names` are
    the program's that `code` uses; empty: all that it uses and that `setup` does not define.
    """

    code: str
    setup: str = ""
    names: tuple[str, ...] = ()


Test = StdioTest | CallTest | AssertTest


def check_solution(
    program: Program | str, tests: Sequence[Test], order: Sequence[int] | None
) -> tuple[Program, tuple[Test, ...], tuple[int, ...]]:
    """The arguments of `Judge.submit` in full, as what does not change.

    Raises UserError for what no judge takes.
    """
    program = Program(program) if isinstance(program, str) else program
    tests = tuple(tests)
    order = tuple(range(len(tests)) if order is None else order)
    if not tests:
        raise UserError("judge: a program without tests says nothing")
    if sorted(order) != list(range(len(tests))):
        raise UserError(f"judge: the order does not hold each of {len(tests)} tests exactly once")
    for test in tests:
        if program.language != "python" and not isinstance(test, StdioTest):
            raise UserError(f"judge: a {program.language} program is judged by its output only")
        if isinstance(test, CallTest):
            try:
                json.dumps([list(test.args), test.expected])
            except (TypeError, ValueError, RecursionError) as error:
                raise UserError(f"a test holds what is not a JSON value: {error}") from error
    return program, tests, order


def content_key(*parts: object) -> bytes:
    """A hash of what the parts hold."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).digest()


def as_bytes(text: str | bytes) -> bytes:
    """What a program reads or prints, as bytes."""
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
