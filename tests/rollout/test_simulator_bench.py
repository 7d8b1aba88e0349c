"""mimo rollout-bench: its figures, and the settings it knows."""

import json
import math
from pathlib import Path

import pytest

from openmimo.cli import main
from openmimo.cli_rollout import MEASURES
from openmimo.cli_rollout import SETTINGS as CHOICES
from openmimo.rollout.simulator.bench import Mean, summary
from openmimo.rollout.simulator.measure import Measures
from openmimo.rollout.simulator.published import TABLE_2, overall_speedup
from openmimo.rollout.simulator.settings import SETTINGS
from openmimo.rollout.simulator.table import rows
from openmimo.rollout.simulator.trace import TraceWriter
from openmimo.rollout.timeline import read_timelines


def test_figures_of_each_policy_as_json(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    arguments = ["--setting", "small", "--seeds", "2", "--json", str(file)]
    assert main(["rollout-bench", *arguments]) in (0, None)
    figures = json.loads(file.read_text())
    assert set(figures) == set(rows())
    assert {"naive", "report", "ours", "ours_mtp"} <= set(figures)
    assert all(set(row) == set(MEASURES) for row in figures.values())
    assert figures["naive"]["rollout_speedup"] == figures["naive"]["overall_speedup"] == 1
    assert figures["ours"]["rollout_speedup"] > figures["report"]["rollout_speedup"] > 1
    assert figures["ours_mtp"]["rollout_speedup"] > figures["ours"]["rollout_speedup"]
    biased = {name for name, row in figures.items() if row["length_bias"] != 0}
    assert biased <= {"greedy"}


def test_a_recorded_trace_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.jsonl"
    with TraceWriter(path, prompts_per_step=2, group_size=2) as writer:
        for step in range(2):
            for n in range(6):
                writer.write(step, f"p{n}", [10 + n, 40], [1.0, float(n % 2)], [0.1, 0.1])
    steps = tmp_path / "steps.jsonl"
    more = ["--engines", "2", "--policies", "ours_mtp", "--timeline", str(steps)]
    main(["rollout-bench", "--trace", str(path), *more])
    assert [step.name for step in read_timelines(steps)] == ["naive", "ours_mtp"]
    shown = capsys.readouterr().out
    assert "2 engines, 2 steps" in shown
    assert "ours_mtp" in shown


def test_wrong_options_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rollout-bench", "--seeds", "0"]) == 2
    assert "--seeds is 0" in capsys.readouterr().err
    assert main(["rollout-bench", "--policies", "ours,fastest"]) == 2
    assert "no policy fastest" in capsys.readouterr().err
    assert main(["rollout-bench", "--trace", str(tmp_path / "none")]) == 2
    for file in (tmp_path / "no" / "where.json", tmp_path):
        assert main(["rollout-bench", "--json", str(file)]) == 2
        assert f"cannot write {file}" in capsys.readouterr().err


def test_the_command_knows_all_settings_and_the_tables_rows() -> None:
    assert set(CHOICES) == set(SETTINGS)
    assert set(TABLE_2) <= set(rows())


def test_the_update_share_explains_the_published_overall_speedups() -> None:
    overall = {"static": 2.45, "continuous": 1.99, "continuous_async_reward": 2.09, "report": 2.29}
    for name, published in overall.items():
        assert overall_speedup(TABLE_2[name].rollout_speedup) == pytest.approx(published, abs=0.02)


def test_intervals_and_speedups_are_of_pairs() -> None:
    mean = Mean.of([1.0, 2.0, 3.0])
    assert mean.value == 2
    assert mean.half == pytest.approx(4.30 / math.sqrt(3), rel=1e-3)
    assert math.isnan(Mean.of([1.0]).half)

    def step(seconds: float) -> Measures:
        return Measures(seconds, 1.0, 1.0, 0.5, 0.1, 0.0, 0.5, 0.1, 1.0)

    table = summary({"naive": [step(10.0), step(40.0)], "fast": [step(5.0), step(10.0)]})
    assert table["fast"].rollout_speedup.value == pytest.approx((2 + 4) / 2)
    assert table["naive"].rollout_speedup.value == 1
