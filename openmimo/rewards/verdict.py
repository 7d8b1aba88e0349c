"""What a reward function says about one response."""

from dataclasses import dataclass

from openmimo.judge.verdict import Status


@dataclass(frozen=True, slots=True)
class RewardResult:
    """The reward of one response, in [0, 1].

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
