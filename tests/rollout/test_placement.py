"""Where samples go."""

import pytest

from openmimo.errors import UserError
from openmimo.rollout.placement import EvenSamples, Placement, WholeGroups


def test_long_samples_are_apart_and_have_less_company() -> None:
    placement = Placement([64, 64, 64, 64])
    long = [placement.take(1000.0, prompt) for prompt in (0, 1)]
    assert long[0] != long[1]
    beside = [placement.take(10.0, 2) for _ in range(100)]
    others = [engine for engine in range(4) if engine not in long]
    assert sum(beside.count(engine) for engine in long) < 10
    assert abs(beside.count(others[0]) - beside.count(others[1])) <= 1


def test_what_leaves_makes_room() -> None:
    placement = Placement([1, 1])
    first = placement.take(100.0, 0)
    second = placement.take(1.0, 0)
    assert {first, second} == {0, 1}
    assert placement.slots == 0
    with pytest.raises(ValueError, match="free slot"):
        placement.take(1.0, 0)
    placement.give_back(first, 100.0)
    assert placement.take(1.0, 0) == first


def test_beside_many_short_samples_rather_than_one_long() -> None:
    placement = Placement([64, 64])
    assert placement.take(1000.0, 0) == 0
    assert [placement.take(100.0, 1) for _ in range(10)] == [1] * 10
    assert placement.take(10.0, 2) == 1  # both have 1,000 tokens to do


def test_what_has_left_is_forgotten() -> None:
    placement = Placement([4, 4])
    assert placement.take(1000.0, 0) == 0
    placement.give_back(0, 1000.0)
    assert placement.take(1.0, 0) == 0


def test_an_engine_that_is_gone_gets_nothing_until_it_is_back() -> None:
    placement = Placement([8, 8])
    placement.down(0)
    assert placement.slots == 8
    assert {placement.take(1.0, 0) for _ in range(8)} == {1}
    assert placement.slots == 0
    placement.up(0)
    assert placement.take(1.0, 0) == 0


def test_whole_groups_stay_together_while_there_is_room() -> None:
    placement = WholeGroups([4, 4, 6])
    assert [placement.take(1.0, 0) for _ in range(4)] == [0] * 4
    assert [placement.take(1.0, 1) for _ in range(5)] == [1] * 4 + [2]
    assert placement.take(1.0, 0) == 2  # its engine is full


def test_even_samples_ignore_lengths() -> None:
    placement = EvenSamples([4, 4])
    assert sorted(placement.take(10.0**n, 0) for n in range(4)) == [0, 0, 1, 1]


def test_no_engine_without_slots() -> None:
    with pytest.raises(UserError, match="at least one slot"):
        Placement([4, 0])
