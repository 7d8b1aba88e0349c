"""Difficulty by a model's own answers."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch

from openmimo.curation import rollouts
from openmimo.curation.keep import Outcomes
from openmimo.curation.pipeline import curate
from openmimo.curation.rollouts import open_journal, roll_out
from openmimo.curation.solver import Sampling, Solver
from openmimo.curation.sources import open_source
from openmimo.data.documents import read_records
from openmimo.errors import UserError
from openmimo.inference.engine import Engine
from openmimo.inference.protocol import Completion, Request
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


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of all requests to the native engine."""
    ids: list[str] = []
    submit = Engine.submit

    def spy(engine: Engine, requests: Any) -> None:
        requests = list(requests)
        ids.extend(str(request.id) for request in requests)
        submit(engine, requests)

    monkeypatch.setattr(Engine, "submit", spy)
    return ids


def digits(*numbers: int) -> list[dict[str, Any]]:
    return [
        {**math(f"Which digit{'?' * n}", str(n)), "id": f"p{n}", "domain": "math"} for n in numbers
    ]


def answer(
    folder: Path, problems: list[dict[str, Any]], journal: Path, sampling: Sampling = SAMPLING
) -> dict[str, Outcomes]:
    with open_journal(journal) as answers:
        return roll_out("r", Solver(folder), problems, sampling, answers, Interrupt())


def test_rollouts_measure_and_decide(folder: Path, settings: Any, tmp_path: Path) -> None:
    rows = [math("A: which digit?", 1), math("B: which digit?", 2), math("C: which digit?", 7)]
    rows += [math("word " * 70, 1), code("D: which digit?", "x = 1", "assert x == 1")]
    raw = open_source(str(write_jsonl(tmp_path / "raw.jsonl", rows)))
    sampling = dataclasses.replace(SAMPLING, rollouts=8, seed=3)
    changes = settings(sampling=sampling, strong=Solver(folder), own=Solver(folder))
    file = curate([raw], [], changes, tmp_path / "out")
    kept = {row["prompt"]: row for row in pyarrow.parquet.read_table(file).to_pylist()}
    funnel = json.loads((tmp_path / "out" / "funnel.json").read_text())
    assert set(kept) == {f"{name}: which digit?" for name in "ABD"}
    assert 0 < kept["A: which digit?"]["strong_pass_rate"] < 1
    assert kept["A: which digit?"]["own_answers"] == 8
    assert kept["D: which digit?"]["own_pass_rate"] == 0
    marks = [path.read_bytes() for path in sorted(tmp_path.glob("out/stages/*/done.json"))]
    assert len(marks) == 6
    (folder / "config.json").touch()
    assert curate([raw], [], changes, tmp_path / "out") == file
    again = [path.read_bytes() for path in sorted(tmp_path.glob("out/stages/*/done.json"))]
    assert again == marks, "nothing was done again"
    assert funnel[-1]["dropped"] == {
        "unsolved by the strong model": 1,
        "prompt longer than the context": 1,
    }


def test_a_model_in_the_other_role_is_judged_by_the_other_rule(
    folder: Path, settings: Any, tmp_path: Path
) -> None:
    rows = [math("A: which digit?", 1), math("C: which digit?", 7)]
    raw = open_source(str(write_jsonl(tmp_path / "raw.jsonl", rows)))
    for role, left in (("strong", ["1"]), ("own", ["1", "7"])):
        file = curate([raw], [], settings(**{role: Solver(folder)}), tmp_path / "out")
        rows = pyarrow.parquet.read_table(file).to_pylist()
        assert [row["answer"] for row in rows] == left


def test_a_torn_journal_goes_on_and_gives_the_same(
    folder: Path, asked: list[str], tmp_path: Path
) -> None:
    whole = tmp_path / "whole.jsonl"
    outcomes = answer(folder, digits(1, 2, 3), whole)
    assert {each.answers for each in outcomes.values()} == {4}
    torn = tmp_path / "torn.jsonl"
    lines = whole.read_bytes().split(b"\n")
    torn.write_bytes(b"\n".join([*lines[:5], lines[5][:20]]))
    asked.clear()
    assert answer(folder, digits(1, 2, 3), torn) == outcomes
    assert len(asked) == 12 - 5

    def by_key(path: Path) -> dict[str, Any]:
        return {record["key"]: record for _, record in read_records(path)}

    assert by_key(torn) == by_key(whole)


def test_only_what_is_new_is_sampled(folder: Path, asked: list[str], tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    first = answer(folder, digits(1, 2), journal)
    asked.clear()
    second = answer(folder, digits(3, 2, 1), journal)
    assert len(asked) == 4, "a new problem, and the old ones in another order"
    assert {name: second[name] for name in ("p1", "p2")} == first
    asked.clear()
    answer(folder, [digits(1)[0] | {"source": "elsewhere", "origin": "b:7"}], journal)
    assert not asked, "where it came from is no part of a problem"
    answer(folder, [digits(1)[0] | {"answer": "2"}], journal)
    assert len(asked) == 4, "another reference"
    asked.clear()
    more = dataclasses.replace(SAMPLING, rollouts=6)
    assert answer(folder, digits(1), journal, more)["p1"].answers == 6
    assert len(asked) == 2, "the first four are there"


def test_another_model_or_sampling_has_another_journal(folder: Path) -> None:
    fingerprint = Solver(folder).fingerprint(SAMPLING)
    for change in ({"temperature": 0.5}, {"tokens": 41}, {"seed": 1}, {"test_seconds": 1.0}):
        other = dataclasses.replace(SAMPLING, **change)
        assert Solver(folder).fingerprint(other) != fingerprint, change
    more = dataclasses.replace(SAMPLING, rollouts=99)
    assert Solver(folder, "vllm").fingerprint(more) == fingerprint
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert Solver(folder).fingerprint(SAMPLING) != fingerprint


class Says:
    """An engine that answers every request with one text, or gives it up."""

    def __init__(self, tokenizer: Tokenizer, text: str | None) -> None:
        self._tokenizer, self._text = tokenizer, text
        self._requests: list[Request] = []

    def submit(self, requests: Any) -> None:
        self._requests += requests

    def step(self) -> list[Completion]:
        done = [self._complete(request) for request in self._requests]
        self._requests = []
        return done

    def _complete(self, request: Request) -> Completion:
        ids = torch.tensor(self._tokenizer.encode(self._text or "")).int().numpy()
        if self._text is None:
            return Completion(request.id, ids, ids, "failed", error="the engine ran out")
        return Completion(request.id, ids, ids, "stop")


def let_it_say(taught: Taught, monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    from contextlib import nullcontext

    monkeypatch.setattr(
        rollouts, "open_engine", lambda *_, **__: nullcontext(Says(taught[1], text))
    )


def test_every_test_of_a_program_is_run(
    taught: Taught, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also those behind the first failure: whether some test can be passed is what is asked."""
    let_it_say(taught, monkeypatch, "```python\nx = 2\n```")
    tests = ("assert x == 1", "assert x > 1", "assert x == 3", "assert x == 2")
    problem = {**code("Write x.", None, *tests), "id": "c", "domain": "code"}
    found = answer(folder, [problem], tmp_path / "journal.jsonl")
    assert found == {"c": Outcomes(4, 0, (0, 4, 0, 4))}


def test_what_the_engine_gave_up_is_no_answer_and_is_asked_again(
    taught: Taught, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    journal = tmp_path / "journal.jsonl"
    let_it_say(taught, monkeypatch, None)
    assert answer(folder, digits(1), journal) == {"p1": Outcomes(0, 0)}
    assert "the engine ran out" in journal.read_text()
    let_it_say(taught, monkeypatch, "\\boxed{1}")
    assert answer(folder, digits(1), journal) == {"p1": Outcomes(4, 4)}


def test_more_problems_than_fit_the_window(
    folder: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rollouts, "SLOTS", 3)
    found = answer(folder, digits(*range(1, 8)), tmp_path / "journal.jsonl")
    assert {each.answers for each in found.values()} == {4}
    assert len(asked) == len(set(asked)) == 28


def test_an_unknown_engine_and_none_that_answers(folder: Path, tmp_path: Path) -> None:
    for engine, message in (
        ("sglang", "unknown engine 'sglang': it is native, vllm, or the URL"),
        ("http://127.0.0.1:9", r"the vLLM server http://127.0.0.1:9 has failed"),
    ):
        with (
            open_journal(tmp_path / "journal.jsonl") as journal,
            pytest.raises(UserError, match=message),
        ):
            roll_out("r", Solver(folder, engine), digits(1), SAMPLING, journal, Interrupt())


@pytest.mark.slow
def test_killed_among_rollouts_it_goes_on(folder: Path, tmp_path: Path) -> None:
    raw = write_jsonl(tmp_path / "raw.jsonl", [math(f"Which {n}?", n % 3) for n in range(24)])
    command = [sys.executable, "-m", "openmimo.cli", "curate", str(raw), "--model", str(folder)]
    command += ["--rollouts", "24", "--max-tokens", "40", "--similarity", "1"]
    out, whole = tmp_path / "out", tmp_path / "whole"
    process = subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not sum(path.stat().st_size for path in out.glob("journals/rollouts-*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (journal,) = out.glob("journals/rollouts-*")
    before = journal.read_bytes()
    assert 0 < before.count(b"\n") < 576
    for folder_ in (out, whole):
        subprocess.run(
            [*command, "--out", str(folder_)], check=True, stdout=subprocess.DEVNULL, timeout=120
        )
    whole_lines = before[: before.rfind(b"\n") + 1]
    assert journal.read_bytes().startswith(whole_lines), "what was there stays"
    assert journal.read_bytes().count(b"\n") == 576
    assert json.loads((out / "funnel.json").read_text()) == json.loads(
        (whole / "funnel.json").read_text()
    )
    assert (out / "problems.parquet").read_bytes() == (whole / "problems.parquet").read_bytes()
