"""pass@1 with an interval, and the pass@k curve, from several samples of each problem."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Outcomes = Sequence[Sequence[bool]]
"""Outcomes[problem][sample]: whether the sample is right."""

Z_95 = 1.959963984540054
"""Quantile of the normal distribution for a two-sided 95 % interval."""


@dataclass(frozen=True)
class PassRate:
    """pass@1 in [0, 1], its 95 % interval, and what it was measured on."""

    value: float
    low: float
    high: float
    problems: int
    samples: int


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Chance that k of the samples, drawn without replacement, hold a right one.

    This is the unbiased estimator of pass@k (Chen et al. 2021): 1 - C(n - c, k) / C(n, k).
    Raises ValueError unless 1 <= k <= samples and 0 <= right <= samples.
    """
    if not (1 <= k <= samples and 0 <= right <= samples):
        raise ValueError(f"pass@{k} is undefined for {right} right of {samples} samples")
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def pass_at_k_curve(outcomes: Outcomes) -> dict[int, float]:
    """Mean pass@k over problems for k = 1 .. the smallest number of samples of a problem.

    Raises ValueError if there is no problem, or one without samples.
    """
    _check(outcomes)
    counts = [(len(problem), sum(problem)) for problem in outcomes]
    return {
        k: math.fsum(pass_at_k(n, right, k) for n, right in counts) / len(counts)
        for k in range(1, min(n for n, _ in counts) + 1)
    }


def pass_rate(outcomes: Outcomes) -> PassRate:
    """pass@1 (mean over problems) with a 95 % interval for problems drawn from their population.

    Samples of one problem are alike, so problems, not samples, are the independent units: the
    standard error is that of the problems' means (clustered). The interval is Wilson's with the
    number of independent trials that gives this standard error; unlike mean +- 1.96 standard errors
    it stays in [0, 1] and keeps its width at 0 % and 100 %.

    Raises ValueError if there is no problem, or one without samples.
    """
    _check(outcomes)
    means = np.array([sum(problem) / len(problem) for problem in outcomes])
    problems, samples = len(means), sum(len(problem) for problem in outcomes)
    p = float(means.mean())
    trials = _effective_trials(means, samples)
    centre = (p + Z_95**2 / (2 * trials)) / (1 + Z_95**2 / trials)
    half = math.sqrt(p * (1 - p) / trials + (Z_95 / (2 * trials)) ** 2)
    half *= Z_95 / (1 + Z_95**2 / trials)
    # At p = 0 or 1 the bound is p itself; rounding may put it a hair inside or outside.
    low, high = min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half))
    return PassRate(p, low, high, problems, samples)


def _effective_trials(means: np.ndarray, samples: int) -> float:
    """Independent trials with the same standard error, between the problems and the samples."""
    p, problems = float(means.mean()), len(means)
    if problems == 1:
        return 1.0
    variance_of_mean = float(means.var(ddof=1)) / problems
    if variance_of_mean == 0:
        # All problems alike. At 0 % or 100 % nothing tells samples from problems: be careful.
        return float(problems if p in (0.0, 1.0) else samples)
    return min(p * (1 - p) / variance_of_mean, float(samples))


def _check(outcomes: Outcomes) -> None:
    if not outcomes:
        raise ValueError("there are no problems to average over")
    if not all(outcomes):
        raise ValueError("a problem has no samples; leave it out or sample it")
