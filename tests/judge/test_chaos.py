"""A smaller run of benchmarks/judge_chaos.py: kill -9 for workers and services."""

import runpy
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "judge_chaos.py"


@pytest.mark.slow
@pytest.mark.parametrize(("services", "kill_seconds"), [(0, "0.5"), (1, "1")])
def test_each_judgement_gets_exactly_one_verdict(services, kill_seconds):
    chaos = runpy.run_path(str(BENCHMARK))
    options = chaos["make_parser"]().parse_args(
        ["--judgements", "200", "--service-kills", "2", "--worker-kill-seconds", kill_seconds]
    )
    found = chaos["remote"](options, services) if services else chaos["in_process"](options)
    assert found["verdicts"] == found["right"] == 200, found
    assert found["worker_kills"]
    assert found["service_kills"] == 2 * services
