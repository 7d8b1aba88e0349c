"""All gates together: what stays, what is said about the rest, and resuming."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from openmimo.cli import main
from openmimo.curation.pipeline import curate
from openmimo.curation.sources import open_source
from openmimo.errors import UserError
from openmimo.judge import Judge, SolutionVerdict, Status, Verdict

from .conftest import ROWS, code, math, write_jsonl


def stay(folder: Path) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(folder / "problems.parquet").to_pylist()


def run(raw: str, evaluation: str, settings: Any, folder: Path, **changes: Any) -> Path:
    curate([open_source(raw)], [open_source(evaluation)], settings(**changes), folder)
    return folder


def test_every_gate_drops_what_it_is_for(
    raw: str, evaluation: str, settings: Any, tmp_path: Path
) -> None:
    out = run(raw, evaluation, settings, tmp_path / "out")
    funnel = json.loads((out / "funnel.json").read_text())
    assert {gate["gate"]: gate["dropped"] for gate in funnel} == {
        "read": {"no answer": 1, "no tests": 1},
        "dedup": {"duplicates with other answers": 2, "duplicate": 1},
        "decontaminate": {"evaluation item": 1},
        "kinds": {"proof": 1, "multiple choice": 1},
        "references": {"golden solution fails": 1},
        "keep": {"no golden solution": 1},
    }
    counts = [(gate["before"], gate["kept"]) for gate in funnel]
    assert counts[0][0] == len(ROWS)
    assert all(kept == before for (_, kept), (before, _) in itertools.pairwise(counts))
    rows = stay(out)
    assert [row["origin"] for row in rows] == ["raw.jsonl:1", "raw.jsonl:9", "raw.jsonl:10"]
    assert [row["source"] for row in rows] == [raw] * 3
    assert rows[0]["answer"] == "3"
    assert json.loads(rows[2]["tests"]) == [{"code": "assert f(3) == 9"}]
    page = (out / "funnel.md").read_text()
    assert "| read | 13 | 11 | no answer: 1, no tests: 1 |" in page
    assert "raw.jsonl:11 (test 0: wrong" in page
    assert "marbles and gives" in page, "of the training problem"
    assert "Little" not in "".join(path.read_text() for path in out.rglob("*.json*")), "hashes only"


def test_what_was_curated_is_a_source_again(
    raw: str, evaluation: str, settings: Any, tmp_path: Path
) -> None:
    first = run(raw, evaluation, settings, tmp_path / "first")
    again = run(str(first / "problems.parquet"), evaluation, settings, tmp_path / "again")
    keep = ("id", "prompt", "answer", "tests", "golden", "domain")
    assert [[row[k] for k in keep] for row in stay(again)] == [
        [row[k] for k in keep] for row in stay(first)
    ]


def finished(folder: Path) -> dict[str, str]:
    return {path.parent.name: path.read_text() for path in folder.glob("stages/*/done.json")}


def test_only_what_depends_on_a_change_is_done_again(
    raw: str, evaluation: str, settings: Any, tmp_path: Path
) -> None:
    out = run(raw, evaluation, settings, tmp_path / "out")
    before = finished(out)
    run(raw, evaluation, settings, out)
    assert finished(out) == before
    run(raw, evaluation, settings, out, ngram=12)
    after = finished(out)
    redone = {name for name in before if before[name] != after[name]}
    assert redone == {"decontaminate"}, "it came to the same"
    run(raw, evaluation, settings, out, ngram=30)
    changed = {name for name in before if after[name] != finished(out)[name]}
    assert changed == {"decontaminate", "kinds", "references", "keep"}
    assert stay(out)[1]["prompt"].startswith("Ann has twelve"), "shorter than 30 words, not whole"
    write_jsonl(Path(raw), [*ROWS, math("What is 5 - 1?", 4)])
    run(raw, evaluation, settings, out)
    assert stay(out)[2]["prompt"] == "Write f(n), the square of n."
    assert stay(out)[3]["prompt"] == "What is 5 - 1?"


@pytest.mark.slow
def test_killed_anywhere_it_goes_on(raw: str, evaluation: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "openmimo.cli", "curate", raw, "--against", evaluation]
    whole = tmp_path / "whole"
    subprocess.run([*command, "--out", whole], check=True, capture_output=True, timeout=120)
    torn = tmp_path / "torn"
    kills = 0
    for stage in ("read", "decontaminate", "references", "keep"):
        process = subprocess.Popen([*command, "--out", torn], stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while process.poll() is None and not (torn / "stages" / stage).is_dir():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.communicate()
    subprocess.run([*command, "--out", torn], check=True, capture_output=True, timeout=120)
    assert kills >= 3
    for name in ("problems.parquet", "funnel.json", "funnel.md"):
        assert (torn / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_gate_that_leaves_nothing_says_so(evaluation: str, settings: Any, tmp_path: Path) -> None:
    raw = write_jsonl(tmp_path / "raw.jsonl", [math("Prove that 2 is prime.", "2")])
    with pytest.raises(
        UserError, match=r"the gate kinds left no problem of 1: see .*dropped\.jsonl"
    ):
        run(str(raw), evaluation, settings, tmp_path / "out")


def test_a_filter_of_the_users_own(
    raw: str,
    evaluation: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "own_filter.py").write_text(
        "def squares(questions):\n"
        "    return ['a square' if 'square' in q else None for q in questions]\n"
        "def short(questions):\n    return []\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "out"
    command = ["curate", raw, "--against", evaluation, "--out", str(out), "--filter"]
    assert main([*command, "own_filter:squares"]) == 0
    assert [row["prompt"] for row in stay(out)] == ["What is 1 + 2?"]
    assert main([*command, "own_filter:short"]) == 2
    assert "gave 0 answers to" in capsys.readouterr().err
    assert main([*command, "own_filter:none"]) == 2
    assert main([*command, "nowhere"]) == 2


def test_what_was_not_judged_is_counted_and_tried_again(
    raw: str, evaluation: str, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge that fails says nothing about a golden solution: the gate is not done then."""
    submit = Judge.submit

    def failing(judge: Judge, program: str, tests: Any, *rest: Any) -> Future[SolutionVerdict]:
        if "n * n" not in program:
            return submit(judge, program, tests, *rest)
        error: Future[SolutionVerdict] = Future()
        error.set_result(SolutionVerdict((Verdict(Status.JUDGE_ERROR, "no process"),)))
        return error

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Judge, "submit", failing)
        run(raw, evaluation, settings, out)
    funnel = {gate["gate"]: gate for gate in json.loads((out / "funnel.json").read_text())}
    assert funnel["references"]["dropped"] == {"golden solution fails": 1, "not judged yet": 1}
    assert funnel["references"]["examples"]["not judged yet"][0]["detail"] == "no process"
    assert not (out / "stages" / "references" / "done.json").exists()
    run(raw, evaluation, settings, out)
    assert (out / "stages" / "references" / "done.json").exists()
    whole = run(raw, evaluation, settings, tmp_path / "whole")
    assert (out / "problems.parquet").read_bytes() == (whole / "problems.parquet").read_bytes()


def test_killed_among_golden_solutions_it_goes_on(tmp_path: Path) -> None:
    """What was judged before is not judged again."""
    rows = [
        code(f"Write f{n}.", f"import time\ntime.sleep(0.1)\nf = {n}", f"assert f == {n}")
        for n in range(30)
    ]
    raw = write_jsonl(tmp_path / "raw.jsonl", rows)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "openmimo.cli", "curate", str(raw), "--out", str(out)]
    command += ["--similarity", "1"]
    journal = out / "journals" / "golden.jsonl"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = journal.read_bytes()
    before = before[: before.rfind(b"\n") + 1]
    assert 3 <= before.count(b"\n") < 30
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=120)
    assert journal.read_bytes().startswith(before)
    assert journal.read_bytes().count(b"\n") == 30, "each once"
    assert len(stay(out)) == 30


@pytest.mark.slow
def test_memory_does_not_grow_with_the_texts(tmp_path: Path) -> None:
    """Twenty times the text, in as many problems, takes little more memory."""
    peaks = []
    for size in (2_000, 40_000):
        raw = tmp_path / f"{size}.jsonl"
        test = {"stdin": "1" * size, "stdout": "1"}
        with raw.open("w") as file:
            for n in range(1_000):
                row = {"prompt": f"Add {n} and {n * n}.", "tests": [test]}
                file.write(json.dumps(row) + "\n")
        command = [sys.executable, "-c", PEAK, "curate", str(raw)]
        command += ["--out", str(tmp_path / f"out{size}")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert "left no problem of 1,000" in done.stderr, "there is no golden solution"
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 20, peaks


PEAK = """
import resource, sys
from openmimo.cli import main
main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.jsonl"], "no file missing.jsonl"),
        (["apps:raw.jsonl"], "unknown format 'apps' of apps:raw.jsonl: known are gsm8k, math"),
        (["gsm8k:raw.jsonl"], "raw.jsonl has no problem of the format gsm8k (another form, quest"),
        (["notes.txt"], "notes.txt: only .jsonl, .json (also .gz) and .parquet can be read"),
        (["cut.jsonl"], "cut.jsonl:1: "),
        (["cut.parquet"], "cannot read cut.parquet: "),
        (["hf://datasets/gsm8k"], "names no file: write hf://datasets/OWNER/NAME/FILE"),
        (["raw.jsonl", "--against", "answers.jsonl"], "answers.jsonl has no question (prompt, "),
        (["raw.jsonl", "--fields", "question=prompt"], "--fields question=prompt: write NAME="),
        (["raw.jsonl", "--rollouts", "0"], "'0' is no whole number above 0"),
        (["raw.jsonl", "--similarity", "2"], "'2' is more than 1"),
        (["raw.jsonl", "--model", "nowhere"], "no model folder nowhere"),
        (["raw.jsonl", "--strong-engine", "vllm"], "--strong-engine vllm without --strong: name"),
        (["raw.jsonl", "--model", ".", "--model-engine", "tgi"], "unknown engine 'tgi': it is nat"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    raw: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("What is 1 + 1?")
    (tmp_path / "cut.jsonl").write_text('{"prompt": "What')
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    write_jsonl(tmp_path / "answers.jsonl", [{"answer": "1"}])
    assert main(["curate", *arguments, "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
