"""RL on a set of the user's own: what is read, what is refused, and that the levels count."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from openmimo.config.base import to_toml
from openmimo.config.schema import Recipe
from openmimo.curation.parquet import write_parquet
from openmimo.data.documents import read_records, write_records
from openmimo.errors import UserError
from openmimo.metrics import read_metrics
from openmimo.model.checkpoint import save_model
from openmimo.model.mimo import MiMo
from openmimo.rewards.grading import Grading
from openmimo.rewards.pool import RewardPool
from openmimo.rl import difficulty, train
from openmimo.rl.problems import check_unchanged, fingerprint, fitting, read_problems
from openmimo.runs import Run
from openmimo.tokenizer import Tokenizer

Taught = tuple[MiMo, Tokenizer, list[dict[str, Any]]]

MATH = {"id": "m", "domain": "math", "tier": "train", "prompt": "Which digit?", "answer": "1"}
CODE = {
    "id": "c", "domain": "code", "tier": "train", "prompt": "Write f.", "entry_point": "f",
    "golden": "def f(x):\n    return x", "source": "s", "origin": "a:1",
    "tests": [{"args": [n], "expected": n} for n in range(3)],
    "levels": [[0], [1, 2]], "level_scores": [1.0, 3.0],
}  # fmt: skip


@pytest.fixture
def run(taught: Taught, tmp_path: Path) -> Run:
    """A run in which `difficulty` is next; its data stage has one problem, d."""
    model, tokenizer, _ = taught
    run = Run(tmp_path / "run")
    for name in ("data", *difficulty.SOLVERS):
        stage = run.stage(name, f"hash {name}")
        if name == "data":
            tokenizer.save(stage.dir / "tokenizer")
            (stage.dir / "problems").mkdir()
            write_records(stage.dir / "problems" / "rl.jsonl", [MATH | {"id": "d"}])
        else:
            save_model(model, stage.dir / "model", torch.float32)
        stage.finish()
    return run


def written(folder: Path, suffix: str, rows: list[dict[str, Any]]) -> str:
    path = folder / f"problems{suffix}"
    if suffix == ".parquet":
        write_parquet(path, rows)
    else:
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(lines) if suffix.endswith(".gz") else lines)
    return str(path)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".jsonl.gz"])
def test_the_same_problems_from_every_kind_of_file(suffix: str, run: Run, tmp_path: Path) -> None:
    found = read_problems(written(tmp_path, suffix, [MATH, CODE]), run)
    dropped = ("golden", "source", "origin")
    assert found == [MATH, {name: CODE[name] for name in CODE if name not in dropped}]
    assert [problem["id"] for problem in read_problems(None, run)] == ["d"]


def test_levels_and_their_scores_reach_the_reward(run: Run, tmp_path: Path) -> None:
    """A wrong answer to one test of the level that is worth three of four."""
    (problem,) = read_problems(written(tmp_path, ".parquet", [CODE]), run)
    with RewardPool(grading=Grading("soft")) as pool:
        program = "```python\ndef f(x):\n    return min(x, 1)\n```"
        verdict = pool.score(problem, program).result(60)
    assert verdict.score == pytest.approx(1 / 4 + 3 / 4 / 2)


def test_a_row_needs_little(run: Run, tmp_path: Path) -> None:
    rows = [{"prompt": "Which?", "answer": "1"}, {"prompt": "f", "tests": [{"code": "assert 1"}]}]
    found = read_problems(written(tmp_path, ".jsonl", rows), run)
    assert [each["domain"] for each in found] == ["math", "code"]
    assert {each["tier"] for each in found} == {"train"}
    assert len({each["id"] for each in found}) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?"}, r"problems\.jsonl:2: prompt: Field required; the columns are prompt"),
        ({"prompt": "?"}, "2: no answer; the columns are"),
        ({"prompt": "?", "domain": "code", "answer": "1"}, "2: no tests; the columns are"),
        ({"prompt": "?", "answer": 3}, "2: answer: Input should be a valid string"),
        ({"prompt": "?", "domain": "proof", "answer": "1"}, "2: domain: Input should be 'math'"),
        ({"prompt": "?", "tests": "[1"}, "2: tests: "),
        ({"prompt": "?", "tests": [{"odd": 1}]}, r"2: no test: \['odd'\]"),
        (CODE | {"id": "e", "levels": [[0]]}, r"2: levels \[\[0\]\] do not hold 3 tests"),
        (CODE | {"id": "e", "level_scores": [1.0]}, "2: 2 levels need as many scores"),
        (CODE | {"id": "e", "levels": None}, "2: level_scores without levels"),
        (MATH, "2: the id 'm' occurs twice"),
    ],
)
def test_rows_that_are_refused(row: dict[str, Any], message: str, run: Run, tmp_path: Path) -> None:
    path = written(tmp_path, ".jsonl", [MATH, row])
    with pytest.raises(UserError, match=message) as caught:
        read_problems(path, run)
    assert str(caught.value).startswith("rl.problems: ")


def test_files_that_are_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("What is 1 + 1?")
    (tmp_path / "empty.jsonl").write_text("")
    for name, message in (
        ("none.parquet", "rl.problems: no file "),
        ("notes.txt", r"only \.jsonl, \.json"),
        ("empty.jsonl", r"rl.problems: .*empty\.jsonl holds no problems"),
    ):
        with pytest.raises(UserError, match=message):
            read_problems(str(tmp_path / name), run)


def test_long_prompts(taught: Taught, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = taught[1]
    problems = [MATH | {"id": f"p{n}", "prompt": "a " * n} for n in (1, 9, 30)]
    lengths = [len(tokenizer.chat_prompt(problem["prompt"])) for problem in problems]

    def left(context: int, most: int | None) -> list[str]:
        return [problem["id"] for problem in fitting(problems, tokenizer, context, most)]

    assert left(lengths[2] + 1, None) == ["p1", "p9", "p30"]
    assert not capsys.readouterr().out
    with pytest.raises(
        UserError, match=f"problem p30 has {lengths[2]} tokens .* only {lengths[2]}"
    ):
        left(lengths[2], None)
    assert left(lengths[2], 10**6) == ["p1", "p9"], "no room for an answer"
    assert left(10**6, lengths[1]) == ["p1", "p9"]
    assert "2 of 3 have at most" in capsys.readouterr().out
    with pytest.raises(
        UserError, match=f"no problem is left: the shortest prompt has {lengths[0]}"
    ):
        left(10**6, lengths[0] - 1)


def test_training_on_a_set_of_ones_own(
    taught: Taught, run: Run, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    rows = [MATH | {"id": f"own{n}", "prompt": f"Which digit{'?' * n}"} for n in range(1, 5)]
    rows.append(MATH | {"id": "long", "prompt": "word " * 60})
    path = Path(written(tmp_path, ".parquet", [*rows, CODE]))
    settings = {
        "problems": str(path), "max_prompt_tokens": 50, "steps": 2, "level_samples": 1,
        "max_new_tokens": 16,
    }  # fmt: skip
    difficulty.run(make_recipe(**settings), run)
    file = run.dir / "stages" / "difficulty" / "problems.jsonl"
    graded = {problem["id"]: problem for _, problem in read_records(file)}
    assert list(graded) == ["own1", "own2", "own3", "own4", "c"]
    assert graded["c"]["levels"] == CODE["levels"]
    assert graded["c"]["level_scores"] == CODE["level_scores"]
    train.run(make_recipe(**settings), run, "rl")
    assert len(read_metrics(run.dir / "stages" / "rl" / "metrics.jsonl")) == 2
    before = run.done("rl"), run.done("difficulty")

    moved = path.rename(tmp_path / "moved.parquet")
    settings["problems"] = str(moved)
    difficulty.run(make_recipe(**settings), run)
    train.run(make_recipe(**settings), run, "rl")
    assert (run.done("rl"), run.done("difficulty")) == before, "its content is the same"

    written(tmp_path, ".parquet", rows)
    settings["problems"] = str(path)
    settings["steps"] = 3
    with pytest.raises(UserError, match="has changed since the difficulty stage read it"):
        train.run(make_recipe(**settings), run, "rl")
    difficulty.run(make_recipe(**settings), run)
    assert run.done("difficulty") != before[1], "another content: done again"
    path.unlink()
    check_unchanged(str(path), run.done("difficulty"))  # what was read is in the run's folder
    assert 'problems = "' in to_toml(make_recipe(**settings))


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    path = written(tmp_path, ".jsonl", [MATH])
    first = fingerprint(path)
    assert fingerprint(str(Path(path).rename(tmp_path / "other.jsonl"))) == first
    assert fingerprint(written(tmp_path, ".jsonl", [MATH, CODE])) != first
    assert fingerprint(None) is None
