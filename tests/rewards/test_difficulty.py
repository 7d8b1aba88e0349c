"""Levels and schemes, against exhaustive search and properties."""

import itertools
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.errors import UserError
from openmimo.rewards.difficulty import (
    all_or_nothing,
    cluster_levels,
    level_scores,
    pass_rates,
    reward,
    soft_reward,
    strict_reward,
)

RATES = st.lists(st.integers(0, 16).map(lambda n: n / 16), min_size=1, max_size=9)


def within_squares(groups):
    return sum(statistics.pvariance(g) * len(g) for g in groups)


def test_pass_rates_are_per_test():
    assert pass_rates([[True, False], [True, True], [True, False], [True, False]]) == [1.0, 0.25]


@pytest.mark.parametrize("matrix", [[], [[True], [True, False]]])
def test_pass_rates_of_bad_matrices(matrix):
    with pytest.raises(UserError):
        pass_rates(matrix)


def test_levels_are_the_obvious_ones():
    rates = [0.1, 0.9, 0.5, 0.95, 0.55, 0.12]
    assert cluster_levels(rates, 3) == [[1, 3], [2, 4], [0, 5]]


def test_equal_rates_merge_and_fewer_rates_than_levels_give_fewer_levels():
    assert cluster_levels([0.5, 0.5, 0.5], 3) == [[0, 1, 2]]
    assert cluster_levels([0.5, 1.0, 0.5], 4) == [[1], [0, 2]]
    assert cluster_levels([], 3) == []


@given(RATES, st.integers(1, 5))
def test_levels_are_an_optimal_ordered_partition(rates, n_levels):
    levels = cluster_levels(rates, n_levels)
    assert sorted(itertools.chain(*levels)) == list(range(len(rates)))
    assert len(levels) == min(n_levels, len(set(rates)))
    groups = [[rates[i] for i in level] for level in levels]
    for easier, harder in itertools.pairwise(groups):
        assert min(easier) > max(harder)
    ordered = sorted(set(rates))
    cuts = itertools.combinations(range(1, len(ordered)), len(levels) - 1)
    best = min(
        within_squares(
            [
                [r for r in rates if r in ordered[a:b]]
                for a, b in itertools.pairwise([0, *cut, len(ordered)])
            ]
        )
        for cut in cuts
    )
    assert within_squares(groups) == pytest.approx(best, abs=1e-9)


PASSED_AND_LEVELS = st.lists(
    st.lists(st.booleans(), min_size=1, max_size=4), min_size=1, max_size=4
).map(
    lambda groups: (
        list(itertools.chain(*groups)),
        [
            list(range(sum(map(len, groups[:i])), sum(map(len, groups[: i + 1]))))
            for i in range(len(groups))
        ],
    )
)


@given(PASSED_AND_LEVELS)
def test_schemes_are_ordered_and_agree_at_the_ends(case):
    passed, levels = case
    strict, soft, whole = (reward(s, passed, levels) for s in ("strict", "soft", "all"))
    assert 0 <= whole <= strict <= soft + 1e-12
    assert soft <= 1
    if all(passed):
        assert strict == soft == whole == 1
    if not any(passed):
        assert strict == soft == whole == 0


@given(PASSED_AND_LEVELS, st.data())
def test_passing_one_more_test_never_lowers_a_reward(case, data):
    passed, levels = case
    better = list(passed)
    better[data.draw(st.integers(0, len(passed) - 1))] = True
    for scheme in ("strict", "soft", "all"):
        assert reward(scheme, better, levels) >= reward(scheme, passed, levels) - 1e-12


def test_strict_needs_all_easier_levels():
    levels, scores = [[0, 1], [2], [3]], level_scores(3)
    assert strict_reward([True, True, True, False], levels, scores) == pytest.approx(2 / 3)
    assert strict_reward([True, True, False, True], levels, scores) == pytest.approx(1 / 3)
    assert strict_reward([True, False, True, True], levels, scores) == 0


def test_soft_splits_a_level_among_its_tests():
    levels, scores = [[0, 1], [2], [3]], level_scores(3, [2, 1, 1])
    assert soft_reward([True, False, False, True], levels, scores) == pytest.approx(0.25 + 0.25)


def test_no_levels_is_one_level_of_all_tests():
    assert reward("strict", [True, False]) == 0
    assert reward("soft", [True, False]) == 0.5
    assert all_or_nothing([True, True]) == 1


@pytest.mark.parametrize(
    ("scheme", "levels"),
    [("easy", None), ("soft", [[0]]), ("soft", [[0, 1], [1]]), ("strict", [[0], [1], []])],
)
def test_bad_schemes_and_levels(scheme, levels):
    with pytest.raises(UserError):
        reward(scheme, [True, False], levels)


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0]])
def test_bad_weights(weights):
    with pytest.raises(UserError):
        level_scores(2, weights)
