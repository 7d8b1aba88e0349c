"""What a stage logs, from real runs of tiny models."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from openmimo import trackers
from openmimo.config.schema import ComputeConfig, Recipe
from openmimo.errors import UserError
from openmimo.metrics import read_metrics
from openmimo.model.checkpoint import save_model
from openmimo.model.mimo import MiMo
from openmimo.runs import Run
from openmimo.training import pretrain, sft
from openmimo.training.spikes import MOST_SKIPPED


@pytest.fixture
def pretrained(make_run: Callable[[str], Run], recipe: Recipe) -> Path:
    """The stage's folder after 8 steps, with checkpoints at 3, 6 and 8."""
    run = make_run("run")
    pretrain.run(recipe, run)
    return run.dir / "stages" / "pretrain"


def test_every_line_accounts_for_its_time_and_its_drafts(pretrained: Path) -> None:
    rows = read_metrics(pretrained / "metrics.jsonl")
    assert len(rows) == 8
    for row in rows:
        parts = {key: value for key, value in row.items() if key.startswith("time_")}
        assert parts.keys() == {
            "time_other",
            "time_data",
            "time_forward_backward",
            "time_update",
        }
        assert min(parts.values()) > 0
        assert row["tokens_per_second"] * sum(parts.values()) == pytest.approx(row["batch_tokens"])
        assert row["data_wait"] == pytest.approx(row["time_data"] / sum(parts.values()))
        assert 0 < row["mfu" if torch.cuda.is_available() else "peak_share"] < 1
        assert len(row["mtp_acceptance"]) == len(row["mtp_loss"]) == 1
        assert 0 <= row["mtp_acceptance"][0] <= 1
        assert (row["loss_spikes"], row["norm_spikes"], row["skipped"]) == (0, 0, 0)
    timed = sum(v for row in rows[1:] for key, v in row.items() if key.startswith("time_"))
    assert timed == pytest.approx(rows[-1]["time"] - rows[0]["time"], abs=0.1)  # all of it


def test_the_mixture_is_logged_at_checkpoints(pretrained: Path) -> None:
    rows = read_metrics(pretrained / "metrics.jsonl")
    mixtures = {row["step"]: row["mixture"] for row in rows if "mixture" in row}
    assert [*mixtures] == [3, 6, 8]
    assert all(sum(mixture.values()) == pytest.approx(1) for mixture in mixtures.values())
    final = json.loads((pretrained / "mixture.json").read_text())["mixture"]
    assert mixtures[8] == pytest.approx(final["stage3"]["realised"])
    assert mixtures[3].keys() == {"general", "math"}


@pytest.mark.parametrize(("keep", "kept"), [(1, [8]), (3, [3, 6, 8])])
def test_as_many_checkpoints_are_kept_as_the_settings_say(
    make_run: Callable[[str], Run], recipe: Recipe, keep: int, kept: list[int]
) -> None:
    run = make_run("run")
    compute = ComputeConfig(keep_checkpoints=keep)
    pretrain.run(recipe.model_copy(update={"compute": compute}), run)
    folders = sorted((run.dir / "stages" / "pretrain" / "checkpoints").iterdir())
    assert [folder.name for folder in folders] == [f"step-{step:09d}" for step in kept]


def test_a_source_that_was_never_read_is_said_aloud(
    make_run: Callable[[str], Run], recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *rest = recipe.pretrain.schedule
    mixture = {"general": 0.5, "math": 0.499999, "code": 0.000001}
    table = (first.model_copy(update={"mixture": mixture}), *rest)
    settings = recipe.pretrain.model_copy(update={"schedule": table})
    pretrain.run(recipe.model_copy(update={"pretrain": settings}), make_run("run"))
    assert "warning: stage1 never read code, although" in capsys.readouterr().out


def test_a_step_is_one_readable_line(
    make_run: Callable[[str], Run], recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain.run(recipe, make_run("run"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    head = r"pretrain \d/8  stage stage\d  loss \d[.\d]*"
    shape = head + r"  tok_s [\d,]+  (peak|mfu) \d+%  left \d:\d\d:\d\d"
    for line in lines:
        assert re.fullmatch(shape, line), line


def ready_for_sft(run: Run, model: MiMo) -> None:
    finished = run.stage("mtp_heads", "hash")
    save_model(model, finished.dir / "model", torch.float32)
    finished.finish()


def test_a_model_that_has_diverged_stops_the_stage(
    make_run: Callable[[str], Run], make_model: Callable[..., MiMo], recipe: Recipe
) -> None:
    run, model = make_run("run"), make_model()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(1e38)  # finite; its products are not
    ready_for_sft(run, model)
    long = recipe.sft.model_copy(update={"steps": 2 * MOST_SKIPPED})
    long_recipe = recipe.model_copy(update={"sft": long})
    run.interrupt.requested = True
    sft.run(long_recipe, run)
    run.interrupt.requested = False  # the second process goes on counting
    with pytest.raises(UserError, match=f"steps 1 to {MOST_SKIPPED} were all not finite"):
        sft.run(long_recipe, run)
    rows = read_metrics(run.dir / "stages" / "sft" / "metrics.jsonl")
    assert [row["skipped"] for row in rows] == [*range(1, MOST_SKIPPED)]
    assert rows[-1]["loss"] is None


class Kept:
    """A tracker that keeps what it gets."""

    def __init__(self, curve: trackers.Curve) -> None:
        self.curve, self.values = curve, dict[int, dict[str, float]]()

    def log(self, step: int, values: dict[str, float]) -> None:
        self.values[step] = values

    def close(self, failed: bool) -> None:
        self.values[-1] = {}


def test_trackers_get_the_numbers_of_every_step(
    make_run: Callable[[str], Run], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Kept] = []

    def opener(curve: trackers.Curve) -> Kept:
        opened.append(Kept(curve))
        return opened[-1]

    monkeypatch.setitem(trackers.OPENERS, "tensorboard", opener)
    run, compute = make_run("run"), ComputeConfig(trackers=("tensorboard",))
    pretrain.run(recipe.model_copy(update={"compute": compute}), run)
    [tracker] = opened
    assert tracker.curve.stage == "pretrain"
    assert [*tracker.values] == [*range(1, 9), -1]
    rows = read_metrics(run.dir / "stages" / "pretrain" / "metrics.jsonl")
    for row in rows:
        sent: dict[str, Any] = tracker.values[row["step"]]
        assert sent["loss"] == row["loss"]
        assert sent["mtp_acceptance/0"] == row["mtp_acceptance"][0]
    assert tracker.values[8]["mixture/math"] == rows[-1]["mixture"]["math"]


def test_a_missing_tracker_stops_the_stage_before_its_first_step(
    make_run: Callable[[str], Run], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    run, compute = make_run("run"), ComputeConfig(trackers=("wandb",))
    with pytest.raises(UserError, match=r"pip install 'openmimo\[wandb\]'"):
        pretrain.run(recipe.model_copy(update={"compute": compute}), run)
    assert read_metrics(run.dir / "stages" / "pretrain" / "metrics.jsonl") == []
