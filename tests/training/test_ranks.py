"""Several ranks, killed and resumed, do what one process does; a rank that is gone is named."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import openmimo
from openmimo.cli import main
from openmimo.config.base import to_toml
from openmimo.config.schema import ModelConfig, Recipe
from openmimo.metrics import read_metrics
from openmimo.runs import Run
from openmimo.training import pretrain
from openmimo.training.weights import stored_weights
from tests.training.conftest import MODEL

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(Path(openmimo.__file__).parents[1]),
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
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
main(["pretrain", "--out", str(folder), "pretrain.checkpoint_every=1"])
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
        env=ENVIRONMENT,
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


@pytest.mark.slow
def test_a_kill_with_a_checkpoint_in_flight_changes_no_bit(start: Callable[[str], Path]) -> None:
    """All of its files are written but it has no name yet, and training has gone on. What follows
    are a step of a larger batch and the next stage of the schedule."""
    plain, folder = start("plain"), start("killed")
    assert main(["pretrain", "--out", str(plain), "pretrain.checkpoint_every=1"]) == 0
    command = [sys.executable, "-c", IN_FLIGHT, str(folder), "2"]
    assert subprocess.run(command, timeout=LIMIT, env=ENVIRONMENT).returncode == -signal.SIGKILL
    assert len(steps(folder)) >= 3
    names = sorted(path.name for path in (folder / "stages/pretrain/checkpoints").iterdir())
    assert names == ["step-000000001", "step-000000002.tmp"]
    assert main(["pretrain", "--out", str(folder)]) == 0
    columns = ("step", "tokens", "lr", "loss", "mtp_loss", "mtp_acceptance", "grad_norm")
    expected, found = (
        [[record[column] for column in columns] for record in steps(run)] for run in (plain, folder)
    )
    assert found == expected
    weights = "stages/pretrain/model/model.safetensors"
    assert (folder / weights).read_bytes() == (plain / weights).read_bytes()


@pytest.mark.slow
def test_two_ranks_then_one_then_two(start: Callable[[str], Path], recipe: Recipe) -> None:
    """A rank dies and torchrun starts anew; SIGTERM stops both; one process makes a step; two ranks
    finish with another micro-batch. Steps of one and of three rows cannot be shared equally."""
    plain, folder = start("plain"), start("changing")
    assert main(["pretrain", "--out", str(plain)]) == 0

    two = torchrun(folder, options=("--max-restarts", "1"))
    wait_for_step(folder, 1, two)
    os.kill(workers(two)[1], signal.SIGKILL)
    wait_for_step(folder, 4, two)
    two.terminate()
    output = two.communicate(timeout=LIMIT)[0]
    assert "mimo: error: rank 0: no answer from rank 1: it has died or hangs" in output
    assert "mimo: stopped; the same command goes on from here" in output
    made = len(steps(folder))
    assert 4 <= made < 7
    assert (folder / f"stages/pretrain/checkpoints/step-{made:09d}").is_dir()

    run = Run(folder)
    run.interrupt.requested = True
    pretrain.run(recipe, run)
    assert len(steps(folder)) == made + 1

    again = torchrun(folder, "pretrain.tokens_per_microbatch=64")
    output = again.communicate(timeout=LIMIT)[0]
    assert again.returncode == 0, output
    assert Run(folder).done("pretrain")
    expected, found = steps(plain), steps(folder)
    assert [record["step"] for record in found] == list(range(1, 9))
    for want, have in zip(expected, found, strict=True):
        for key in ("loss", "mtp_loss", "grad_norm"):
            assert have[key] == pytest.approx(want[key], abs=1e-5)
        assert have["tokens"] == want["tokens"]
    mixtures = [(run / "stages/pretrain/mixture.json").read_text() for run in (plain, folder)]
    assert mixtures[0] == mixtures[1]


STEPS = """
import json, sys
from pathlib import Path
import numpy as np
import torch
from openmimo.config.schema import ComputeConfig, ModelConfig, OptimizerConfig
from openmimo.training.batch import Segment, Share, batch_rows
from openmimo.training.loss import Objective
from openmimo.training.optim import build_optimizer
from openmimo.training.parallel import prepare
from openmimo.training.step import train_step
from openmimo.training.throughput import StepClock
from openmimo.training.weights import empty_model, random_weights, save_weights
from openmimo.world import World

folder, config = Path(sys.argv[1]), ModelConfig(**json.loads(sys.argv[2]))
rows = [[Segment(np.arange(n, n + 24), loss_from=3 * n)] for n in range(5)]
with World.from_environment(timeout=60) as world:
    weights = random_weights(config, 0)
    module = prepare(empty_model(config), weights, Objective([0]), ComputeConfig(), world)
    optimizer = build_optimizer(module.model.named_parameters(), OptimizerConfig())
    batch = batch_rows([rows[n] for n in Share(world.rank, world.size).of(5)], 24, 0)
    def step():
        result = train_step(
            module, optimizer, batch, 5, 1e-3, 0.3, 0.1, 24, world, StepClock(world.device)
        )
        return [result.loss, *result.mtp_loss, result.norm]
    results = [step()]
    if world.rank == world.size - 1:
        spoil = lambda module, inputs, parts: parts._replace(total=parts.total * torch.nan)
        hook = module.register_forward_hook(spoil)
    results.append(step())
    if world.rank == world.size - 1:
        hook.remove()
    results += [step(), step()]
    save_weights(module.model, folder / "model", world)
    if world.main:
        (folder / "results.json").write_text(json.dumps(results))
"""


@pytest.mark.slow
def test_the_step_of_two_ranks_is_that_of_one_process(tmp_path: Path) -> None:
    """With a norm far above the clip, rows that cannot be shared equally, and a second step in
    which the gradient of the last rank alone is not finite: it changes nothing on either."""
    script = tmp_path / "steps.py"
    script.write_text(STEPS)
    config = ModelConfig(**MODEL | {"num_nextn_predict_layers": 1, "initializer_range": 0.3})
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    runs = []
    for name, options in (("one", []), ("two", torchrun)):
        folder = tmp_path / name
        folder.mkdir()
        command = [sys.executable, *options, str(script), str(folder), config.model_dump_json()]
        subprocess.run(command, check=True, timeout=LIMIT, env=ENVIRONMENT)
        runs.append(
            (
                json.loads((folder / "results.json").read_text()),
                dict(stored_weights(folder / "model", config)),
            )
        )
    (expected, weights), (found, others) = runs
    assert [math.isnan(result[-1]) for result in expected] == [False, True, False, False]
    assert expected[1][:-1] == expected[2][:-1] != expected[0][:-1]
    assert expected[0][-1] > 1
    for have, want in zip(found, expected, strict=True):
        assert have == pytest.approx(want, rel=1e-6, nan_ok=True)
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, atol=1e-6, rtol=0)


HANGS = """
import os, signal
from openmimo.world import World
with World.from_environment(timeout=5) as world:
    world.barrier()
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    try:
        world.barrier()
    except Exception as error:
        print(f"rank {world.rank}: {type(error).__name__}: {error}", flush=True)
        os._exit(2)
"""


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_in_time(tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--shutdown-timeout", "1", "--nproc-per-node", "3", str(tmp_path / "hangs.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=ENVIRONMENT)
    assert "rank 0: RankError: no answer from rank 1: it has died or hangs" in done.stdout


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
