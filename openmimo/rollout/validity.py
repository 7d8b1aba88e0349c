"""Which groups dynamic sampling keeps: pure functions of a group's scores.

A group is the scores of one prompt's samples; `None` marks a sample that could not be scored and
counts for nothing. All predicates are monotone: once true for the scores seen so far, more scores
cannot make them false. The scheduler relies on this to count a group before its last sample.
"""

from collections.abc import Callable, Sequence

Scores = Sequence[float | None]
Validity = Callable[[Scores], bool]

SCORE_TOLERANCE = 1e-6
"""Scores closer than this are equal: a graded reward is a sum of level scores, hence inexact."""


def passes(score: float) -> bool:
    """A sample passes when it earns the whole reward, which is 1."""
    return score >= 1 - SCORE_TOLERANCE


def valid_by_passrate(scores: Scores) -> bool:
    """Whether the group's pass rate is neither 0 nor 1 (the filter the MiMo report describes)."""
    passed = {passes(score) for score in scores if score is not None}
    return len(passed) == 2


def valid_by_reward_std(scores: Scores) -> bool:
    """Whether the scores differ at all, so that some advantage is not 0 (verl's filter).

    With a graded reward this keeps more groups than the pass rate: two partial scores suffice.
    """
    scored = [score for score in scores if score is not None]
    return len(scored) > 1 and max(scored) - min(scored) > SCORE_TOLERANCE


def every_group(scores: Scores) -> bool:
    """No filter: without dynamic sampling, and in validation."""
    return True


def whole_group_passes(scores: Scores) -> bool | None:
    """Whether every scored sample passes; None when fewer than two samples could be scored."""
    scored = [score for score in scores if score is not None]
    if len(scored) < 2:
        return None
    return all(passes(score) for score in scored)
