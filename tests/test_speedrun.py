"""The whole recipe end to end, as a user runs it, on the smoke preset."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openmimo.model.checkpoint import load_release

VARIANTS = ("base", "sft", "rl_zero", "rl")
STEPPING = ("pretrain", "mtp_heads", "sft", "rl_zero", "rl")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def mimo(*words: str) -> list[str]:
    return [sys.executable, "-m", "openmimo.cli", *words]


def speedrun(folder: Path) -> list[str]:
    return mimo("speedrun", "--smoke", "--out", str(folder), "--seed", "5")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speedrun") / "run"
    done = subprocess.run(speedrun(folder), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder


def test_it_ends_with_a_report_and_four_release_folders(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    for variant in VARIANTS:
        scores = report["variants"][variant]
        assert 0 <= scores["low"] <= scores["pass_at_1"] <= scores["high"] <= 1
        assert scores["n"] == 40
        model, tokenizer = load_release(finished / variant)
        assert len(model.mtp_layers) == 3
        assert model.rope_base == 640_000.0
        assert tokenizer.vocab_size <= model.config.vocab_size
    assert len(report["mtp_acceptance"]) == 3
    assert all(mtp["identical"] for mtp in report["mtp"].values())
    assert report["seconds"] > 0
    assert report["peak_memory_gb"] > 0
    assert (finished / "report.html").stat().st_size > 10_000


def test_repeating_the_command_repeats_no_stage(finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.glob("stages/*/done.json")}
    assert len(before) == 9
    again = subprocess.run(speedrun(finished), capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert before == {p: p.stat().st_mtime_ns for p in finished.glob("stages/*/done.json")}


def test_a_run_killed_in_every_stage_ends_with_the_same_weights(
    finished: Path, tmp_path: Path
) -> None:
    killed = tmp_path / "run"
    kills = 0
    for stage in STEPPING:
        process = subprocess.Popen(speedrun(killed), stdout=subprocess.DEVNULL)
        metrics = killed / "stages" / stage / "metrics.jsonl"
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            if metrics.exists() and metrics.read_bytes().count(b"\n") >= 2:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
        kills += process.wait(timeout=60) == -signal.SIGKILL
    assert kills >= 3, "the run was too quick to be killed"
    last = subprocess.run(speedrun(killed), capture_output=True, text=True, timeout=600)
    assert last.returncode == 0, last.stderr
    for stage in STEPPING:
        lines = (killed / "stages" / stage / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        assert steps == list(range(1, len(steps) + 1)), stage
    for variant in VARIANTS:
        for file in sorted((finished / variant).glob("*.safetensors")):
            assert file.read_bytes() == (killed / variant / file.name).read_bytes(), file


def test_the_released_model_answers_in_the_terminal(finished: Path) -> None:
    done = subprocess.run(
        mimo("chat", str(finished / "rl"), "--max-tokens", "16", "--seed", "1"),
        input="What is the sum of the digits of 123?\n",
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"COLUMNS": "80"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
