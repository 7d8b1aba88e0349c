"""The test difficulty driven reward (MiMo report, section 3.3.1), as pure functions.

A test's difficulty is its pass rate over many solutions. Tests are clustered into levels by pass
rate, each level has a score, and a solution earns levels (strict) or parts of them (soft).
Levels are lists of test indices, easiest level first, as in a problem's `levels` field.
"""

from collections.abc import Sequence
from typing import Literal, get_args

from openmimo.errors import UserError

Scheme = Literal["strict", "soft", "all"]
Levels = Sequence[Sequence[int]]


def pass_rates(matrix: Sequence[Sequence[bool]]) -> list[float]:
    """Pass rate of each test over all solutions; `matrix` has a row for each solution."""
    if not matrix or len({len(row) for row in matrix}) != 1:
        raise UserError("pass rates need at least one solution and rows of one length")
    return [sum(column) / len(matrix) for column in zip(*matrix, strict=True)]


def cluster_levels(rates: Sequence[float], n_levels: int) -> list[list[int]]:
    """Cluster tests into at most `n_levels` levels by pass rate, easiest first.

    The optimal one-dimensional k-means (least sum of squared distances to the level's mean), by
    dynamic programming, so the result depends on nothing but the rates. Tests of equal rate share
    a level; fewer distinct rates than levels give one level each.
    """
    if n_levels < 1:
        raise UserError(f"n_levels must be at least 1, not {n_levels}")
    if not rates:
        return []
    distinct = sorted(set(rates), reverse=True)
    members = [[i for i, rate in enumerate(rates) if rate == value] for value in distinct]
    starts = _optimal_starts(distinct, [len(m) for m in members], min(n_levels, len(distinct)))
    ends = [*starts[1:], len(distinct)]
    return [
        sorted(test for group in members[start:end] for test in group)
        for start, end in zip(starts, ends, strict=True)
    ]


def _optimal_starts(values: Sequence[float], weights: Sequence[int], k: int) -> list[int]:
    """Where each of `k` contiguous clusters of sorted `values` starts, at the least total cost."""
    sums = [(0.0, 0.0, 0.0)]
    for value, weight in zip(values, weights, strict=True):
        w, s, q = sums[-1]
        sums.append((w + weight, s + weight * value, q + weight * value * value))

    def cost(start: int, end: int) -> float:
        w, s, q = (b - a for a, b in zip(sums[start], sums[end], strict=True))
        return max(0.0, q - s * s / w)

    n = len(values)
    # best[end]: (cost, starts) of the first `end` values in the current number of clusters.
    best = {end: (cost(0, end), [0]) for end in range(1, n + 1)}
    for clusters in range(2, k + 1):
        best = {
            end: min(
                (best[start][0] + cost(start, end), [*best[start][1], start])
                for start in range(clusters - 1, end)
            )
            for end in range(clusters, n + 1)
        }
    return best[n][1]


def level_scores(n_levels: int, weights: Sequence[float] | None = None) -> list[float]:
    """The levels' scores, summing to 1: equal, or in proportion to `weights`."""
    weights = [1.0] * n_levels if weights is None else weights
    if len(weights) != n_levels or min(weights, default=0) < 0 or sum(weights) <= 0:
        raise UserError(f"{n_levels} levels need {n_levels} weights, none negative, not all 0")
    return [weight / sum(weights) for weight in weights]


def strict_reward(passed: Sequence[bool], levels: Levels, scores: Sequence[float]) -> float:
    """A level's score is earned if all its tests and all tests of easier levels pass."""
    reward = 0.0
    for level, score in zip(levels, scores, strict=True):
        if not all(passed[test] for test in level):
            return reward
        reward += score
    return 1.0


def soft_reward(passed: Sequence[bool], levels: Levels, scores: Sequence[float]) -> float:
    """A level's score is divided equally among its tests; each passed test earns its share."""
    if all(passed):
        return 1.0  # exactly, whatever the rounding of the shares
    return sum(
        score * sum(passed[test] for test in level) / len(level)
        for level, score in zip(levels, scores, strict=True)
    )


def all_or_nothing(passed: Sequence[bool]) -> float:
    """1 if every test passes, else 0."""
    return float(all(passed))


def reward(
    scheme: Scheme,
    passed: Sequence[bool],
    levels: Levels | None = None,
    weights: Sequence[float] | None = None,
) -> float:
    """The reward in [0, 1] under a scheme. No levels: one level of all tests.

    UserError for an unknown scheme, or for levels that do not hold each test exactly once.
    """
    if scheme not in get_args(Scheme):
        known = ", ".join(get_args(Scheme))
        raise UserError(f"unknown reward scheme {scheme!r}: use one of {known}")
    if scheme == "all":
        return all_or_nothing(passed)
    levels = [range(len(passed))] if levels is None else levels
    if sorted(test for level in levels for test in level) != list(range(len(passed))):
        raise UserError(f"levels {levels} do not hold each of {len(passed)} tests exactly once")
    if not all(len(level) for level in levels):
        raise UserError("a difficulty level without tests")
    scores = level_scores(len(levels), weights)
    return (strict_reward if scheme == "strict" else soft_reward)(passed, levels, scores)
