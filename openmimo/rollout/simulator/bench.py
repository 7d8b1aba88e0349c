"""Policies side by side on the same traces, over several seeds: what `mimo rollout-bench` shows."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from openmimo.rollout.simulator.measure import Measures
from openmimo.rollout.simulator.published import overall_speedup
from openmimo.rollout.simulator.settings import Setting
from openmimo.rollout.simulator.simulate import simulate
from openmimo.rollout.simulator.table import Row, rows, run_rows, validation_rows
from openmimo.rollout.simulator.trace import StepTrace
from openmimo.rollout.timeline import StepTimeline

Runs = Mapping[str, Sequence[Measures]]
"""Of each row, a step a seed; all rows have the same traces."""

_STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
"""Two-sided 95 % quantiles of Student's t, by degrees of freedom; above, 2."""


@dataclass(frozen=True)
class Mean:
    """A mean over seeds, and half the width of its 95 % interval (nan: a single seed)."""

    value: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        count = len(values)
        mean = sum(values) / count
        if count < 2:
            return cls(mean, math.nan)
        variance = sum((value - mean) ** 2 for value in values) / (count - 1)
        return cls(mean, _STUDENT.get(count - 1, 2.0) * math.sqrt(variance / count))


@dataclass(frozen=True)
class TableRow:
    """Of one policy; see `measure.Measures`. Speed-ups are over naive on the same trace."""

    rollout_speedup: Mean
    overall_speedup: Mean
    idle: Mean
    waste: Mean
    length_bias: Mean
    share_of_bound: Mean
    share_of_blind_bound: Mean
    slot_use: Mean
    discarded: Mean
    tail: Mean
    seconds: Mean


OWN = (
    "idle", "waste", "length_bias", "share_of_bound", "share_of_blind_bound", "slot_use",
    "discarded", "tail", "seconds",
)  # fmt: skip
"""Measures of one policy alone."""


def summary(runs: Runs) -> dict[str, TableRow]:
    """The rows of a table from all runs; `naive` must be among them."""
    naive = [step.seconds for step in runs["naive"]]
    table = {}
    for name, steps in runs.items():
        speedups = [base / step.seconds for base, step in zip(naive, steps, strict=True)]
        own = {what: Mean.of([getattr(step, what) for step in steps]) for what in OWN}
        overall = Mean.of([overall_speedup(speedup) for speedup in speedups])
        table[name] = TableRow(Mean.of(speedups), overall, **own)
    return table


def simulated(
    setting: Setting, names: Sequence[str], seeds: int, workers: int
) -> tuple[Runs, Runs]:
    """Table 2, of the rows `names`, and Table 3 on generated traces of `setting`, a step a seed."""
    with ProcessPoolExecutor(workers) as pool:
        each = list(pool.map(partial(_one_seed, setting, names), range(seeds)))
    return _by_row([training for training, _ in each]), _by_row([valid for _, valid in each])


def replayed(
    setting: Setting, names: Sequence[str], traces: Sequence[StepTrace], workers: int
) -> tuple[Runs, Runs]:
    """The same on the steps of a recorded trace."""
    with ProcessPoolExecutor(workers) as pool:
        each = list(pool.map(partial(_one_trace, setting, names), traces))
    return _by_row([training for training, _ in each]), _by_row([valid for _, valid in each])


def timelines(
    setting: Setting, names: Sequence[str], trace: StepTrace | None
) -> list[StepTimeline]:
    """A step of each of the rows `names`, of a trace or of the first seed: for the trace view."""
    trace = trace or setting.world.step(0)
    steps = []
    for name, row in _rows(names).items():
        cluster = setting.drafting if row.drafts else setting.cluster
        step = simulate(trace, row.policy, cluster, row.validity)
        steps.append(replace(step.timeline, name=name))
    return steps


def _one_seed(
    setting: Setting, names: Sequence[str], seed: int
) -> tuple[dict[str, Measures], dict[str, Measures]]:
    validating = setting.validating
    validation = run_rows(validating.world.step(seed), validating, validation_rows())
    return run_rows(setting.world.step(seed), setting, _rows(names)), validation


def _one_trace(
    setting: Setting, names: Sequence[str], trace: StepTrace
) -> tuple[dict[str, Measures], dict[str, Measures]]:
    return run_rows(trace, setting, _rows(names)), run_rows(trace, setting, validation_rows())


def _rows(names: Sequence[str]) -> dict[str, Row]:
    known = rows()
    return {name: known[name] for name in names}


def _by_row(runs: Sequence[Mapping[str, Measures]]) -> dict[str, list[Measures]]:
    return {name: [run[name] for run in runs] for name in runs[0]}
