from itertools import combinations

import numpy as np
import pytest

from openmimo.evals.passk import pass_at_k, pass_at_k_curve, pass_rate


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_equals_enumeration(n: int) -> None:
    for right in range(n + 1):
        outcomes = [sample < right for sample in range(n)]
        for k in range(1, n + 1):
            picks = list(combinations(outcomes, k))
            expected = sum(any(pick) for pick in picks) / len(picks)
            assert pass_at_k(n, right, k) == pytest.approx(expected)


def test_pass_at_k_of_many_samples_is_exact() -> None:
    assert pass_at_k(2000, 1, 1000) == 0.5


def test_curve_averages_over_problems_and_ends_at_the_fewest_samples() -> None:
    curve = pass_at_k_curve([[True, False, False], [False, False, False, True], [True] * 3])
    assert list(curve) == [1, 2, 3]
    assert curve[1] == pytest.approx((1 / 3 + 1 / 4 + 1) / 3)
    assert curve[2] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert curve[3] == pytest.approx((1 + 3 / 4 + 1) / 3)


def test_curve_never_falls_and_starts_at_pass_rate() -> None:
    rng = np.random.default_rng(0)
    outcomes = (rng.random((40, 6)) < rng.random((40, 1))).tolist()
    curve = pass_at_k_curve(outcomes)
    values = list(curve.values())
    assert values == sorted(values)
    assert pass_rate(outcomes).value == pytest.approx(curve[1])


def test_interval_equals_clustered_normal_on_much_data() -> None:
    rng = np.random.default_rng(1)
    outcomes = rng.random((3000, 4)) < rng.beta(1, 1, (3000, 1))
    means = outcomes.mean(axis=1)
    half = 1.96 * means.std(ddof=1) / np.sqrt(3000)
    rate = pass_rate(outcomes.tolist())
    assert rate.low == pytest.approx(means.mean() - half, abs=2e-4)
    assert rate.high == pytest.approx(means.mean() + half, abs=2e-4)
    assert (rate.problems, rate.samples) == (3000, 12000)


def test_copies_of_a_sample_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(2)
    single = (rng.random((200, 1)) < 0.4).tolist()
    copied = [problem * 8 for problem in single]
    one, eight = pass_rate(single), pass_rate(copied)
    assert (eight.low, eight.high) == pytest.approx((one.low, one.high), abs=1e-3)


@pytest.mark.parametrize("concentration", [(0.2, 0.8), (0.05, 1.0), (3.0, 1.0)])
def test_interval_covers_the_truth_95_times_in_100(concentration: tuple[float, float]) -> None:
    a, b = concentration
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(500):
        outcomes = rng.random((60, 4)) < rng.beta(a, b, (60, 1))
        rate = pass_rate(outcomes.tolist())
        covered += rate.low <= a / (a + b) <= rate.high
    assert 0.92 <= covered / 500 <= 0.99


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("problems", [1, 2, 500])
def test_all_right_or_all_wrong_still_leaves_doubt(right: bool, problems: int) -> None:
    rate = pass_rate([[right] * 4] * problems)
    assert rate.value == float(right)
    assert 0 <= rate.low <= rate.value <= rate.high <= 1
    # Wilson at 0 of n: 3.84 / (n + 3.84)
    assert rate.high - rate.low == pytest.approx(3.8415 / (problems + 3.8415), rel=1e-3)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="no problems"):
        pass_rate([])
    with pytest.raises(ValueError, match="no samples"):
        pass_at_k_curve([[True], []])
    with pytest.raises(ValueError, match="undefined"):
        pass_at_k(4, 2, 5)
