"""Several ranks, killed and resumed, do what one process does; a rank that is gone is named."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openmimo.cli import main
from openmimo.config.base import to_toml
from openmimo.config.schema import Recipe
from openmimo.metrics import read_metrics
from openmimo.runs import Run

LIMIT = 100
"""Seconds until a test gives up on a process."""

IN_FLIGHT = """
import os, signal, sys, time
from pathlib import Path
import openmimo.training.checkpoint as checkpoint
from openmimo.cli import main

folder, step = Path(sys.argv[1]), int(sys.argv[2])
publish = checkpoint.publish
def dies(partial, target):
    if target.name == f"step-{step:09d}":
        metrics = folder / "stages/pretrain/metrics.jsonl"
        while metrics.read_bytes().count(b"\\n") <= step:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    publish(partial, target)
checkpoint.publish = dies
main(["pretrain", "--out", str(folder)])
"""


@pytest.fixture
def start(make_run: Callable[[str], Run], recipe: Recipe) -> Callable[[str], Path]:
    """`start(name)`: the folder of a run in which pre-training is next."""

    def start(name: str) -> Path:
        folder = make_run(name).dir
        (folder / "config.toml").write_text(to_toml(recipe))
        return folder

    return start


def torchrun(folder: Path, *arguments: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *options]
    command += ["--nproc-per-node", "2", "-m", "openmimo", "pretrain", "--out", str(folder)]
    return subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


def steps(folder: Path) -> list[dict[str, Any]]:
    return read_metrics(folder / "stages" / "pretrain" / "metrics.jsonl")


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Return once the step is logged."""
    end = time.monotonic() + LIMIT
    while len(steps(folder)) < step:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.02)


def workers(process: subprocess.Popen[str]) -> list[int]:
    """The processes that torchrun has started, by rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {}
    for pid in map(int, children):
        for entry in Path(f"/proc/{pid}/environ").read_text().split("\0"):
            if entry.startswith("RANK="):
                ranks[int(entry.removeprefix("RANK="))] = pid
    return [ranks[rank] for rank in sorted(ranks)]


def kill_all(process: subprocess.Popen[str]) -> None:
    """A power cut: every rank and torchrun itself."""
    for pid in (*workers(process), process.pid):
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=LIMIT)


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 6])
def test_a_kill_with_a_checkpoint_in_flight_changes_no_bit(
    step: int, start: Callable[[str], Path]
) -> None:
    """All of its files are written but it has no name yet, and training has gone on: from a smaller
    batch to a larger one, or from one stage of the schedule to the next."""
    plain, folder = start("plain"), start("killed")
    assert main(["pretrain", "--out", str(plain)]) == 0
    died = subprocess.run([sys.executable, "-c", IN_FLIGHT, str(folder), str(step)], timeout=LIMIT)
    assert died.returncode == -signal.SIGKILL
    assert len(steps(folder)) > step
    names = sorted(path.name for path in (folder / "stages/pretrain/checkpoints").iterdir())
    assert names[-1] == f"step-{step:09d}.tmp"
    assert main(["pretrain", "--out", str(folder)]) == 0
    clocks = ("time", "tokens_per_second")
    for record in (expected := steps(plain)) + (found := steps(folder)):
        for clock in clocks:
            del record[clock]
    assert found == expected
    weights = "stages/pretrain/model/model.safetensors"
    assert (folder / weights).read_bytes() == (plain / weights).read_bytes()


@pytest.mark.slow
def test_two_ranks_then_one_then_two(start: Callable[[str], Path], recipe: Recipe) -> None:
    """Killed each time, resumed with another micro-batch, and with steps of one and of three rows,
    which two ranks cannot share equally."""
    plain, folder = start("plain"), start("changing")
    assert main(["pretrain", "--out", str(plain)]) == 0
    two = torchrun(folder)
    wait_for_step(folder, 4, two)
    kill_all(two)
    killed_at = len(steps(folder))
    one = subprocess.Popen(
        [sys.executable, "-m", "openmimo", "pretrain", "--out", str(folder)],
        stdout=subprocess.DEVNULL,
    )
    wait_for_step(folder, min(killed_at + 1, 7), one)
    one.kill()
    one.wait(LIMIT)
    again = torchrun(folder, "pretrain.tokens_per_microbatch=64")
    output = again.communicate(timeout=LIMIT)[0]
    assert again.returncode == 0, output
    expected, found = steps(plain), steps(folder)
    assert [record["step"] for record in found] == list(range(1, 9))
    for want, have in zip(expected, found, strict=True):
        assert have["loss"] == pytest.approx(want["loss"], abs=1e-5)
        assert have["mtp_loss"] == pytest.approx(want["mtp_loss"], abs=1e-5)
        assert have["grad_norm"] == pytest.approx(want["grad_norm"], rel=1e-4)
        assert have["tokens"] == want["tokens"]
    mixtures = [
        json.loads((run / "stages/pretrain/mixture.json").read_text()) for run in (plain, folder)
    ]
    assert mixtures[0] == mixtures[1]
    done = [(run / "stages/pretrain/done.json").is_file() for run in (plain, folder)]
    assert done == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_died_or_hangs_is_named(number: int, start: Callable[[str], Path]) -> None:
    folder = start("run")
    process = torchrun(folder, "compute.collective_timeout=3", options=("--shutdown-timeout", "8"))
    wait_for_step(folder, 1, process)
    os.kill(workers(process)[1], number)
    output = process.communicate(timeout=LIMIT)[0]
    assert process.returncode != 0
    errors = [line for line in output.splitlines() if line.startswith("mimo: error")]
    assert len(errors) == 1, output
    assert "rank 0: no answer from rank 1: it has died or hangs" in errors[0]


@pytest.mark.slow
def test_torchrun_restarts_and_stops_like_one_process(start: Callable[[str], Path]) -> None:
    """One restart after a death; then SIGTERM stops both ranks after the same step."""
    folder = start("run")
    process = torchrun(folder, options=("--max-restarts", "1"))
    wait_for_step(folder, 1, process)
    os.kill(workers(process)[0], signal.SIGKILL)
    output = process.communicate(timeout=LIMIT)[0]
    assert process.returncode == 0, output
    assert [record["step"] for record in steps(folder)] == list(range(1, 9))


@pytest.mark.parametrize("verb", ["data", "speedrun", "rl", "eval", "report"])
def test_what_works_in_one_process_refuses_several(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    arguments = [verb, str(tmp_path)] if verb == "report" else [verb, "--out", str(tmp_path / "x")]
    assert main(arguments) == 2
    assert f"mimo: error: rank 1: mimo {verb} works in one process" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
