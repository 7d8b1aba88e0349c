"""What a reward function says about one response."""

from dataclasses import dataclass

from openmimo.judge.verdict import Status


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on one response, and its reward in [0, 1].

    `score` is None where the response could not be scored (the judge failed, the mathematics
    verifier ran out of time): such a sample must leave the group's baseline and be counted, never
    become a zero. `passed` holds, for code, each test's outcome in the problem's order.
    """

    score: float | None
    status: Status
    detail: str = ""
    passed: tuple[bool, ...] = ()

    @property
    def correct(self) -> bool:
        """Whether the whole answer is right (for code: every test passed)."""
        return self.status is Status.OK


def right(detail: str) -> Verdict:
    """A correct answer: score 1."""
    return Verdict(1.0, Status.OK, detail)


def wrong(detail: str) -> Verdict:
    """Another answer: score 0."""
    return Verdict(0.0, Status.WRONG, detail)


def unparseable(detail: str) -> Verdict:
    """A response without an answer that can be read: score 0."""
    return Verdict(0.0, Status.UNPARSEABLE, detail)


def failed(detail: str) -> Verdict:
    """The verifier failed, whatever the answer: no score."""
    return Verdict(None, Status.JUDGE_ERROR, detail)
