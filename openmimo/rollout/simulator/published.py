"""Tables 2 and 3 of the MiMo report: 256 GPUs, 5 steps."""

from dataclasses import dataclass

UPDATE_SHARE = 0.087
"""Of a naive step, what is not rollout and reward: the one value with which the overall and the
rollout speed-ups of all rows of Table 2 agree."""

VALID_RATE = 0.407
"""Naive sampling takes three waves of 512 prompts and wastes 22.1 %: 3 * rate - 1 = 0.221."""


@dataclass(frozen=True)
class Published:
    """A row: speed-up of the rollout over naive dynamic sampling, idle share, waste (None: not
    given)."""

    rollout_speedup: float
    idle: float
    waste: float | None


TABLE_2 = {
    "static": Published(2.82, 0.708, None),
    "naive": Published(1.00, 0.693, 0.221),
    "continuous": Published(2.20, 0.388, 0.139),
    "continuous_async_reward": Published(2.34, 0.340, 0.164),
    "report": Published(2.61, 0.277, 0.129),
}
"""By the names of `table.ROWS`."""

TABLE_3 = {"naive": Published(1.00, 0.658, None), "streaming": Published(1.96, 0.329, None)}


def overall_speedup(rollout_speedup: float) -> float:
    """Of a whole step, update included, over a naive one."""
    return 1 / ((1 - UPDATE_SHARE) / rollout_speedup + UPDATE_SHARE)
