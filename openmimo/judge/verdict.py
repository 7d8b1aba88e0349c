"""What the judge says about a solution."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Self


class Status(StrEnum):
    """How a test, or a whole answer, ended. Only `judge_error` says nothing about the answer."""

    OK = "ok"
    WRONG = "wrong"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    CRASH = "crash"
    COMPILE = "compile"
    """No program of its language, or one without the function that the test calls."""
    OUTPUT_LIMIT = "output_limit"
    SKIPPED = "skipped"
    """Not run, as an earlier failure had decided the score."""
    UNPARSEABLE = "unparseable"
    """Of a whole answer: it holds no program, or no result, that can be read."""
    JUDGE_ERROR = "judge_error"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One test: its status, why where that helps a reader, and what it cost.

    `cpu_seconds` counts the candidate's processes, `wall_seconds` also its waiting. `unsafe` if it
    was judged without the sandbox.
    """

    status: Status
    detail: str = ""
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    unsafe: bool = False


@dataclass(frozen=True, slots=True)
class SolutionVerdict:
    """One verdict for each test, in the order given."""

    tests: tuple[Verdict, ...]

    @classmethod
    def failed(cls, tests: int, detail: str, unsafe: bool = False) -> Self:
        """The judge could give none: `judge_error` for so many tests."""
        return cls((Verdict(Status.JUDGE_ERROR, detail, unsafe=unsafe),) * tests)

    @property
    def passed(self) -> tuple[bool, ...]:
        return tuple(test.status is Status.OK for test in self.tests)

    @property
    def judge_failed(self) -> bool:
        """Whether some test could not be judged, so that no score may be derived."""
        return any(test.status is Status.JUDGE_ERROR for test in self.tests)

    @property
    def unsafe(self) -> bool:
        """Whether a test was judged without the sandbox."""
        return any(test.unsafe for test in self.tests)

    @property
    def cpu_seconds(self) -> float:
        """What all tests cost together."""
        return sum(test.cpu_seconds for test in self.tests)
