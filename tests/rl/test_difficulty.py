"""The stage that measures how hard each test is."""

from pathlib import Path
from typing import Any

import pytest
import torch

from openmimo.config.schema import RLConfig
from openmimo.data.documents import read_records, write_records
from openmimo.model.checkpoint import save_model
from openmimo.model.mimo import MiMo
from openmimo.rl import difficulty
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


def test_answers_without_a_program_solve_nothing(
    taught: tuple[MiMo, Tokenizer, list[dict[str, Any]]],
    make_recipe: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In a context that leaves some room after the longest prompt, less than max_new_tokens."""
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
    difficulty.run(make_recipe(max_new_tokens=1000, level_samples=2), run)
    assert "solved 0 of 4 attempts" in capsys.readouterr().out
    file = run.dir / "stages" / "difficulty" / "problems.jsonl"
    graded = [problem for _, problem in read_records(file)]
    assert [problem["id"] for problem in graded] == ["p0", "p1", "p2"]
    assert graded[0]["pass_rates"] == [0.0] * 4
    assert "levels" not in graded[2]
