"""Assertion blocks (`assert f(2) == 4`): the tests in one process, the candidate in another.

The tester's process runs the assertions. Where they name something of the candidate's, they hold a
`Remote`, and a call of it is a message to the candidate's process, which answers with plain data.
So no expected value enters the candidate's process, and no object or equality of the candidate's
enters the tester's: an assertion compares data with data. The verdict is the tester's.
"""

import builtins
import json
import os
import struct
import types
from collections.abc import Iterator
from typing import Any

from . import child, values

# What the tester reports.
PASSED = b"K"
FAILED = b"W"  # an assertion does not hold; payload: which
LOST = b"G"  # the candidate's process ended before the assertions did

_LENGTH = struct.Struct("<I")
_MESSAGE_BYTES = 64 << 20
_OUT_FD, _IN_FD = 4, 5  # of both sides


# The tests would read them as their own: as a failure, or as the end of `map` or `zip`.
_NOT_RAISED = (AssertionError, StopIteration, StopAsyncIteration)


class CandidateLost(BaseException):
    """Not an Exception: the tests' own `except Exception` must not catch it."""


def _send(fd: int, message: object) -> None:
    payload = values.dumps(message)
    data = memoryview(_LENGTH.pack(len(payload)) + payload)
    while data:
        data = data[os.write(fd, data) :]


def _receive(fd: int) -> Any:
    (length,) = _LENGTH.unpack(_read(fd, _LENGTH.size))
    if length > _MESSAGE_BYTES:
        raise ValueError(f"a message of {length} bytes")
    return json.loads(_read(fd, length))


def _read(fd: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = os.read(fd, min(size - len(data), 1 << 20))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)


class Host:
    """The candidate's side: carries out what the tester asks for, until it hangs up."""

    def __init__(self, namespace: dict[str, object]) -> None:
        self._namespace = namespace
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}  # by id, which `_objects` keeps valid

    def serve(self, requests: int, replies: int) -> None:
        """Answer requests. Returns when the tester has gone."""
        while True:
            try:
                request = _receive(requests)
            except EOFError:
                return
            try:
                reply = self._answer(*request)
            except MemoryError:
                raise
            except Exception as error:
                reply = ["e", type(error).__name__, child.describe(error).decode("utf-8", "ignore")]
            _send(replies, reply)

    def _pack(self, value: object) -> object:
        return values.pack(value, self._keep)

    def _keep(self, value: object) -> int:
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._objects)
            self._objects.append(value)
        return self._numbers[id(value)]

    def _unpack(self, data: object) -> Any:
        return values.unpack(data, self._objects.__getitem__)

    def _answer(self, operation: str, *operands: Any) -> list[object]:
        if operation == "names":
            found = {name: self._namespace[name] for name in operands if name in self._namespace}
            return ["v", {name: self._pack(value) for name, value in found.items()}]
        target = self._objects[operands[0]]
        if operation == "call":
            args, kwargs = self._unpack(operands[1]), self._unpack(operands[2])
            result = self._pack(target(*args, **kwargs))
            # What the function did to its arguments, for tests of functions that change them.
            after = self._pack(args)
            return ["v", result, after if after != operands[1] else None]
        if operation == "get":
            return ["v", self._pack(getattr(target, operands[1]))]
        if operation == "set":
            setattr(target, operands[1], self._unpack(operands[2]))
            return ["v"]
        if operation == "item":
            return ["v", self._pack(target[self._unpack(operands[1])])]
        if operation == "list":
            return ["v", self._pack(list(target))]
        raise ValueError(operation)


class Link:
    """The tester's side of the connection."""

    def __init__(self, requests: int, replies: int) -> None:
        self._requests, self._replies = requests, replies

    def ask(self, *request: object) -> list[Any]:
        """One operation's answer. An exception of the candidate's is raised here, as a builtin
        one; CandidateLost if its process is gone or sends nonsense."""
        try:
            _send(self._requests, request)
            kind, *answer = _receive(self._replies)
        except (OSError, EOFError, ValueError, TypeError, RecursionError) as error:
            raise CandidateLost from error
        if kind == "v":
            return answer
        name, text = map(str, answer)
        error_type = getattr(builtins, name, None)
        if not (isinstance(error_type, type) and issubclass(error_type, Exception)):
            error_type = RuntimeError
        raise (RuntimeError if error_type in _NOT_RAISED else error_type)(text)

    def unpack(self, data: object) -> Any:
        """The value, with a Remote for what stayed in the candidate's process."""
        return values.unpack(data, lambda number: Remote(self, number))

    def call(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result, after = self.ask("call", number, pack(args), pack(kwargs))
        if after is not None:
            for argument, changed in zip(args, self.unpack(after), strict=True):
                _copy_into(argument, changed)
        return self.unpack(result)


class Remote:
    """Something in the candidate's process. Equal to itself alone, whatever the candidate says."""

    def __init__(self, link: Link, number: int) -> None:
        self.__dict__.update(_link=link, _number=number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._link.call(self._number, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        # Libraries ask for special names and trust what they get: with `__array_interface__` a
        # candidate could have numpy read any address of the tester's memory as its answer.
        if name.startswith("__"):
            raise AttributeError(f"special names stay in the program's process: {name}")
        return self._link.unpack(self._link.ask("get", self._number, name)[0])

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.ask("set", self._number, name, pack(value))

    def __getitem__(self, key: Any) -> Any:
        return self._link.unpack(self._link.ask("item", self._number, pack(key))[0])

    def __iter__(self) -> Iterator[Any]:
        return iter(self._link.unpack(self._link.ask("list", self._number)[0]))


def pack(value: object) -> object:
    """What the tester sends. TypeError for what is neither plain data nor a Remote."""

    def reference(item: object) -> int:
        if isinstance(item, Remote):
            return item._number
        raise TypeError(f"a test passes a {type(item).__name__} to the program; only data can go")

    return values.pack(value, reference)


def _copy_into(argument: Any, changed: Any) -> None:
    if type(argument) is list and type(changed) is list:
        argument[:] = changed
    elif type(argument) in (dict, set) and type(changed) is type(argument):
        argument.clear()
        argument.update(changed)


def free_names(code: types.CodeType) -> set[str]:
    """Names that a block uses and that are no builtins (attributes among them, harmlessly)."""
    names = {name for name in code.co_names if not hasattr(builtins, name)}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= free_names(constant)
    return names


def run_candidate(code: bytes) -> None:
    """In the candidate's process: define the program, then do as the tester asks."""
    try:
        Host(child.define(code)).serve(_IN_FD, _OUT_FD)
    except BaseException as error:
        child.report_error(error)


def run_tester(job: bytes) -> None:
    """In the tester's process: run `setup`, bind the candidate's names, run `code`; report.

    `job` is JSON {"setup", "code", "names"}. Without names, all are bound that `code` uses, that
    `setup` does not define and that the candidate has.
    """
    task = json.loads(job)
    link = Link(_OUT_FD, _IN_FD)
    namespace: dict[str, object] = {"__name__": "tests"}
    try:
        exec(compile(task["setup"], "setup", "exec"), namespace)
        code = compile(task["code"], "tests", "exec")
        names = task["names"] or sorted(free_names(code) - namespace.keys())
        found = link.ask("names", *names)[0]
        # What was asked for alone: a forged reply must not put its own `abs` or `check` here.
        namespace |= {name: link.unpack(found[name]) for name in names if name in found}
        exec(code, namespace)
    except CandidateLost:
        return child.report(LOST)
    except AssertionError as error:
        return child.report(FAILED, child.describe(error))
    except BaseException as error:
        return child.report_error(error)
    return child.report(PASSED)
