"""LiveCodeBench: its problems' tests, and its checker's semantics for comparison with its figures.

`read_tests` reads a problem for our own judge. `compat` gives program and tests under which our
verdicts are those of LiveCodeBench's `testing_util.py` (release of 2024-2025): the program is
wrapped in a function after a page of imports, its `input`, `open` and `sys.stdin` are stand-ins,
`SystemExit` counts as success, outputs are compared line by line, as decimal numbers where they
can be. That rejects honest programs (docs/judge.md lists which), so rewards never use it. What it
does not take over: accepting objects that claim to equal everything, and state that a program
carries from one test to the next.
"""

import base64
import io
import json
import pickle
import zlib
from collections.abc import Mapping
from typing import Any

from openmimo.errors import UserError
from openmimo.judge.cases import AssertTest, CallTest, Limits, Program, StdioTest, Test
from openmimo.judge.compare import Rule

_LARGEST = 1 << 30  # bytes of one problem's private tests, decompressed
LIMITS = Limits(cpu_seconds=6.0, wall_seconds=6.0, memory_mb=4096, output_bytes=1 << 26)
"""Of the checker: six seconds of the wall clock for a test. Give it an idle machine."""


class _TextOnly(pickle.Unpickler):
    """Unpickles text and nothing else: a pickle can name any function, and have it called."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def decode_private_tests(text: str) -> list[dict[str, str]]:
    """The field `private_test_cases`: JSON, or base64 of zlib of a pickle of JSON.

    Nothing of it is ever executed. UserError if it cannot be read.
    """
    try:
        return _records(json.loads(text))
    except json.JSONDecodeError:
        pass
    try:
        unzip = zlib.decompressobj()
        data = unzip.decompress(base64.b64decode(text, validate=True), _LARGEST)
        if unzip.unconsumed_tail:
            raise ValueError(f"more than {_LARGEST:,} bytes")
        plain = _TextOnly(io.BytesIO(data)).load()
        if not isinstance(plain, str):
            raise ValueError("the pickle holds no text")
        return _records(json.loads(plain))
    except Exception as error:  # whatever a malformed pickle provokes
        raise UserError(f"private tests of LiveCodeBench that cannot be read: {error}") from error


def _records(value: object) -> list[dict[str, str]]:
    if not isinstance(value, list) or not all(
        isinstance(item, dict) and {"input", "output", "testtype"} <= item.keys() for item in value
    ):
        raise UserError("tests of LiveCodeBench need input, output and testtype")
    return value


def read_tests(row: Mapping[str, Any]) -> list[Test]:
    """A problem's public and private tests, for our judge. `row` is one of the data set's."""
    name = _function_name(row)
    if name is None:
        pairs = [(test["input"], test["output"]) for test in _test_records(row)]
        return [StdioTest(stdin, output, Rule("lines")) for stdin, output in pairs]
    return [
        CallTest(f"Solution.{name}", _arguments(test), json.loads(test["output"]))
        for test in _test_records(row)
    ]


def compat(row: Mapping[str, Any], source: str) -> tuple[Program, list[Test]]:
    """Program and tests that give LiveCodeBench's own verdicts; judge them with `LIMITS`."""
    name = _function_name(row)
    records = _test_records(row)
    if name is None:
        tests: list[Test] = [
            StdioTest(record["input"], record["output"], Rule("livecodebench"))
            for record in records
        ]
        return Program(_WRAPPER.replace("SOURCE", repr(source)).replace("IMPORTS", _IMPORTS)), tests
    owner = "Solution()." if "class Solution" in source else ""
    asserts = [
        AssertTest(
            f"result = {owner}{name}(*{_arguments(record)!r})\n"
            "if isinstance(result, tuple): result = list(result)\n"
            f"assert result == {json.loads(record['output'])!r}",
            names=("Solution" if owner else name,),
        )
        for record in records
    ]
    return Program(f"{_IMPORTS}\n\n{source}"), list(asserts)


def _test_records(row: Mapping[str, Any]) -> list[dict[str, str]]:
    public = row["public_test_cases"]
    return [
        *_records(json.loads(public) if isinstance(public, str) else public),
        *decode_private_tests(row.get("private_test_cases") or "[]"),
    ]


def _function_name(row: Mapping[str, Any]) -> str | None:
    metadata = row.get("metadata") or {}
    metadata = json.loads(metadata) if isinstance(metadata, str) else metadata
    name = metadata.get("func_name")
    return str(name) if name else None


def _arguments(record: Mapping[str, str]) -> list[Any]:
    return [json.loads(line) for line in record["input"].split("\n")]


_MODULES = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random",
    "statistics", "itertools", "functools", "operator", "io", "sys", "json",
)  # fmt: skip
_IMPORTS = "\n".join(
    [
        *(f"from {module} import *" for module in (*_MODULES, "builtins", "typing")),
        *(f"import {module}" for module in _MODULES),
        "sys.setrecursionlimit(50000)",
    ]
)

# Runs inside the sandbox, instead of the program. Its true standard input and output are out of
# the program's reach, as they are there.
_WRAPPER = '''
import ast, builtins, io, os, sys, types
from unittest.mock import mock_open, patch

given = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
result = os.dup(1)
os.dup2(2, 0)
os.dup2(2, 1)
sys.set_int_max_str_digits(50000)


class Buffer:
    def read(self, *_):
        return given.encode()

    def readline(self, *_):
        return given.encode().split(b"\\n")[0] + b"\\n"


class Stdin:
    def __init__(self):
        self.text, self.buffer = io.StringIO(given), Buffer()
        self.read = lambda *_: given
        self.readlines = lambda *_: given.split("\\n")

    def __getattr__(self, name):
        return getattr(self.text, name)


def wrapped(source):
    """The program as a function: its top-level imports first, all else in the body."""
    try:
        tree = ast.parse(source)
        last = tree.body[-1]
        guarded = isinstance(last, ast.If)
        if guarded and ast.unparse(last.test).strip() == "__name__ == '__main__'":
            source = ast.unparse(tree.body[:-1]) + "\\n" + ast.unparse(last.body)
    except Exception:
        pass
    try:
        body = ast.parse(source).body
        imports = [item for item in body if isinstance(item, (ast.Import, ast.ImportFrom))]
        others = [item for item in body if not isinstance(item, (ast.Import, ast.ImportFrom))]
        function = ast.parse("def wrapped_function(): pass").body[0]
        function.body = others
        return """IMPORTS""" + "\\n" + ast.unparse(imports) + "\\n" + ast.unparse(function)
    except Exception:
        return source


program = types.ModuleType("tmp_sol")
builtins.quit = None
for name in ("kill", "system", "putenv", "remove", "removedirs", "rmdir", "fchdir", "setuid",
             "fork", "forkpty", "killpg", "rename", "renames", "truncate", "replace", "unlink",
             "fchmod", "fchown", "chmod", "chown", "chroot", "lchown", "getcwd", "chdir"):
    setattr(os, name, None)
exec(wrapped(SOURCE), program.__dict__)
captured = sys.stdout = io.StringIO()
captured.close = lambda _: 1
with patch("builtins.open", mock_open(read_data=given)), patch("sys.stdin", Stdin()):
    try:
        program.wrapped_function()
    except SystemExit:
        pass
os.write(result, captured.getvalue().encode("utf-8", "surrogateescape"))
os._exit(0)
'''
