"""Strict, soft and all-or-nothing rewards: properties, and the IOI's own rule."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.errors import UserError
from openmimo.judge import Status, Verdict
from openmimo.rewards import Grading, score
from openmimo.rewards.grading import ALL_TESTS, scaled_scores

SCORES = st.one_of(
    st.just(()), st.lists(st.integers(0, 9), min_size=4, max_size=4).map(lambda s: (1, *s))
)
GRADINGS = st.builds(
    Grading,
    st.sampled_from(["strict", "soft", "all"]),
    level_scores=SCORES,
    cumulative=st.booleans(),
)


@st.composite
def cases(draw):
    """Outcomes, and levels that hold each test at least once."""
    tests = draw(st.integers(1, 8))
    passed = draw(st.lists(st.booleans(), min_size=tests, max_size=tests))
    order = draw(st.permutations(range(tests)))
    cuts = sorted(draw(st.sets(st.integers(1, tests), max_size=min(3, tests))) - {tests})
    levels = [set(order[a:b]) for a, b in itertools.pairwise([0, *cuts, tests])]
    for level in levels:
        level |= draw(st.sets(st.integers(0, tests - 1), max_size=2))  # as IOI subtasks overlap
    return passed, [sorted(level) for level in levels]


@given(cases(), GRADINGS)
def test_rewards_are_bounded_and_whole_at_the_ends(case, grading):
    passed, levels = case
    reward = grading.reward(passed, levels)
    assert 0 <= reward <= 1
    assert grading.reward([True] * len(passed), levels) == 1
    assert grading.reward([False] * len(passed), levels) == 0


@given(cases(), GRADINGS, st.data())
def test_passing_one_more_test_never_lowers_a_reward(case, grading, data):
    passed, levels = case
    better = list(passed)
    better[data.draw(st.integers(0, len(passed) - 1))] = True
    assert grading.reward(better, levels) >= grading.reward(passed, levels) - 1e-12


@given(cases(), SCORES)
def test_schemes_are_ordered(case, scores):
    passed, levels = case
    strict = Grading("strict", scores)
    schemes = [ALL_TESTS, strict, replace(strict, cumulative=False), replace(strict, scheme="soft")]
    rewards = [grading.reward(passed, levels) for grading in schemes]
    assert all(low <= high + 1e-12 for low, high in itertools.pairwise(rewards))


@given(cases(), GRADINGS)
def test_score_of_verdicts_is_the_reward_of_what_passed(case, grading):
    passed, levels = case
    verdicts = [Verdict(Status.OK if ok else Status.CRASH) for ok in passed]
    assert score(verdicts, levels, grading) == grading.reward(passed, levels)


def test_strict_needs_all_easier_levels():
    levels, strict = [[0, 1], [2], [3]], Grading("strict")
    assert strict.reward([True, True, True, False], levels) == pytest.approx(2 / 3)
    assert strict.reward([True, True, False, True], levels) == pytest.approx(1 / 3)
    assert strict.reward([True, False, True, True], levels) == 0
    alone = Grading("strict", cumulative=False)
    assert alone.reward([True, False, True, True], levels) == pytest.approx(2 / 3)


def test_soft_splits_a_level_among_its_tests():
    soft = Grading("soft", level_scores=(2, 1, 1))
    levels = [[0, 1], [2], [3]]
    assert soft.reward([True, False, False, True], levels) == pytest.approx(0.25 + 0.25)
    assert soft.reward([False, False, True, False], [[0, 1, 3], [2]]) == pytest.approx(1 / 3)


def test_no_levels_is_one_level_of_all_tests():
    assert Grading("strict").reward([True, False]) == 0
    assert Grading("soft").reward([True, False]) == 0.5


def test_subtasks_of_the_ioi_score_as_the_ioi_does():
    """Subtasks of 7, 12 and 81 points that share tests; a wrong one does not cost the next."""
    subtasks, points = [[0, 1], [0, 2, 3], [0, 1, 2, 3, 4]], [7, 12, 81]
    ioi = Grading("strict", cumulative=False)
    assert ioi.reward([True, False, True, True, True], subtasks, points) == pytest.approx(0.12)
    assert ioi.reward([True, True, False, True, True], subtasks, points) == pytest.approx(0.07)
    assert ioi.reward([False, True, True, True, True], subtasks, points) == 0


def test_a_problems_own_scores_go_before_the_settings():
    grading = Grading("strict", level_scores=(1, 1))
    assert grading.reward([True, False], [[0], [1]]) == 0.5
    assert grading.reward([True, False], [[0], [1]], [9, 1]) == 0.9


@pytest.mark.parametrize(
    "levels", [[], [[0]], [[0, 1], []], [[0, 0], [1]], [[0, 1, 2]], [[-1, 0, 1]]]
)
def test_levels_that_do_not_fit_are_refused(levels):
    for scheme in ("strict", "soft"):
        with pytest.raises(UserError, match="level"):
            Grading(scheme).reward([True, False], levels)


@pytest.mark.parametrize("scores", [[1], [1, -1], [0, 0]])
def test_scores_that_do_not_fit_are_refused(scores):
    with pytest.raises(UserError, match="2 levels need"):
        scaled_scores(2, scores)


def test_an_unknown_scheme_is_refused():
    with pytest.raises(UserError, match="unknown reward scheme 'easy': use one of strict"):
        score([Verdict(Status.OK)], None, "easy")


OK, WRONG, SKIPPED = (Verdict(status) for status in (Status.OK, Status.WRONG, Status.SKIPPED))
LEVELS = [[0], [1], [2]]


def test_what_a_failure_decided_needs_no_other_test():
    assert score([OK, WRONG, SKIPPED], LEVELS, "strict") == pytest.approx(1 / 3)
    assert score([SKIPPED, SKIPPED, WRONG], LEVELS, "all") == 0


@pytest.mark.parametrize(
    ("verdicts", "scheme"),
    [
        ([OK, WRONG, SKIPPED], "soft"),
        ([OK, WRONG, SKIPPED], Grading("strict", cumulative=False)),
        ([SKIPPED, WRONG, OK], "strict"),
        ([OK, OK, SKIPPED], "all"),
    ],
)
def test_a_skipped_test_that_matters_is_no_zero(verdicts, scheme):
    with pytest.raises(UserError, match="skipped"):
        score(verdicts, LEVELS, scheme)


def test_a_failure_of_the_judge_is_no_zero():
    failed = Verdict(Status.JUDGE_ERROR, "the judge was closed")
    with pytest.raises(UserError, match="test 1 was not judged \\(the judge was closed\\)"):
        score([OK, failed, OK], LEVELS, "soft")
    with pytest.raises(UserError, match="no verdicts"):
        score([], None, "soft")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_levels_score_that_is_no_number_is_no_reward(bad):
    # NaN compares as neither too small nor too large: it became a reward of 1.
    with pytest.raises(UserError, match="as many scores"):
        Grading("soft", level_scores=(1, bad)).reward([True, False], [[0], [1]])
