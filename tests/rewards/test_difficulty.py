"""Levels of difficulty, against exhaustive search and properties."""

import itertools
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.errors import UserError
from openmimo.rewards.difficulty import MAX_LEVELS, choose_levels, cluster_levels, pass_rates

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


@given(RATES, st.integers(1, 6))
def test_quantiles_are_an_ordered_partition(rates, n_levels):
    levels = cluster_levels(rates, n_levels, "quantile")
    assert sorted(itertools.chain(*levels)) == list(range(len(rates)))
    assert len(levels) <= n_levels
    groups = [[rates[i] for i in level] for level in levels]
    for easier, harder in itertools.pairwise(groups):
        assert min(easier) > max(harder)


@given(st.integers(1, 12), st.integers(1, 6))
def test_quantiles_without_ties_differ_by_one_test_at_most(tests, n_levels):
    rates = [test / tests for test in range(tests)]
    sizes = [len(level) for level in cluster_levels(rates, n_levels, "quantile")]
    assert len(sizes) == min(n_levels, tests)
    assert max(sizes) - min(sizes) <= 1


def test_kmeans_and_quantiles_differ_where_rates_are_uneven():
    rates = [0.9, 0.89, 0.88, 0.1]
    assert cluster_levels(rates, 2) == [[0, 1, 2], [3]]
    assert cluster_levels(rates, 2, "quantile") == [[0, 1], [2, 3]]
    ties = [0.9, 0.5, 0.5, 0.5]
    assert cluster_levels(ties, 2, "quantile") == [[0], [1, 2, 3]], "where most of a tie belongs"


def test_levels_are_as_many_as_the_solutions_tell_apart():
    rates = [0.9, 0.8, 0.5, 0.45, 0.1]
    chosen = {n: len(choose_levels(rates, n)) for n in (2, 20, 200, 10**6)}
    assert chosen == {2: 1, 20: 3, 200: 4, 10**6: 5}
    assert choose_levels([1.0, 1.0, 0.0], 1) == [[0, 1, 2]]
    assert choose_levels([1.0, 1.0, 0.0], 2) == [[0, 1], [2]]
    assert choose_levels([0.5, 0.5], 10**6) == [[0, 1]]
    assert choose_levels([], 4) == []
    assert len(choose_levels([n / 20 for n in range(21)], 10**9)) == MAX_LEVELS


@given(RATES, st.integers(1, 1000), st.integers(1, 1000), st.sampled_from(["kmeans", "quantile"]))
def test_more_solutions_never_make_fewer_levels(rates, few, more, method):
    few, more = sorted((few, more))
    assert len(choose_levels(rates, few, method)) <= len(choose_levels(rates, more, method))


def test_levels_without_a_measurement_are_refused():
    with pytest.raises(UserError, match="at least one solution"):
        choose_levels([0.5], 0)
    with pytest.raises(UserError, match="n_levels"):
        cluster_levels([0.5], 0)
