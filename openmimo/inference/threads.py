"""How many threads a decode step should use: measured, because more can be far slower.

The products of a small model are too short to share: the threads meet at a barrier hundreds of
times a step, and where another process wants a core, all wait for the one that has none. On two
busy cores a step took thirty times as long with two threads as with one.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import torch

from openmimo.model.mimo import MiMo

STEPS = 7
"""Steps by which a number of threads is judged."""
PATIENCE = 2.0
"""Seconds after which fewer steps must do."""
MARGIN = 0.9
"""More threads must make a step this much shorter: they take cores from others."""


@torch.inference_mode()
def use_fastest_threads(model: MiMo) -> int:
    """Measure passes of one token through `model`, and set torch's threads for this process.

    Nothing is measured where OMP_NUM_THREADS says how many, or on another device than a CPU.

    Returns:
        the number of threads.
    """
    given = torch.get_num_threads()
    on_cpu = model.lm_head.weight.device.type == "cpu"
    if "OMP_NUM_THREADS" in os.environ or given == 1 or not on_cpu:
        return given
    token = torch.zeros(1, 1, dtype=torch.int64)
    best = fastest([1, given], torch.set_num_threads, lambda: model(token))
    torch.set_num_threads(best)
    return best


def fastest(
    counts: list[int],
    use: Callable[[int], None],
    step: Callable[[], object],
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """The number of threads, of rising `counts`, with the shortest typical step."""
    best, shortest = counts[0], float("inf")
    for count in counts:
        use(count)
        step()
        durations: list[float] = []
        began = clock()
        while len(durations) < STEPS and (not durations or clock() - began < PATIENCE):
            start = clock()
            step()
            durations.append(clock() - start)
        if statistics.median(durations) < MARGIN * shortest:
            best, shortest = count, statistics.median(durations)
    return best
