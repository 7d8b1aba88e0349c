import pytest

from openmimo.rollout.demand import ValidRate


def test_mean_follows_the_counts() -> None:
    assert ValidRate().mean == 0.5
    assert ValidRate().plus(valid=3, invalid=0).mean == pytest.approx(4 / 5)


def test_limiting_keeps_the_mean_and_never_adds_weight() -> None:
    history = ValidRate(30, 70).limited(10)
    assert history.valid + history.invalid == pytest.approx(10)
    assert history.mean == pytest.approx(0.3)
    assert ValidRate(1, 2).limited(10) == ValidRate(1, 2)
