from hypothesis import given
from hypothesis import strategies as st

from openmimo.rollout.validity import (
    passes,
    valid_by_passrate,
    valid_by_reward_std,
    whole_group_passes,
)

SCORES = st.lists(st.sampled_from([None, 0.0, 0.3, 0.7, 1.0]), max_size=8)


def test_graded_scores_separate_the_two_filters() -> None:
    partial = [0.2, 0.5, 0.2]
    assert valid_by_reward_std(partial)
    assert not valid_by_passrate(partial)


def test_mixed_outcomes_are_valid_for_both() -> None:
    assert valid_by_passrate([1.0, 0.0])
    assert valid_by_reward_std([1.0, 0.0])


def test_groups_without_two_scores_are_invalid_and_have_no_verdict() -> None:
    for scores in ([], [None, None], [1.0, None], [0.0]):
        assert not valid_by_passrate(scores)
        assert not valid_by_reward_std(scores)
        assert whole_group_passes(scores) is None


def test_rounding_of_summed_level_scores_does_not_matter() -> None:
    summed = sum([0.1] * 10)  # 0.9999999999999999
    assert summed != 1
    assert passes(summed)
    assert not valid_by_passrate([summed, 1.0])
    assert not valid_by_reward_std([summed, 1.0])
    assert whole_group_passes([summed, 1.0, None]) is True
    assert whole_group_passes([summed, 0.9]) is False


@given(SCORES, SCORES)
def test_predicates_are_monotone(first: list[float | None], more: list[float | None]) -> None:
    for valid in (valid_by_passrate, valid_by_reward_std):
        if valid(first):
            assert valid(first + more)


@given(SCORES)
def test_pass_rate_filter_is_the_stricter_one(scores: list[float | None]) -> None:
    if valid_by_passrate(scores):
        assert valid_by_reward_std(scores)
        assert whole_group_passes(scores) is False
