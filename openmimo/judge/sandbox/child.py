"""What a forked child does for one test, once it is locked down.

A child has its standard input and output and, as descriptor 3, a file for its report. A report is
one byte, a kind below, and a payload. It decides nothing that the candidate could not decide
anyway: it holds the value a function returned, or says why there is none.
"""

import atexit
import builtins
import gc
import marshal
import os
import sys
import types

# By name: what a candidate does to the module does not reach these.
from json import dumps, loads
from os import SEEK_END, lseek, pread

from . import values

REPORT_FD = 3
CODE_FD = 4  # of a compilation alone

VALUE = b"V"  # payload: the returned value as JSON
OTHER = b"R"  # the returned value is not a JSON value; payload: why
ERROR = b"E"  # an exception; payload: which
MEMORY = b"M"  # MemoryError
MISSING = b"N"  # the program lacks what the test calls; payload: its name
UNCOMPILED = b"S"  # no program of its language; payload: why

_DETAIL_BYTES = 200

# What LeetCode lets a solution use without importing it; its form is a class `Solution`.
_LEETCODE = "\n".join(
    f"from {module} import *"
    for module in ("typing", "collections", "functools", "itertools", "heapq", "bisect", "math")
) + "\nimport collections, functools, heapq, itertools, math, re, string, sys\n"  # fmt: skip


def report(kind: bytes, payload: bytes = b"") -> None:
    """Write this child's report."""
    data = memoryview(kind + payload)
    while data:
        data = data[os.write(REPORT_FD, data) :]


def report_error(error: BaseException) -> None:
    """Write what an exception says as this child's report."""
    if isinstance(error, MemoryError):
        return report(MEMORY)
    return report(ERROR, describe(error))


def describe(error: BaseException) -> bytes:
    """One line about an exception, short."""
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException:  # the candidate's own __str__
        text = "an exception that cannot be printed"
    return text.encode("utf-8", "replace")[:_DETAIL_BYTES]


def read_all(fd: int) -> bytes:
    """All bytes of a file in memory."""
    return pread(fd, lseek(fd, 0, SEEK_END), 0)


def compile_program(source: bytes) -> None:
    """Compile a program and write its code object to CODE_FD. No code of the program runs."""
    try:
        code = compile(source, "solution.py", "exec", dont_inherit=True)
        data = memoryview(marshal.dumps(code))
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        return report(UNCOMPILED, describe(error))
    while data:
        data = data[os.write(CODE_FD, data) :]
    return None


def prepare() -> None:
    """In the fork server: what children will find, first of all a module to run in."""
    # Real modules, because dataclasses and typing look their module up in sys.modules.
    for name in ("__main__", "solution"):
        module = types.ModuleType(name)
        module.__dict__["__file__"] = "solution.py"
        sys.modules[name] = module
    for name in ("exit", "quit"):  # which the interpreter leaves out under -S
        setattr(builtins, name, sys.modules["_sitebuiltins"].Quitter(name, "Ctrl-D"))


def standard_streams() -> None:
    """Fresh `sys.stdin` and so on. Those of the interpreter's start remember a pipe."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        errors = "backslashreplace" if name == "stderr" else "surrogateescape"
        stream = open(fd, "w" if fd else "r", closefd=False, errors=errors)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def run_script(code: bytes) -> int:
    """Run a program as `python solution.py` would, to the end; returns its exit status."""
    namespace = sys.modules["__main__"].__dict__
    try:
        status = _run_to_exit(code, namespace)
    finally:
        _finish(namespace)
    first, last = sys.stdout, sys.__stdout__
    for stream in (first,) if first is last else (first, last):
        try:
            if stream and not stream.closed:
                stream.flush()
        except (AttributeError, ValueError, OSError) as error:
            report_error(error)
            status = status or 120  # the interpreter's own status where it cannot flush
    return status


def rehearse(source: str) -> None:
    """What `run_script` does, in the fork server itself, but for the end of the interpreter."""
    code = compile(source, "solution.py", "exec", dont_inherit=True)
    _run_to_exit(marshal.dumps(code), {"__name__": "__main__"})
    sys.stdout.flush()
    gc.collect(1)


def _run_to_exit(code: bytes, namespace: dict[str, object]) -> int:
    try:
        exec(marshal.loads(code), namespace)
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return (stop.code or 0) & 0xFF
        return 1
    except BaseException as error:
        report_error(error)
        return 1
    return 0


def _finish(namespace: dict[str, object]) -> None:
    """What the interpreter does at its end, in its order: threads, atexit, open files."""
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    atexit._run_exitfuncs()
    namespace.clear()  # a file object that the program left open flushes when it goes
    # A collection of the oldest generation would also empty the interpreter's free lists.
    gc.collect(2 if gc.get_objects(2) else 1)


def resolve(namespace: dict[str, object], path: str) -> object:
    """What `path` names: `f`, or `Solution.f`, a method of a fresh object. None if missing."""
    name, _, method = path.partition(".")
    found = namespace.get(name)
    if method and isinstance(found, type):
        found = getattr(found(), method, None)
    return found


def define(code: bytes, leetcode: bool = False) -> dict[str, object]:
    """Run a program as a module; returns its namespace."""
    namespace = sys.modules["solution"].__dict__
    if leetcode:
        exec(_LEETCODE, namespace)
    exec(marshal.loads(code), namespace)
    return namespace


def run_call(code: bytes, call: bytes) -> None:
    """Call a function with JSON arguments ({"entry_point", "args"}); report what it returns."""
    try:
        task = loads(call)
        path = task["entry_point"]
        function = resolve(define(code, leetcode="." in path), path)
        if not callable(function):
            return report(MISSING, f"no function {path!r}".encode())
        value = function(*task["args"])
        try:
            payload = dumps(values.jsonable(value)).encode()
        except (TypeError, ValueError, RecursionError) as error:
            return report(OTHER, describe(error))
        return report(VALUE, payload)
    except BaseException as error:
        return report_error(error)
