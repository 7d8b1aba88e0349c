"""Predictions of valid groups against simulated ones."""

import functools
import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.rollout.demand import Forecast, PassRates, Prospect

GROUP = 8


@functools.cache
def population(a: float, b: float, groups: int, seed: int = 0) -> tuple[PassRates, list[int]]:
    """Groups of prompts whose pass rates are Beta(a, b); how many samples passed in each."""
    rng = random.Random(seed)
    rates, passed = PassRates(GROUP), []
    for _ in range(groups):
        chance = rng.betavariate(a, b)
        passed.append(sum(rng.random() < chance for _ in range(GROUP)))
        rates = rates.plus(passed[-1], GROUP, 0 < passed[-1] < GROUP)
    return rates, passed


@pytest.mark.parametrize(("a", "b"), [(0.3, 0.4), (2.0, 1.0), (0.1, 1.0), (5.0, 5.0)])
def test_the_belief_is_the_one_that_made_the_groups(a: float, b: float) -> None:
    rates, _ = population(a, b, 20_000)
    found = rates.belief
    assert found[0] / sum(found) == pytest.approx(a / (a + b), abs=0.02)
    assert sum(found) == pytest.approx(a + b, rel=0.1)


@pytest.mark.parametrize("seen", [(0, 0), (1, 0), (5, 0), (7, 0), (0, 1), (0, 5), (0, 7)])
def test_chances_are_the_shares_among_groups_that_began_alike(seen: tuple[int, int]) -> None:
    """Of all groups whose first samples passed, or failed, so many became valid."""
    rng = random.Random(1)
    rates, _ = population(0.3, 0.4, 20_000)
    alike = valid = 0
    for _ in range(30_000):
        chance = rng.betavariate(0.3, 0.4)
        outcomes = [rng.random() < chance for _ in range(GROUP)]
        first = outcomes[: sum(seen)]
        if all(first) if seen[0] else not any(first):
            alike += 1
            valid += 0 < sum(outcomes) < GROUP
    predicted = rates.chance(Prospect(), *seen, GROUP - sum(seen))
    assert predicted == pytest.approx(valid / alike, abs=0.02)


def test_earlier_visits_move_the_chance() -> None:
    rates, _ = population(0.3, 0.4, 2_000)
    new = rates.chance(Prospect(), 0, 0, GROUP)
    mixed = rates.chance(Prospect(4, 4), 0, 0, GROUP)
    easy = rates.chance(Prospect(8, 0), 0, 0, GROUP)
    hard = rates.chance(Prospect(0, 8), 0, 0, GROUP)
    assert max(easy, hard) < new < mixed


def test_partial_rewards_make_groups_without_a_pass_valid() -> None:
    rates = PassRates(GROUP)
    for number in range(300):
        rates = rates.plus(0, GROUP, valid=number % 3 > 0)
    assert rates.chance(Prospect(), 0, 0, GROUP) == pytest.approx(2 / 3, abs=0.03)
    assert rates.valid_rate == pytest.approx(2 / 3, abs=0.01)


def test_without_any_group_the_chance_is_a_half() -> None:
    assert PassRates(GROUP).valid_rate == 0.5
    assert PassRates(GROUP).chance(Prospect(), 0, 0, GROUP) == pytest.approx(0.5, abs=1e-6)


def test_limiting_keeps_the_rates_and_never_adds_weight() -> None:
    rates, _ = population(0.3, 0.4, 100)
    limited = rates.limited(10)
    assert limited.groups == pytest.approx(10)
    assert limited.mixed / limited.groups == pytest.approx(rates.mixed / rates.groups)
    assert limited.limited(10) == limited
    assert rates.limited(1000) == rates
    assert PassRates(GROUP).limited(5) == PassRates(GROUP)


chances = st.lists(st.sampled_from([(0, 0), (3, 0), (7, 0), (0, 2), (0, 7), (2, 3)]), max_size=9)


@given(chances, st.integers(0, 9))
def test_the_probability_is_near_the_exact_one(seen: list[tuple[int, int]], wanted: int) -> None:
    rates, _ = population(0.3, 0.4, 5_000)
    forecast = Forecast(rates)
    for index, (passed, failed) in enumerate(seen):
        forecast.launch(index, Prospect())
        forecast.update(index, passed, failed, GROUP - passed - failed)
    each = [rates.chance(Prospect(), p, f, GROUP - p - f) for p, f in seen]
    exact = sum(
        math.prod(c if hit else 1 - c for c, hit in zip(each, hits, strict=True))
        for hits in itertools.product([True, False], repeat=len(each))
        if sum(hits) >= wanted
    )
    assert forecast.expected == pytest.approx(sum(each), abs=1e-6)
    assert forecast.probability(wanted) == pytest.approx(exact, abs=0.12)


def test_confidence_is_what_it_says() -> None:
    """Launched until 80 % sure, 80 % of the steps have enough, though the rates are not sure."""
    enough = total = 0
    for seed in range(200):
        rates, _ = population(0.3, 0.4, 300, seed)
        forecast = Forecast(rates)
        launched = 0
        while forecast.probability(64) < 0.8:
            forecast.launch(launched, Prospect())
            launched += 1
        _, passed = population(0.3, 0.4, launched, seed + 10_000)
        enough += sum(0 < each < GROUP for each in passed) >= 64
        total += 1
    assert 0.73 < enough / total < 0.87


def test_groups_that_are_settled_count_no_more() -> None:
    forecast = Forecast(PassRates(GROUP))
    for index in range(4):
        forecast.launch(index, Prospect())
    before = forecast.expected
    forecast.settle(1)
    forecast.settle(1)
    assert forecast.expected == pytest.approx(before * 3 / 4)
    forecast.finish(4, GROUP, True)
    assert forecast.expected > before * 3 / 4  # more groups are mixed than was believed


def test_doubt_is_about_undecided_groups_alone() -> None:
    rates, _ = population(0.3, 0.4, 20)
    few, more = Forecast(rates), Forecast(rates)
    for index in range(50):
        few.launch(index, Prospect())
        more.launch(index, Prospect())
    for index in range(50, 100):
        more.launch(index, Prospect())
        more.update(index, 3, 0, GROUP - 3)
        more.settle(index)
    for valid in (10, 20, 30):
        assert more.probability(valid) == pytest.approx(few.probability(valid), abs=1e-9)
