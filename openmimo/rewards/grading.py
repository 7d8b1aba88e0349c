"""From passed tests to a reward: strict, soft, all or nothing (MiMo report, section 3.3.1).

Each level of difficulty has a score; a solution earns whole levels (strict) or parts (soft).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from openmimo.errors import UserError
from openmimo.judge.verdict import Status, Verdict
from openmimo.rewards.difficulty import Levels

Scheme = Literal["strict", "soft", "all"]


@dataclass(frozen=True)
class Grading:
    """How passed tests become a reward in [0, 1].

    scheme: strict: a level's score is earned if all its tests pass. soft: a level's score is
        divided equally among its tests. all: 1 if every test passes, else 0.
    level_scores: of each level, easiest first; a problem with fewer levels takes the first ones.
        Scaled to sum to 1. Empty: equal scores.
    cumulative: strict: all tests of easier levels must pass too (the report's rule). Without it a
        level stands for itself, as a subtask of the IOI does.
    """

    scheme: Scheme = "soft"
    level_scores: Sequence[float] = ()
    cumulative: bool = True

    def __post_init__(self) -> None:
        if self.scheme not in get_args(Scheme):
            known = ", ".join(get_args(Scheme))
            raise UserError(f"unknown reward scheme {self.scheme!r}: use one of {known}")

    def reward(
        self,
        passed: Sequence[bool],
        levels: Levels | None = None,
        level_scores: Sequence[float] | None = None,
    ) -> float:
        """The reward in [0, 1].

        levels: a test may be in several, as in the IOI's subtasks. None: one level of all tests.
        level_scores: the problem's own, as the points of its subtasks; they go before the scheme's.

        UserError if the levels leave a test out, name one that does not exist or name one twice,
        for a level without tests, and for scores that do not fit.
        """
        if self.scheme == "all" or all(passed):
            return float(all(passed))  # exactly 1, whatever the rounding of the shares
        levels = [range(len(passed))] if levels is None else levels
        check_levels(levels, len(passed))
        scores = scaled_scores(len(levels), level_scores or self.level_scores)
        if self.scheme == "soft":
            earned = [sum(passed[test] for test in level) / len(level) for level in levels]
        else:
            earned = [float(all(passed[test] for test in level)) for level in levels]
            if self.cumulative:
                first_failed = earned.index(0.0)  # there is one: some test failed
                earned[first_failed:] = [0.0] * (len(earned) - first_failed)
        return min(1.0, sum(s * e for s, e in zip(scores, earned, strict=True)))

    def shortest_run(self, levels: Levels | None) -> tuple[list[int] | None, bool]:
        """The order of tests (None: any), and whether to stop at the first failure, that settle a
        reward with the fewest tests.

        Strict: easiest level first, as the first failure ends what can be earned. All or nothing:
        hardest first, as it is the likeliest to fail. Any other reward needs every test.
        """
        if self.scheme == "soft" or (self.scheme == "strict" and not self.cumulative):
            return None, False
        if levels is None:
            return None, True
        in_order = levels if self.scheme == "strict" else levels[::-1]
        return list(dict.fromkeys(test for level in in_order for test in level)), True


ALL_TESTS = Grading("all")
"""For evaluation: a program is right if every test passes."""


def score(
    verdicts: Sequence[Verdict],
    levels: Levels | None = None,
    scheme: Scheme | Grading = "soft",
    level_scores: Sequence[float] | None = None,
) -> float:
    """The reward in [0, 1] of a solution with these verdicts, as `Judge.run` returns them.

    `levels` and `level_scores` are the problem's, as in `Grading.reward`, which also says what is
    refused. UserError too where the verdicts decide nothing: without any, where the judge failed on
    a test, and where a test was skipped that the scheme needs.
    """
    grading = scheme if isinstance(scheme, Grading) else Grading(scheme)
    if not verdicts:
        raise UserError("no verdicts: a program without tests has no score")
    for number, verdict in enumerate(verdicts):
        if verdict.status is Status.JUDGE_ERROR:
            detail = verdict.detail or "no detail"
            raise UserError(f"test {number} was not judged ({detail}): that is no score of 0")
    least, most = (
        grading.reward([v.status in passing for v in verdicts], levels, level_scores)
        for passing in ({Status.OK}, {Status.OK, Status.SKIPPED})
    )
    if least != most:
        raise UserError(f"tests were skipped on which the {grading.scheme} reward depends")
    return least


def check_levels(levels: Levels, tests: int) -> None:
    """Raise UserError unless every test is in a level, in none twice, and no level is empty."""
    for number, level in enumerate(levels):
        if not len(level):
            raise UserError(f"difficulty level {number} has no tests")
        if len(set(level)) < len(level):
            raise UserError(f"difficulty level {number} has a test twice: {list(level)}")
    if {test for level in levels for test in level} != set(range(tests)):
        raise UserError(f"levels {[list(level) for level in levels]} do not hold {tests} tests")


def scaled_scores(n_levels: int, scores: Sequence[float] = ()) -> list[float]:
    """A score for each level, in sum 1; see `Grading.level_scores`."""
    own = list(scores)[:n_levels] if scores else [1.0] * n_levels
    if len(own) < n_levels or min(own, default=0) < 0 or not 0 < sum(own) < math.inf:
        raise UserError(f"{n_levels} levels need as many scores, none negative, not all 0: {own}")
    return [each / sum(own) for each in own]
