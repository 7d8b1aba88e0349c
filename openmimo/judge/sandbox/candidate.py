"""What a forked child does: define the candidate's function, call it, send what it returns.

Frames to the fork server are `<BI` (kind, length) and a payload. The child never holds an expected
output. A candidate may write frames itself, and gains nothing: it could as well return the value.
"""

import json
import os
import struct
import sys
import types
from collections.abc import Callable

FRAME = struct.Struct("<BI")

STARTED = ord("B")  # the child is locked down; the candidate's code comes next
DEFINED = ord("D")  # the program ran and has the entry point; calls follow
VALUE = ord("V")  # payload: the returned value as JSON
OTHER = ord("R")  # the returned value is not a JSON value; payload: why
ERROR = ord("E")  # an exception; payload: which
MEMORY = ord("M")  # MemoryError
OVERSIZE = ord("O")  # the value's encoding exceeds the output limit
UNPARSEABLE = ord("S")  # not a Python program, or no entry point
TIMEOUT = ord("T")  # sent by the fork server only
CRASH = ord("C")  # sent by the fork server only: the child died or sent nonsense
JUDGE_ERROR = ord("J")  # sent by the fork server only: the child could not be set up

_DETAIL_BYTES = 200


def jsonable(value: object) -> object:
    """`value` with tuples as lists; TypeError unless it is built of JSON's types exactly.

    Subclasses are refused: an `int` subclass could define its own equality, or its own digits.
    Integer keys become strings, as in `json.dumps`.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind in (list, tuple):
        return [jsonable(item) for item in value]  # type: ignore[attr-defined]
    if kind is dict:
        result = {}
        for key, item in value.items():  # type: ignore[attr-defined]
            if type(key) not in (str, int) or str(key) in result:
                raise TypeError("a dict key that is no string or integer, or not unique as one")
            result[str(key)] = jsonable(item)
        return result
    raise TypeError(f"a value of type {kind.__name__}")


def _send(fd: int, kind: int, payload: bytes = b"") -> None:
    data = memoryview(FRAME.pack(kind, len(payload)) + payload)
    while data:
        data = data[os.write(fd, data) :]


def _describe(error: BaseException) -> bytes:
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException:  # the candidate's own __str__
        text = "an exception that cannot be printed"
    return text.encode("utf-8", "replace")[:_DETAIL_BYTES]


def _define(program: str, entry_point: str) -> Callable[..., object] | None:
    # A real module, because dataclasses and typing look their module up in sys.modules.
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    try:
        code = compile(program, "solution.py", "exec")
    except (ValueError, OverflowError, RecursionError) as error:
        raise SyntaxError(str(error)) from error
    exec(code, module.__dict__)
    function = module.__dict__.get(entry_point)
    return function if callable(function) else None


def _call(function: Callable[..., object], arguments: str, output_bytes: int) -> tuple[int, bytes]:
    try:
        # Decoded for each call: a candidate that changes its arguments spoils no later test.
        value = function(*json.loads(arguments))
        try:
            payload = json.dumps(jsonable(value)).encode()
        except (TypeError, ValueError, RecursionError) as error:
            return OTHER, _describe(error)
    except MemoryError:
        return MEMORY, b""
    except BaseException as error:
        return ERROR, _describe(error)
    if len(payload) > output_bytes:
        return OVERSIZE, f"{len(payload)} bytes of output".encode()
    return VALUE, payload


def run(request: bytes, first: int, fd: int, output_bytes: int) -> None:
    """Run the tests of a request from number `first` on: STARTED, DEFINED, then a frame each.

    `request` is JSON: program, entry_point, args (a list of JSON texts, one for each test).
    """
    task = json.loads(request)
    _send(fd, STARTED)
    try:
        function = _define(task["program"], task["entry_point"])
    except SyntaxError as error:
        return _send(fd, UNPARSEABLE, _describe(error))
    except MemoryError:
        return _send(fd, MEMORY)
    except BaseException as error:
        return _send(fd, ERROR, _describe(error))
    if function is None:
        return _send(fd, UNPARSEABLE, f"no function {task['entry_point']!r}".encode())
    _send(fd, DEFINED)
    for arguments in task["args"][first:]:
        kind, payload = _call(function, arguments, output_bytes)
        _send(fd, kind, payload)
        if kind == MEMORY:
            return None  # the heap is exhausted: the next test deserves a fresh child
    return None
