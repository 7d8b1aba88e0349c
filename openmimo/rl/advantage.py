"""Advantages of GRPO: each sample against the other samples of its prompt."""

from collections.abc import Sequence

import numpy as np

STD_EPSILON = 1e-6
"""Added to the standard deviation. Not in the MiMo report; verl's value, as is the unbiased std."""


def group_advantages(scores: Sequence[float | None]) -> tuple[np.ndarray, np.ndarray]:
    """Advantages (score - mean) / (std + 1e-6) within one group, std with n - 1 (report, Eq. 2).

    A score of None (the sample could not be scored) takes no part in mean and std. Returns
    `advantages` float32 [n] and `kept` bool [n]; where `kept` is False the advantage is 0 and the
    caller must mask the sample's tokens, so that they do not count in the loss's normaliser.
    With fewer than two scored samples there is nothing to compare, and every advantage is 0.
    """
    kept = np.array([score is not None for score in scores], dtype=bool)
    advantages = np.zeros(len(scores), dtype=np.float32)
    scored = np.array([score for score in scores if score is not None], dtype=np.float64)
    if len(scored) > 1:
        advantages[kept] = (scored - scored.mean()) / (scored.std(ddof=1) + STD_EPSILON)
    return advantages, kept
