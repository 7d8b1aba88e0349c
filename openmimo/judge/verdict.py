"""What the judge says about a solution."""

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How a test, or a whole answer, ended. Only `judge_error` says nothing about the answer."""

    OK = "ok"
    WRONG = "wrong"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    CRASH = "crash"
    UNPARSEABLE = "unparseable"
    JUDGE_ERROR = "judge_error"


@dataclass(frozen=True, slots=True)
class TestVerdict:
    """One test: its status and, where it helps a reader, why (the exception's text)."""

    status: Status
    detail: str = ""


@dataclass(frozen=True, slots=True)
class SolutionVerdict:
    """One verdict for each test, in the order given; `unsafe` if judged without the sandbox."""

    tests: tuple[TestVerdict, ...]
    unsafe: bool = False

    @property
    def passed(self) -> tuple[bool, ...]:
        return tuple(test.status is Status.OK for test in self.tests)

    @property
    def judge_failed(self) -> bool:
        """Whether some test could not be judged, so that no score may be derived."""
        return any(test.status is Status.JUDGE_ERROR for test in self.tests)
