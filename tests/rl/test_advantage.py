import statistics

import numpy as np
import pytest

from openmimo.rl.advantage import group_advantages


def test_hand_computed_group() -> None:
    advantages, kept = group_advantages([1.0, 0.0, 0.0, 0.0])
    # mean 1/4, unbiased variance (9/16 + 3/16) / 3 = 1/4
    np.testing.assert_allclose(advantages, [1.5, -0.5, -0.5, -0.5], rtol=1e-5)
    assert kept.all()


def test_unscorable_samples_leave_the_baseline() -> None:
    scores = [0.2, None, 0.9, 1.0, None]
    advantages, kept = group_advantages(scores)
    scored = [0.2, 0.9, 1.0]
    mean, std = statistics.mean(scored), statistics.stdev(scored)
    expected = [0.0 if s is None else (s - mean) / (std + 1e-6) for s in scores]
    np.testing.assert_allclose(advantages, expected, rtol=1e-6)
    assert kept.tolist() == [True, False, True, True, False]


@pytest.mark.parametrize("scores", [[], [1.0], [None, 1.0], [None, None], [0.1] * 7])
def test_nothing_to_compare_gives_zero(scores: list[float | None]) -> None:
    advantages, kept = group_advantages(scores)
    np.testing.assert_allclose(advantages, np.zeros(len(scores)), atol=1e-9)
    assert kept.tolist() == [s is not None for s in scores]
