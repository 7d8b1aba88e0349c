"""One fork server as the supervisor sees it: loads programs, runs tests, makes verdicts.

A verdict is made here, from exit status, signal, CPU time and bytes. Expected outputs never leave
this process; candidate code never enters it.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from openmimo.errors import UserError
from openmimo.judge.cases import CallTest, Limits, Program, StdioTest, Test, as_bytes
from openmimo.judge.compare import decode, output_difference, values_match
from openmimo.judge.pipes import PipeProcess
from openmimo.judge.sandbox import child, remote, server
from openmimo.judge.verdict import Status, Verdict

_START = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from sandbox import server; del sys.path[0]; server.main(sys.argv[1:])"
)
_START_SECONDS = 30.0
_SLACK_SECONDS = 10.0  # beyond a test's own limits, before its server counts as hung
_COMPILE_SECONDS = 40.0


class Outcome(NamedTuple):
    """How a child ended (`server.Result`), and the bytes that it left."""

    ending: int
    status: int
    cpu_seconds: float
    wall_seconds: float
    output: bytes
    report: bytes


class Worker:
    """A fork server. Whatever goes wrong with it raises OSError, EOFError or ValueError; then the
    worker is of no more use.

    Raises UserError where the sandbox cannot be set up.
    """

    def __init__(self, unsafe: bool) -> None:
        # -I without its -E, so that the hash seed is fixed: the same program gets the same verdict
        # every time. The environment is ours alone, so nothing of the user's can leak in.
        environment = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
        if "LD_LIBRARY_PATH" in os.environ:  # an interpreter that finds its libpython by it
            environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        python = [sys.executable, "-s", "-P", "-S", "-B"]
        options = json.dumps({"unsafe": unsafe})
        self._unsafe = unsafe
        self._process = PipeProcess(
            [*python, "-c", _START, str(Path(__file__).parent), options], environment
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.alive()

    def wait_until_ready(self) -> None:
        """Return when the server is locked down and waits for work."""
        try:
            error = json.loads(self._process.receive(_START_SECONDS))["error"]
        except (EOFError, OSError) as failure:
            error = f"the sandbox process did not start ({failure})"
        if error:
            raise UserError(
                f"judge: {error}; programs are not run unprotected. Use a Linux kernel with "
                "landlock and seccomp, or pass --unsafe-local to run them without a sandbox, at "
                "your own risk"
            )

    def interrupt(self) -> None:
        """End the server at once, from another thread than the one that waits for it."""
        self._process.interrupt()

    def kill(self) -> None:
        """End the server at once."""
        self._process.kill()

    def load(self, program: Program) -> Verdict | None:
        """Compile a program and keep it for `run`. A verdict for all its tests where that fails."""
        source = program.source.encode("utf-8", "surrogatepass")
        outcome = self._ask(server.LOAD, Limits(), [source], _COMPILE_SECONDS)
        if outcome.ending == server.NOT_STARTED:
            raise OSError("no process for the compiler")
        if outcome.ending == server.EXITED and outcome.status == 0 and not outcome.report:
            return None
        detail = _text(outcome.report[1:]) or f"the compiler {_death(outcome)}"
        return self._verdict(outcome, Status.COMPILE, detail)

    def run(self, test: Test, limits: Limits) -> Verdict:
        """Judge the loaded program on one test."""
        seconds = limits.wall_seconds + _SLACK_SECONDS
        if isinstance(test, StdioTest):
            outcome = self._ask(server.SCRIPT, limits, [as_bytes(test.stdin)], seconds)
            return self._verdict(outcome, *_judge_output(test, limits, outcome))
        if isinstance(test, CallTest):
            call = json.dumps({"entry_point": test.entry_point, "args": list(test.args)})
            outcome = self._ask(server.CALL, limits, [call.encode()], seconds)
            return self._verdict(outcome, *_judge_value(test, limits, outcome))
        job = json.dumps({"setup": test.setup, "code": test.code, "names": test.names})
        outcome = self._ask(server.ASSERT, limits, [job.encode()], seconds)
        return self._verdict(outcome, *_judge_assertions(outcome))

    def _ask(self, kind: int, limits: Limits, blobs: Sequence[bytes], seconds: float) -> Outcome:
        sizes = [len(blob) for blob in blobs] + [0] * (3 - len(blobs))
        header = server.REQUEST.pack(
            kind, limits.cpu_seconds, limits.wall_seconds, limits.memory_mb << 20,
            limits.output_bytes, *sizes,
        )  # fmt: skip
        self._process.send(header + b"".join(blobs), _SLACK_SECONDS)
        reply = self._process.receive(seconds)
        ending, status, cpu, wall, output, report = server.REPLY.unpack_from(reply)
        start = server.REPLY.size
        if len(reply) != start + output + report:
            raise ValueError("a malformed reply of the sandbox")
        files = (reply[start : start + output], reply[start + output :])
        return Outcome(ending, status, cpu, wall, *files)

    def _verdict(self, outcome: Outcome, status: Status, detail: str) -> Verdict:
        return Verdict(status, detail, outcome.cpu_seconds, outcome.wall_seconds, self._unsafe)


def _judge_output(test: StdioTest, limits: Limits, outcome: Outcome) -> tuple[Status, str]:
    if len(outcome.output) > limits.output_bytes:
        return Status.OUTPUT_LIMIT, f"more than {limits.output_bytes} bytes of output"
    failure = _failure(limits, outcome, outcome.report)
    if failure:
        return failure
    difference = output_difference(test.rule, as_bytes(test.expected), outcome.output)
    return (Status.WRONG, difference) if difference else (Status.OK, "")


def _judge_value(test: CallTest, limits: Limits, outcome: Outcome) -> tuple[Status, str]:
    kind, payload = outcome.report[:1], outcome.report[1:]
    if len(payload) > limits.output_bytes:
        return Status.OUTPUT_LIMIT, f"more than {limits.output_bytes} bytes of JSON returned"
    failure = _failure(limits, outcome, outcome.report)
    if failure:
        return failure
    if kind == child.OTHER:
        return Status.WRONG, f"returned no plain value: {_text(payload)}"
    if kind != child.VALUE:
        return Status.CRASH, "ended before the function returned"
    try:
        value = decode(payload)
        expected = decode(json.dumps(test.expected).encode())
    except ValueError:  # only a forged report can hold this
        return Status.CRASH, "malformed result"
    if values_match(test.rule, expected, value):
        return Status.OK, ""
    return Status.WRONG, f"returned {_shorten(_text(payload))}"


def _judge_assertions(outcome: Outcome) -> tuple[Status, str]:
    kind, detail = outcome.output[:1], _text(outcome.output[1:])
    if outcome.ending == server.EXITED and kind != remote.LOST:
        if kind == remote.PASSED and outcome.status == 0:
            return Status.OK, ""
        if kind == remote.FAILED:
            return Status.WRONG, detail
        if kind == child.MEMORY:
            return Status.MEMORY, "in the tests' own process"
        return Status.CRASH, detail or f"the tests' own process {_death(outcome)}"
    failure = _failure(Limits(), outcome, outcome.report)
    return failure or (Status.CRASH, "the program ended before its tests did")


def _failure(limits: Limits, outcome: Outcome, report: bytes) -> tuple[Status, str] | None:
    """The status of a child that did not end well; None if it did."""
    if outcome.ending == server.NOT_STARTED:
        return Status.JUDGE_ERROR, "no process for the program"
    if outcome.ending == server.OUT_OF_CPU:
        return Status.TIMEOUT, f"{outcome.cpu_seconds:.2f} s of CPU time"
    if outcome.ending == server.OUT_OF_TIME:
        return Status.TIMEOUT, f"{outcome.wall_seconds:.2f} s, most of them idle"
    kind, detail = report[:1], _text(report[1:])
    if kind == child.MEMORY:
        return Status.MEMORY, f"more than {limits.memory_mb} MiB"
    if kind == child.MISSING:
        return Status.COMPILE, detail
    if kind == child.ERROR:
        return Status.CRASH, detail
    if outcome.status != 0:
        return Status.CRASH, _death(outcome)
    return None


def _death(outcome: Outcome) -> str:
    if os.WIFSIGNALED(outcome.status):
        return f"was killed by signal {os.WTERMSIG(outcome.status)}"
    return f"ended with exit status {os.WEXITSTATUS(outcome.status)}"


def _text(payload: bytes) -> str:
    return payload.decode("utf-8", "replace")


def _shorten(text: str) -> str:
    return text if len(text) <= 100 else text[:100] + "..."
