"""Math-Verify in processes of its own: `python -m openmimo.rewards.math_worker PARENT`.

Math-Verify guards itself with SIGALRM, which works in main threads only and fails silently
elsewhere; here its alarms are off. The process imports sympy once and forks a child that does the
work. A comparison that uses up its CPU time is ended by the kernel (a profiling timer with its
default action, which no library can catch), and a new child takes over within milliseconds.
CPU time, because on a busy machine a wall clock would also end what is quick.
"""

import gc
import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any

from openmimo.judge.sandbox.lockdown import die_with_parent
from openmimo.judge.verdict import Status

_MEMORY_BYTES = 2 << 30
_DETAIL_CHARS = 200


def compare(gold: str, answer: str) -> tuple[Status, str]:
    """What Math-Verify says about a normalised answer, read as one LaTeX expression.

    May run for ever. ValueError if the gold answer itself is no expression; any error of
    Math-Verify is raised too.
    """
    from math_verify import LatexExtractionConfig, parse, verify

    configuration = [LatexExtractionConfig(boxed_match_priority=0)]

    def parsed(text: str) -> Any:
        # `first_match`: the whole answer or nothing, never a number found somewhere in it.
        values = parse(
            f"\\boxed{{{text}}}",
            configuration,
            extraction_mode="first_match",
            fallback_mode="no_fallback",
            parsing_timeout=None,
        )
        return values[0] if values else None

    expected, given = parsed(gold), parsed(answer)
    if expected is None:
        raise ValueError(f"Math-Verify cannot parse the reference answer {gold!r}")
    if given is None:
        return Status.UNPARSEABLE, "not an expression"
    # An interval and an inequality may say the same, whichever of them is the reference.
    equal = verify(
        expected, given, timeout_seconds=None, allow_set_relation_comp=True, raise_on_error=True
    )
    return (Status.OK, "equivalent") if equal else (Status.WRONG, "not equivalent")


def compare_raw(
    gold: str,
    answer: str,
    latex: bool,
    expressions: bool,
    boxed_match_priority: int,
    verify_options: Mapping[str, Any],
) -> tuple[Status, str]:
    """Math-Verify's `parse` of both texts, then `verify`; nothing else. May run for ever."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    configurations: list[object] = []
    if latex:
        configurations.append(LatexExtractionConfig(boxed_match_priority=boxed_match_priority))
    if expressions:
        configurations.append(ExprExtractionConfig())
    expected = parse(gold, configurations, parsing_timeout=None)
    given = parse(answer, configurations, parsing_timeout=None)
    if verify(expected, given, timeout_seconds=None, **verify_options):
        return Status.OK, "Math-Verify: equal"
    if not given:
        return Status.UNPARSEABLE, "Math-Verify finds no answer"
    return Status.WRONG, "Math-Verify: not equal"


_OPERATIONS: dict[str, Callable[..., tuple[Status, str]]] = {
    "compare": compare,
    "raw": compare_raw,
}


def _respond(request: bytes) -> bytes:
    name, seconds, arguments = json.loads(request)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        status, detail = _OPERATIONS[name](**arguments)
    except Exception as error:  # a library's bug on odd input must not end the worker
        status, detail = Status.JUDGE_ERROR, f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return _message(status, detail)


def _message(status: Status, detail: str) -> bytes:
    data = json.dumps([status, detail[:_DETAIL_CHARS]]).encode()
    return struct.pack("<I", len(data)) + data


def _serve(requests: int, replies: int) -> None:
    """Answer `<I` length + JSON [operation, CPU seconds, arguments] until input closes."""
    # One write is one message: a child that is killed leaves no half of one.
    while len(header := _read(requests, 4)) == 4:
        os.write(replies, _respond(_read(requests, *struct.unpack("<I", header))))


def _read(pipe: int, size: int) -> bytes:
    data = b""
    while len(data) < size and (chunk := os.read(pipe, size - len(data))):
        data += chunk
    return data


def main() -> None:
    """Fork one child after the other. Ends when input closes or a child dies of something else."""
    # The parent's pid comes as an argument: asked here, it could already be that of init.
    die_with_parent(int(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)  # what a library prints must not get between the messages
    compare("x+1", "1+x")  # imports sympy, half a second, before the first real request
    gc.freeze()
    os.write(replies, _message(Status.OK, "ready"))
    own_pid = os.getpid()
    while True:
        if not (child := os.fork()):
            die_with_parent(own_pid)
            _serve(requests, replies)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != -signal.SIGPROF:
            sys.exit(status != 0)
        # The timer runs between a request and its reply only, so the pipes are in step.
        os.write(replies, _message(Status.TIMEOUT, "no verdict within the CPU time allowed"))


if __name__ == "__main__":
    main()
