"""Fit the rollout simulator's free numbers to the report's Table 2.

The numbers are those of `FREE`; all others are measured or stated (docs/rollout.md). A random
search: from the best point so far some numbers are moved, less and less, on the same traces. A
point is judged by `misfit`, the squared distances to Table 2 in units of a tolerance.

    python benchmarks/rollout_fit.py --evaluations 200 --json fit.json
"""

import argparse
import json
import math
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from openmimo.rollout.policies import Continuous, Report
from openmimo.rollout.simulator.published import TABLE_2, UPDATE_SHARE, VALID_RATE
from openmimo.rollout.simulator.settings import REPORT, Setting
from openmimo.rollout.simulator.table import mean, rows, run_rows

TOLERANCE = {"rollout_speedup": 0.05, "idle": 0.05, "waste": 0.05}
"""Of a speed-up relative, of the shares absolute."""

WEIGHT = {"report": 2.0}
"""The report's engine counts double."""

FREE = {
    "median_tokens": (500.0, 12000.0),
    "between": (0.2, 1.2),
    "within": (0.2, 1.0),
    "difficulty": (-0.5, 1.5),
    "pass_rate": (0.35, 0.65),
    "reward_seconds": (0.02, 1.0),
    "serial_rewards": (8.0, 256.0),
    "imagined": (0.01, 1.0),
    "margin": (0.0, 0.2),
}
"""The range of each free number."""

LOGARITHMIC = {"median_tokens", "reward_seconds", "serial_rewards", "imagined"}

Point = dict[str, float]
Table = dict[str, dict[str, float]]


def setting_of(point: Point) -> Setting:
    world = replace(
        REPORT.world,
        median_tokens=point["median_tokens"], between=point["between"], within=point["within"],
        difficulty=point["difficulty"], pass_rate=point["pass_rate"], valid_rate=VALID_RATE,
        reward_seconds=point["reward_seconds"], code_seconds=10 * point["reward_seconds"],
    )  # fmt: skip
    cluster = replace(REPORT.cluster, serial_rewards=round(point["serial_rewards"]))
    return replace(REPORT, world=world, cluster=cluster)


def point_of(setting: Setting) -> Point:
    report = Report()
    known = {
        "serial_rewards": setting.cluster.serial_rewards,
        "imagined": report.imagined, "margin": report.margin,
    }  # fmt: skip
    return {name: float(known.get(name, getattr(setting.world, name, 0))) for name in FREE}


def simulate_table(point: Point, scale: int, seeds: int) -> Table:
    """Table 2 as simulated, with batch and cluster `scale` times smaller."""
    setting = setting_of(point).scaled(scale)
    chosen = {name: row for name, row in rows().items() if name in TABLE_2}
    for name, row in chosen.items():
        if isinstance(row.policy, Continuous):
            own = replace(row.policy, imagined=point["imagined"], margin=point["margin"])
            chosen[name] = replace(row, policy=own)
    runs = [run_rows(setting.world.step(seed), setting, chosen) for seed in range(seeds)]
    seconds = {name: mean([run[name] for run in runs], "seconds") for name in chosen}
    return {
        name: {
            "rollout_speedup": seconds["naive"] / seconds[name],
            "idle": mean([run[name] for run in runs], "idle"),
            "waste": mean([run[name] for run in runs], "waste"),
        }
        for name in chosen
    }


def misfit(table: Table) -> float:
    total = 0.0
    for name, row in TABLE_2.items():
        got, weight = table[name], WEIGHT.get(name, 1.0)
        off = math.log(got["rollout_speedup"] / row.rollout_speedup)
        total += weight * (off / TOLERANCE["rollout_speedup"]) ** 2
        total += weight * ((got["idle"] - row.idle) / TOLERANCE["idle"]) ** 2
        if row.waste is not None:
            total += weight * ((got["waste"] - row.waste) / TOLERANCE["waste"]) ** 2
    return total


def judged(scale: int, seeds: int, point: Point) -> tuple[float, Point]:
    return misfit(simulate_table(point, scale, seeds)), point


def moved(point: Point, by: float, rnd: random.Random) -> Point:
    """Some of the numbers moved, by a normal deviate of `by` times their range."""
    result = dict(point)
    for name in rnd.sample(list(FREE), rnd.choice((1, 2, 3))):
        low, high = FREE[name]
        if name in LOGARITHMIC:
            value = point[name] * math.exp(rnd.gauss(0, by) * math.log(high / low))
        else:
            value = point[name] + rnd.gauss(0, by) * (high - low)
        result[name] = min(high, max(low, value))
    return result


def search(evaluations: int, scale: int, seeds: int, workers: int) -> tuple[float, Point]:
    rnd = random.Random(0)
    by = 0.15
    with ProcessPoolExecutor(workers) as pool:
        judge = partial(judged, scale, seeds)
        best = judge(point_of(REPORT))
        for _ in range(evaluations // (2 * workers)):
            points = [moved(best[1], by, rnd) for _ in range(2 * workers)]
            best = min([best, *pool.map(judge, points)], key=lambda pair: pair[0])
            by = max(0.02, 0.95 * by)
            print(f"{best[0]:.1f} {json.dumps(best[1])}", file=sys.stderr, flush=True)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluations", type=int, default=200, help="0: of REPORT as it is")
    parser.add_argument("--scale", type=int, default=4, help="times smaller than the report's")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", metavar="FILE", help="write the fit there, - for standard output")
    options = parser.parse_args()
    value, point = search(options.evaluations, options.scale, options.seeds, options.workers)
    table = simulate_table(point, options.scale, options.seeds)
    for name, row in table.items():
        print(f"{name:24}", {key: round(number, 3) for key, number in row.items()}, TABLE_2[name],
              file=sys.stderr)  # fmt: skip
    report = {"misfit": value, "point": point, "update_share": UPDATE_SHARE, "table": table}
    if options.json == "-":
        print(json.dumps(report, indent=1))
    elif options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
