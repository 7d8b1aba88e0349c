"""Difficulty by a model's own answers."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch

from openmimo.curation.pipeline import curate
from openmimo.curation.rollouts import roll_out
from openmimo.curation.sources import open_source
from openmimo.evals.samples import SampleFile
from openmimo.model.checkpoint import save_model
from openmimo.model.mimo import MiMo
from openmimo.runs import Interrupt
from openmimo.tokenizer import Tokenizer

from .conftest import SAMPLING, code, math, write_jsonl

Taught = tuple[MiMo, Tokenizer, list[dict[str, Any]]]


@pytest.fixture
def folder(taught: Taught, tmp_path: Path) -> Path:
    """A model that answers 1, 2 or 3 to whatever it is asked, in a context of 64 tokens."""
    model, tokenizer, _ = taught
    save_model(model, tmp_path / "model", torch.float32)
    tokenizer.save(tmp_path / "model")
    return tmp_path / "model"


def test_rollouts_measure_and_decide(folder: Path, settings: Any, tmp_path: Path) -> None:
    rows = [math("A: which digit?", 1), math("B: which digit?", 2), math("C: which digit?", 7)]
    rows += [math("word " * 70, 1), code("D: which digit?", "x = 1", "assert x == 1")]
    raw = open_source(str(write_jsonl(tmp_path / "raw.jsonl", rows)))
    sampling = dataclasses.replace(SAMPLING, rollouts=6)
    changes = settings(sampling=sampling, strong=folder, own=folder)
    file = curate([raw], [], changes, tmp_path / "out")
    kept = {row["prompt"]: row for row in pyarrow.parquet.read_table(file).to_pylist()}
    funnel = json.loads((tmp_path / "out" / "funnel.json").read_text())
    assert set(kept) == {f"{name}: which digit?" for name in "ABD"}
    assert 0 < kept["A: which digit?"]["strong_pass_rate"] < 1
    assert kept["A: which digit?"]["own_answers"] == 6
    assert kept["D: which digit?"]["own_pass_rate"] == 0
    marks = [path.read_bytes() for path in sorted(tmp_path.glob("out/stages/*/done.json"))]
    assert len(marks) == 8
    (folder / "config.json").touch()
    assert curate([raw], [], changes, tmp_path / "out") == file
    again = [path.read_bytes() for path in sorted(tmp_path.glob("out/stages/*/done.json"))]
    assert again == marks, "nothing was done again"
    assert funnel[-1]["dropped"] == {
        "unsolved by the strong model": 1,
        "no rollout could be judged": 1,
    }


def test_a_model_in_the_other_role_is_judged_by_the_other_rule(
    folder: Path, settings: Any, tmp_path: Path
) -> None:
    rows = [math("A: which digit?", 1), math("C: which digit?", 7)]
    raw = open_source(str(write_jsonl(tmp_path / "raw.jsonl", rows)))
    for role, left in (("strong", ["1"]), ("own", ["1", "7"])):
        file = curate([raw], [], settings(**{role: folder}), tmp_path / "out")
        rows = pyarrow.parquet.read_table(file).to_pylist()
        assert [row["answer"] for row in rows] == left


def test_an_interrupted_file_goes_on_and_gives_the_same(folder: Path, tmp_path: Path) -> None:
    problems = [{**math(f"Which digit{'?' * n}", str(n)), "id": f"p{n}", "domain": "math"}
                for n in (1, 2, 3)]  # fmt: skip
    whole = tmp_path / "whole.jsonl"
    arguments = ("rollouts", folder, problems, SAMPLING)
    outcomes = roll_out(*arguments, whole, Interrupt())
    assert {each.answers for each in outcomes.values()} == {4}
    torn = tmp_path / "torn.jsonl"
    torn.write_bytes(whole.read_bytes()[:700])
    assert roll_out(*arguments, torn, Interrupt()) == outcomes
    keys = [(f"p{n}", k) for n in (1, 2, 3) for k in range(4)]
    with SampleFile(whole, keys) as first, SampleFile(torn, keys) as second:
        assert first.samples == second.samples
