"""How hard each test is, and levels of similar difficulty (MiMo report, section 3.3.1).

A test's difficulty is its pass rate over many solutions. Tests are clustered into levels by pass
rate: lists of test indices, easiest level first, as in a problem's `levels` field. What a level is
worth is the matter of `grading.py`.
"""

from collections.abc import Sequence
from typing import Literal

from openmimo.errors import UserError

Levels = Sequence[Sequence[int]]
Clustering = Literal["kmeans", "quantile"]

MAX_LEVELS = 8
"""Most levels that `choose_levels` makes: with more, a level is but a test or two."""


def pass_rates(matrix: Sequence[Sequence[bool]]) -> list[float]:
    """Pass rate of each test over all solutions; `matrix` has a row for each solution."""
    if not matrix or len({len(row) for row in matrix}) != 1:
        raise UserError("pass rates need at least one solution and rows of one length")
    return [sum(column) / len(matrix) for column in zip(*matrix, strict=True)]


def cluster_levels(
    rates: Sequence[float], n_levels: int, method: Clustering = "kmeans"
) -> list[list[int]]:
    """Cluster tests into at most `n_levels` levels by pass rate, easiest first.

    kmeans: the optimal one-dimensional k-means (least sum of squared distances to the level's
    mean), by dynamic programming, so the result depends on nothing but the rates. quantile: levels
    of the same number of tests, as far as ties allow. Tests of equal rate share a level; fewer
    distinct rates than levels give one level each at most.
    """
    if n_levels < 1:
        raise UserError(f"n_levels must be at least 1, not {n_levels}")
    if not rates:
        return []
    distinct = sorted(set(rates), reverse=True)
    members = [[i for i, rate in enumerate(rates) if rate == value] for value in distinct]
    sizes = [len(group) for group in members]
    if method == "kmeans":
        starts = _optimal_starts(distinct, sizes, min(n_levels, len(distinct)))
    else:
        starts = _quantile_starts(sizes, n_levels)
    ends = [*starts[1:], len(distinct)]
    return [
        sorted(test for group in members[start:end] for test in group)
        for start, end in zip(starts, ends, strict=True)
    ]


def choose_levels(
    rates: Sequence[float], solutions: int, method: Clustering = "kmeans"
) -> list[list[int]]:
    """As `cluster_levels`, with the fewest levels that the measurement can tell apart.

    A rate over N solutions has the sampling variance p (1 - p) / N. Levels are added until the
    squared distances of the rates to their level's mean p sum to no more than those variances do:
    what spread is left inside the levels is then no more than noise. At most MAX_LEVELS.
    """
    if solutions < 1:
        raise UserError(f"pass rates are measured with at least one solution, not {solutions}")
    levels: list[list[int]] = []
    for n_levels in range(1, MAX_LEVELS + 1):
        levels = cluster_levels(rates, n_levels, method)
        spread = noise = 0.0
        for level in levels:
            mean = sum(rates[test] for test in level) / len(level)
            spread += sum((rates[test] - mean) ** 2 for test in level)
            noise += len(level) * mean * (1 - mean) / solutions
        if spread <= noise + 1e-12:
            break
    return levels


def _quantile_starts(sizes: Sequence[int], k: int) -> list[int]:
    """Where each of at most `k` levels starts: a group of ties goes where its middle test does."""
    total, before, starts, last = sum(sizes), 0, [], -1
    for group, size in enumerate(sizes):
        level = (2 * before + size) * k // (2 * total)
        if level > last:
            starts.append(group)
            last = level
        before += size
    return starts


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
