"""A worker: judges one solution at a time, with the fork servers that it needs."""

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from openmimo.judge.cases import (
    AssertTest,
    CallTest,
    Checker,
    Limits,
    Program,
    StdioTest,
    Test,
    as_bytes,
    content_key,
)
from openmimo.judge.compiler import CompileError, Compiler, share_with_nobody
from openmimo.judge.fork_server import ForkServer, Libraries, Outcome
from openmimo.judge.judging import (
    Judgement,
    death,
    judge_assertions,
    judge_check,
    judge_output,
    judge_value,
    report_of_compiled,
    text,
)
from openmimo.judge.sandbox import server
from openmimo.judge.verdict import SolutionVerdict, Status, Verdict

_SKIPPED = Verdict(Status.SKIPPED, "not run: an earlier failure decided the score")
_TOO_MANY_TIMEOUTS = Verdict(Status.TIMEOUT, "not run: too many tests timed out before")
_COMPILING = Limits(wall_seconds=40.0)  # the server's own limits are tighter
_CHECKING = Limits(cpu_seconds=20.0, wall_seconds=60.0, memory_mb=1024)
_NUMPY = re.compile(r"\b(import|from)\s+numpy\b")


class _Unusable(Exception):
    """A program that cannot be loaded; the argument is the verdict for each of its tests."""


class Worker:
    """Fork servers: one for Python and for compiled programs, and, once they are needed, one with
    numpy and one for checkers.

    OSError, EOFError or ValueError of a method mean that the worker is of no more use. UserError
    where the sandbox cannot be set up.
    """

    def __init__(self, compiler: Compiler, unsafe: bool) -> None:
        self._compiler, self._unsafe = compiler, unsafe
        self._servers: dict[Libraries, ForkServer] = {"plain": ForkServer(unsafe)}
        self._checkers: ForkServer | None = None
        self._checker_key = b""  # of the checker that is loaded
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._interrupted = False

    @property
    def pid(self) -> int:
        """Of the server that is always there."""
        return self._servers["plain"].pid

    def alive(self) -> bool:
        return all(server.alive() for server in self._all())

    def wait_until_ready(self) -> None:
        """Return when the first server is locked down."""
        self._servers["plain"].wait_until_ready()

    def interrupt(self) -> None:
        """End all servers at once, from another thread than the one that judges."""
        self._interrupted = True
        for each in self._all():
            each.interrupt()

    def kill(self) -> None:
        """End all servers at once."""
        for each in self._all():
            each.kill()
        if self._scratch is not None:
            self._scratch.cleanup()

    def judge(
        self,
        program: Program,
        tests: Sequence[Test],
        limits: Limits,
        order: Sequence[int],
        stop_at_failure: bool,
    ) -> SolutionVerdict:
        """Judge a program; see `Judge.submit`."""
        try:
            candidates = self._server(_libraries(program, tests))
            self._load(candidates, program)
        except _Unusable as unusable:
            return SolutionVerdict((unusable.args[0],) * len(tests))
        compiled = program.language != "python"
        verdicts = [_SKIPPED] * len(tests)
        timeouts, most = 0, limits.max_timeouts
        for index in order:
            if most and timeouts >= most:
                verdicts[index] = _TOO_MANY_TIMEOUTS
                continue
            verdicts[index] = self._run(candidates, tests[index], limits, compiled)
            timeouts += verdicts[index].status is Status.TIMEOUT
            if stop_at_failure and verdicts[index].status is not Status.OK:
                break
        return SolutionVerdict(tuple(verdicts))

    def _all(self) -> list[ForkServer]:
        return [*self._servers.values(), *([self._checkers] if self._checkers else [])]

    def _server(self, libraries: Libraries) -> ForkServer:
        if libraries not in self._servers:
            self._servers[libraries] = ForkServer(self._unsafe, libraries)
            self._await(self._servers[libraries])
        return self._servers[libraries]

    def _await(self, started: ForkServer) -> None:
        if self._interrupted:  # perhaps before this server was there to be ended
            started.interrupt()
        started.wait_until_ready()

    def _load(self, target: ForkServer, program: Program) -> None:
        """Compile a program and keep it in a server. _Unusable where that fails."""
        if program.language == "cpp":
            try:
                binary = self._compiler.compile(program)
            except CompileError as error:
                verdict = Verdict(Status.COMPILE, str(error), unsafe=self._unsafe)
                raise _Unusable(verdict) from error
            target.ask(server.LOAD_COMPILED, _COMPILING, [binary])
            return
        source = program.source.encode("utf-8", "surrogatepass")
        outcome = target.ask(server.LOAD, _COMPILING, [source])
        if outcome.ending == server.NOT_STARTED:
            raise OSError("no process for the compiler")
        if outcome.ending != server.EXITED or outcome.status != 0 or outcome.report:
            detail = text(outcome.report[1:]) or f"the compiler {death(outcome)}"
            raise _Unusable(self._verdict(outcome, (Status.COMPILE, detail)))

    def _run(self, candidates: ForkServer, test: Test, limits: Limits, compiled: bool) -> Verdict:
        """Judge the loaded program on one test."""
        if isinstance(test, CallTest):
            call = json.dumps({"entry_point": test.entry_point, "args": list(test.args)})
            outcome = candidates.ask(server.CALL, limits, [call.encode()])
            return self._verdict(outcome, judge_value(test, limits, outcome))
        if isinstance(test, AssertTest):
            job = json.dumps({"setup": test.setup, "code": test.code, "names": test.names})
            outcome = candidates.ask(server.ASSERT, limits, [job.encode()])
            return self._verdict(outcome, judge_assertions(limits, outcome))
        outcome = candidates.ask(server.SCRIPT, limits, [as_bytes(test.stdin)])
        if compiled:
            outcome = outcome._replace(report=report_of_compiled(outcome))
        verdict = self._verdict(outcome, judge_output(test, limits, outcome))
        if isinstance(test.rule, Checker) and verdict.status is Status.OK:
            status, detail = self._check(test.rule, test, outcome.output)
            return replace(verdict, status=status, detail=detail)
        return verdict

    def _check(self, checker: Checker, test: StdioTest, output: bytes) -> Judgement:
        try:
            server_, scratch = self._checker_server(checker)
        except _Unusable as unusable:
            return Status.JUDGE_ERROR, f"the checker does not compile: {unusable.args[0].detail}"
        given, printed, answer = server.CHECK_FILES
        arguments = {
            "testlib": [given, printed, answer],
            "kattis": [given, answer, str(scratch)],
            "cms": [given, answer, printed],
        }[checker.protocol] + list(checker.arguments)
        blobs = [as_bytes(test.stdin), output, as_bytes(test.expected)]
        outcome = server_.ask(server.CHECK, _CHECKING, [*blobs, json.dumps(arguments).encode()])
        message = _read_and_clear(scratch) or text(outcome.output).strip()
        return judge_check(checker, outcome, message)

    def _checker_server(self, checker: Checker) -> tuple[ForkServer, Path]:
        """The server with this checker loaded, and the folder that it may write to."""
        if self._scratch is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="openmimo-judge-")
        scratch = Path(self._scratch.name)
        if self._checkers is None:
            share_with_nobody(scratch)
            self._checkers = ForkServer(self._unsafe, "plain", scratch)
            self._await(self._checkers)
        key = content_key(checker.program)
        if key != self._checker_key:
            self._checker_key = b""
            self._load(self._checkers, checker.program)
            self._checker_key = key
        return self._checkers, scratch

    def _verdict(self, outcome: Outcome, judgement: Judgement) -> Verdict:
        return Verdict(*judgement, outcome.cpu_seconds, outcome.wall_seconds, self._unsafe)


def _libraries(program: Program, tests: Sequence[Test]) -> Libraries:
    """What has to be loaded for a program and its assertions."""
    blocks = [f"{test.setup}\n{test.code}" for test in tests if isinstance(test, AssertTest)]
    sources = [program.source, *blocks] if program.language == "python" else []
    return "numpy" if any(map(_NUMPY.search, sources)) else "plain"


def _read_and_clear(folder: Path) -> str:
    """What a checker wrote, and no trace of it left for the next one."""
    messages = []
    for file in sorted(folder.iterdir()):
        if file.name != "teammessage.txt":
            messages.append(file.read_text(errors="replace").strip())
        file.unlink()
    return "; ".join(filter(None, messages))
