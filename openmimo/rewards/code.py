"""The reward of a code response: extract the program, score the judge's verdict."""

import re
from collections.abc import Sequence

from openmimo.judge.cases import Limits
from openmimo.judge.verdict import SolutionVerdict, Status
from openmimo.rewards.difficulty import Levels
from openmimo.rewards.grading import Grading
from openmimo.rewards.verdict import Verdict

_FENCE = re.compile(r"^[ \t]*```[ \t]*([^\s`]*)[ \t]*\r?$", re.MULTILINE)
_LANGUAGES = ("python", "python3", "py")

NO_PROGRAM = Verdict(0.0, Status.UNPARSEABLE, "no ```python block")


def program_limits(seconds: float = 0.5, memory_mb: int = 256) -> Limits:
    """Limits for one test of a model's program: CPU time, and memory in MiB.

    Ten times as long by the wall clock, for a busy machine. One timeout ends a program: a loop
    costs one, not one a test.
    """
    return Limits(seconds, wall_seconds=10 * seconds, memory_mb=memory_mb, max_timeouts=1)


def extract_program(response: str) -> str | None:
    """The text of the last fenced block, after the last `</think>` if there is one.

    None unless that block is closed, is marked as Python and holds something: an answer that was
    cut off must not fall back to an earlier draft.
    """
    text = response.rpartition("</think>")[2]
    block: tuple[str, str] | None = None
    opening: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opening is None:
            opening, block = fence, None
        else:
            block = (opening[1].lower(), text[opening.end() + 1 : fence.start()])
            opening = None
    if block is None or block[0] not in _LANGUAGES or not block[1].strip():
        return None
    return block[1]


def score_verdict(
    verdict: SolutionVerdict,
    grading: Grading,
    levels: Levels | None = None,
    level_scores: Sequence[float] | None = None,
) -> Verdict:
    """The reward of a judged solution. A program that crashes is scored by its tests, as failed."""
    if verdict.judge_failed:
        failed = next(t for t in verdict.tests if t.status is Status.JUDGE_ERROR)
        return Verdict(None, Status.JUDGE_ERROR, failed.detail)
    passed = verdict.passed
    score = grading.reward(passed, levels, level_scores)
    detail = f"{sum(passed)}/{len(passed)} tests"
    harmless = (Status.OK, Status.SKIPPED)
    first_failure = next((t for t in verdict.tests if t.status not in harmless), None)
    if first_failure is None:
        return Verdict(score, Status.OK, detail, passed)
    if first_failure.detail:
        detail += f"; {first_failure.detail}"
    return Verdict(score, first_failure.status, detail, passed)
