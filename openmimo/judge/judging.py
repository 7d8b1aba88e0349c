"""From how a process ended and what it left to a verdict's status and detail. Pure.

A verdict is made here, from exit status, signal, CPU time and bytes. Expected outputs never leave
this process; candidate code never enters it.
"""

import json
import os

from openmimo.judge.cases import CallTest, Checker, Limits, StdioTest, as_bytes
from openmimo.judge.compare import decode, output_difference, values_match
from openmimo.judge.fork_server import Outcome
from openmimo.judge.sandbox import child, remote, server
from openmimo.judge.verdict import Status

Judgement = tuple[Status, str]
_RAISED = (child.ERROR, child.MEMORY)


def judge_output(test: StdioTest, limits: Limits, outcome: Outcome) -> Judgement:
    """Of a program that printed; OK where only a checker is left to ask."""
    if len(outcome.output) > limits.output_bytes:
        return Status.OUTPUT_LIMIT, f"more than {limits.output_bytes} bytes of output"
    failure = failure_of(limits, outcome)
    if failure:
        return failure
    if isinstance(test.rule, Checker):
        return Status.OK, ""
    difference = output_difference(test.rule, as_bytes(test.expected), outcome.output)
    return (Status.WRONG, difference) if difference else (Status.OK, "")


def judge_value(test: CallTest, limits: Limits, outcome: Outcome) -> Judgement:
    """Of a function that returned something."""
    kind, payload = outcome.report[:1], outcome.report[1:]
    if len(payload) > limits.output_bytes:
        return Status.OUTPUT_LIMIT, f"more than {limits.output_bytes} bytes of JSON returned"
    failure = failure_of(limits, outcome)
    if failure:
        return failure
    if kind == child.OTHER:
        return Status.WRONG, f"returned no plain value: {text(payload)}"
    if kind != child.VALUE:
        return Status.CRASH, "ended before the function returned"
    try:
        value = decode(payload)
        expected = decode(json.dumps(test.expected).encode())
    except ValueError:  # only a forged report can hold this
        return Status.CRASH, "malformed result"
    if values_match(test.rule, expected, value):
        return Status.OK, ""
    return Status.WRONG, f"returned {_shorten(text(payload))}"


def judge_assertions(limits: Limits, outcome: Outcome) -> Judgement:
    """Of assertions that ran beside a program; the output is their report, the report the
    program's."""
    kind, detail = outcome.output[:1], text(outcome.output[1:])
    if outcome.ending == server.EXITED and kind != remote.LOST:
        if kind == remote.PASSED and outcome.status == 0:
            return Status.OK, ""
        if kind == remote.FAILED:
            return Status.WRONG, detail
        if kind == child.MEMORY:
            return Status.MEMORY, "in the tests' own process"
        return Status.CRASH, detail or f"the tests' own process {death(outcome)}"
    failure = failure_of(limits, outcome)
    return failure or (Status.CRASH, "the program ended before its tests did")


def judge_check(checker: Checker, outcome: Outcome, message: str) -> Judgement:
    """Of a checker that has ended; `message` is what it left for us to read."""
    if checker.program.language == "python" and outcome.report[:1] in _RAISED:
        # Its exit status, 1, would reject under testlib's protocol.
        return Status.JUDGE_ERROR, f"the checker raised {text(outcome.report[1:])}"
    detail = _shorten(message) or death(outcome)
    if outcome.ending == server.EXITED and os.WIFEXITED(outcome.status):
        status = os.WEXITSTATUS(outcome.status)
        if checker.protocol == "cms" and status == 0:
            return _judge_score(outcome.output, detail)
        accepted, rejected = ((42,), (43,)) if checker.protocol == "kattis" else ((0,), (1, 2))
        if checker.protocol != "cms" and status in accepted:
            return Status.OK, ""
        if checker.protocol != "cms" and status in rejected:
            return Status.WRONG, detail
    return Status.JUDGE_ERROR, f"the checker {death(outcome)}: {_shorten(message)}"


def _judge_score(output: bytes, detail: str) -> Judgement:
    try:
        score = float(output.split()[0])
    except (ValueError, IndexError):
        return Status.JUDGE_ERROR, f"the checker gave no score: {_shorten(text(output))}"
    return (Status.OK, "") if score == 1 else (Status.WRONG, f"score {score:g}; {detail}")


def report_of_compiled(outcome: Outcome) -> bytes:
    """The report that a compiled program would write if it could, from its standard error."""
    if outcome.status == 0:
        return b""
    if b"bad_alloc" in outcome.report:
        return child.MEMORY
    words = f"{death(outcome)} {text(outcome.report[-200:])}".strip()
    return child.ERROR + words.encode()


def failure_of(limits: Limits, outcome: Outcome) -> Judgement | None:
    """The status of a child that did not end well; None if it did."""
    if outcome.ending == server.NOT_STARTED:
        return Status.JUDGE_ERROR, "no process for the program"
    if outcome.ending == server.OUT_OF_CPU:
        return Status.TIMEOUT, f"{outcome.cpu_seconds:.2f} s of CPU time"
    if outcome.ending == server.OUT_OF_TIME:
        return Status.TIMEOUT, f"{outcome.wall_seconds:.2f} s, most of them idle"
    kind, detail = outcome.report[:1], text(outcome.report[1:])
    if kind == child.MEMORY:
        return Status.MEMORY, f"more than {limits.memory_mb} MiB"
    if kind == child.MISSING:
        return Status.COMPILE, detail
    if kind == child.ERROR:
        return Status.CRASH, detail
    if outcome.status != 0:
        return Status.CRASH, death(outcome)
    return None


def death(outcome: Outcome) -> str:
    """How a process ended, as the end of a sentence."""
    if outcome.ending != server.EXITED:
        return "ran out of time"
    if os.WIFSIGNALED(outcome.status):
        return f"was killed by signal {os.WTERMSIG(outcome.status)}"
    return f"ended with exit status {os.WEXITSTATUS(outcome.status)}"


def text(payload: bytes) -> str:
    """Bytes for a reader."""
    return payload.decode("utf-8", "replace")


def _shorten(text: str) -> str:
    return text if len(text) <= 100 else text[:100] + "..."
