"""The stage that measures how hard each test is."""

from pathlib import Path
from typing import Any

import pytest
import torch

from openmimo.config.schema import RLConfig
from openmimo.data.documents import read_records, write_records
from openmimo.judge import Limits
from openmimo.model.checkpoint import save_model
from openmimo.model.mimo import MiMo
from openmimo.rewards.pool import RewardPool
from openmimo.rl import difficulty
from openmimo.rollout.driver import Patience, RolloutDriver
from openmimo.runs import Run
from openmimo.tokenizer import Tokenizer

TESTS = [{"args": [[n]], "expected": n} for n in range(4)]


def test_rates_count_every_attempt_and_levels_are_easiest_first() -> None:
    problem = {"id": "p", "domain": "code", "tests": TESTS}
    attempts = [(True, True, True, False), (True, True, False, False), (True, False, False, False)]
    config = RLConfig(levels=2)
    graded = difficulty.with_levels(problem, {"p": [*attempts, ()]}, config)
    assert graded["pass_rates"] == [0.75, 0.5, 0.25, 0.0], "an answer without a program fails all"
    assert sorted(test for level in graded["levels"] for test in level) == [0, 1, 2, 3]
    rates = [[graded["pass_rates"][test] for test in level] for level in graded["levels"]]
    assert len(rates) == 2
    assert min(rates[0]) > max(rates[1])
    other = {"id": "q", "domain": "math", "answer": "1"}
    assert difficulty.with_levels(other, {}, config) == other
    given = difficulty.with_levels(
        problem | {"levels": [[2, 3], [0, 1, 2]]}, {"p": attempts}, config
    )
    assert given["levels"] == [[2, 3], [0, 1, 2]], "subtasks stay"
    assert given["pass_rates"][0] == 1.0


def test_levels_follow_the_settings() -> None:
    problem = {"id": "p", "domain": "code", "tests": TESTS}
    attempts = [(True, True, True, False)] * 30 + [(True, True, True, True)]
    by = {
        (levels, method): difficulty.with_levels(
            problem, {"p": attempts}, RLConfig(levels=levels, level_clustering=method)
        )["levels"]
        for levels in (4, "auto")
        for method in ("kmeans", "quantile")
    }
    assert by["auto", "kmeans"] == by[4, "kmeans"] == [[0, 1, 2], [3]]
    assert by[4, "quantile"] == [[0, 1, 2], [3]]


@pytest.fixture
def run(taught: tuple[MiMo, Tokenizer, list[dict[str, Any]]], tmp_path: Path) -> Run:
    """A run in which `difficulty` is next, with two code problems and one of mathematics."""
    model, tokenizer, problems = taught
    code = [
        {**problem, "domain": "code", "entry_point": "f", "tests": TESTS, "levels": None}
        for problem in problems[:2]
    ]
    run = Run(tmp_path / "run")
    for name in ("data", *difficulty.SOLVERS):
        stage = run.stage(name, f"hash {name}")
        if name == "data":
            tokenizer.save(stage.dir / "tokenizer")
            (stage.dir / "problems").mkdir()
            write_records(stage.dir / "problems" / "rl.jsonl", [*code, problems[2]])
        else:
            save_model(model, stage.dir / "model", torch.float32)
        stage.finish()
    return run


def test_answers_without_a_program_solve_nothing(
    run: Run, make_recipe: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a context that leaves some room after the longest prompt, less than max_new_tokens."""
    difficulty.run(make_recipe(max_new_tokens=1000, level_samples=2), run)
    assert "solved 0 of 4 attempts" in capsys.readouterr().out
    file = run.dir / "stages" / "difficulty" / "problems.jsonl"
    graded = [problem for _, problem in read_records(file)]
    assert [problem["id"] for problem in graded] == ["p0", "p1", "p2"]
    assert graded[0]["pass_rates"] == [0.0] * 4
    assert "levels" not in graded[2]


def test_other_limits_of_programs_measure_again_and_leave_them_time(
    run: Run, make_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits, deadlines = [], []

    class Pool(RewardPool):
        def __init__(self, judge: Limits, **options: Any) -> None:
            limits.append((judge.cpu_seconds, judge.memory_mb))
            super().__init__(judge=judge, **options)

    class Driver(RolloutDriver):
        def __init__(self, *arguments: Any, patience: Patience) -> None:
            deadlines.append(patience.reward)
            super().__init__(*arguments, patience=patience)

    monkeypatch.setattr(difficulty, "RewardPool", Pool)
    monkeypatch.setattr(difficulty, "RolloutDriver", Driver)
    for changes in {}, {"test_seconds": 9.0}, {"test_memory_mb": 999}, {"test_memory_mb": 999}:
        difficulty.run(make_recipe(level_samples=1, **changes), run)
    solvers = len(difficulty.SOLVERS)
    assert limits[::solvers] == [(0.5, 256), (9.0, 256), (0.5, 999)], "the last was done already"
    assert deadlines[0] == deadlines[-1] == Patience().reward + 5.0 * len(TESTS)
    assert deadlines[solvers] == Patience().reward + 90.0 * len(TESTS)
