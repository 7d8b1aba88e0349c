"""The trackers for real, without a network: each test reads back what its package has stored."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from openmimo import trackers
from openmimo.errors import UserError
from openmimo.trackers import Trackers, scalars

KILLED_AT, CHECKPOINT, LAST = 7, 5, 9

DRIVER = """
import os, signal, sys, time
from pathlib import Path
from openmimo.trackers import Trackers
name, run, first, last, kill = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:6])
stage = run / "stages" / "pretrain"
stage.mkdir(parents=True, exist_ok=True)
with Trackers([name], run, stage, first) as tracker:
    for step in range(first + 1, last + 1):
        tracker.log(step, {"loss": 10 / step, "mtp_loss": [1.0], "stage": "one"})
    if kill:
        time.sleep(1.5)  # trackio writes twice a second
        os.kill(os.getpid(), signal.SIGKILL)
"""


def follow(name: str, folder: Path) -> Path:
    """A run that is killed after step 7 and resumed from step 5; its folder."""
    pytest.importorskip(name, reason=f"needs {name}, see pyproject.toml")
    run = folder / "run"
    env = os.environ | {"WANDB_MODE": "offline", "TRACKIO_DIR": str(folder / "trackio")}
    for first, last, kill in ((0, KILLED_AT, 1), (CHECKPOINT, LAST, 0)):
        command = [sys.executable, "-c", DRIVER, name, run, first, last, kill]
        done = subprocess.run(
            [str(part) for part in command], env=env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == (-signal.SIGKILL if kill else 0), done.stderr
        assert "warning" not in done.stderr
    return run


@pytest.mark.slow
def test_tensorboard_shows_every_step_once(tmp_path: Path) -> None:
    run = follow("tensorboard", tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard" / "pretrain"))
    events.Reload()
    points = {event.step: event.value for event in events.Scalars("loss")}
    assert [event.step for event in events.Scalars("mtp_loss/0")] == [*range(1, LAST + 1)]
    assert points == {step: pytest.approx(10 / step) for step in range(1, LAST + 1)}
    assert sorted(events.Tags()["scalars"]) == ["loss", "mtp_loss/0"]


@pytest.mark.slow
def test_trackio_has_every_step_once_in_one_run(tmp_path: Path) -> None:
    run = follow("trackio", tmp_path)
    database = sqlite3.connect(tmp_path / "trackio" / "openmimo.db")
    rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
    assert [step for _, step, _ in rows] == [*range(1, LAST + 1)]
    key = json.loads((run / "stages" / "pretrain" / "trackers.json").read_text())["key"]
    assert {name for name, _, _ in rows} == {f"run-pretrain-{key}"}
    assert json.loads(rows[-1][2]) == {"loss": pytest.approx(10 / LAST), "mtp_loss/0": 1.0}


@pytest.mark.slow
def test_wandb_offline_keeps_the_id_and_the_steps(tmp_path: Path) -> None:
    run = follow("wandb", tmp_path)
    first, second = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    assert first.name == second.name  # of the run's id: one curve once both are sent
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(second)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    records = [json.loads(line) for line in shown.stdout.splitlines()]
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [item["_step"] for item in items] == [*range(CHECKPOINT + 1, LAST + 1)]
    assert items[-1]["loss"] == pytest.approx(10 / LAST)


@pytest.mark.parametrize("name", trackers.OPENERS)
def test_a_missing_package_is_named_before_the_training(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (name, "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"pip install 'openmimo\[{name}\]'"):
        Trackers([name], tmp_path, tmp_path, 0)


class Failing:
    """A tracker that fails from its second step on."""

    def __init__(self, _: object) -> None:
        self.calls: list[str] = []

    def log(self, step: int, values: dict[str, float]) -> None:
        self.calls.append("log")
        if len(self.calls) > 1:
            raise ConnectionError("no route to host\nand a page of details")

    def close(self, failed: bool) -> None:
        self.calls.append("close")


class Keeping(Failing):
    """A tracker that works."""

    def log(self, step: int, values: dict[str, float]) -> None:
        self.calls.append(f"{step} {values}")

    def close(self, failed: bool) -> None:
        self.calls.append(f"failed={failed}")


@pytest.fixture
def sinks(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    made: dict[str, Any] = {}

    def opener(name: str, kind: type) -> Any:
        return lambda curve: made.setdefault(name, kind(curve))

    openers = {"bad": opener("bad", Failing), "good": opener("good", Keeping)}
    monkeypatch.setattr(trackers, "OPENERS", openers)
    return made


def test_a_failing_tracker_is_left_out_with_one_warning(
    sinks: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Trackers(["bad", "good"], tmp_path, tmp_path, 0) as all_trackers:
        for step in range(1, 6):
            all_trackers.log(step, {"loss": 1.5})
    assert sinks["bad"].calls == ["log", "log"]
    assert sinks["good"].calls == [*(f"{n} {{'loss': 1.5}}" for n in range(1, 6)), "failed=False"]
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1
    assert "bad failed (ConnectionError: no route to host)" in warnings[0]


def test_a_tracker_that_cannot_start_is_left_out(
    sinks: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def refuse(curve: object) -> None:
        raise PermissionError("not logged in")

    monkeypatch.setitem(trackers.OPENERS, "bad", refuse)
    with Trackers(["bad", "good"], tmp_path, tmp_path, 0) as all_trackers:
        all_trackers.log(1, {"loss": 1.5})
    assert "not logged in" in capsys.readouterr().err
    assert len(sinks["good"].calls) == 2


def test_an_error_of_the_training_marks_the_curve_as_failed(
    sinks: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ZeroDivisionError), Trackers(["good"], tmp_path, tmp_path, 0):
        _ = 1 / 0
    assert sinks["good"].calls == ["failed=True"]


def test_a_resumed_stage_keeps_its_curve_and_a_new_one_gets_another(tmp_path: Path) -> None:
    def key(first: int) -> str:
        curve = trackers._curve(tmp_path, tmp_path, first)
        assert (curve.stage, curve.first) == (tmp_path.name, first)
        return curve.key

    begun = key(0)
    assert key(5) == begun
    assert key(9) == begun
    again = key(0)
    assert again != begun
    (tmp_path / "trackers.json").write_text("torn")
    assert key(5) != again


def test_without_trackers_nothing_is_written(tmp_path: Path) -> None:
    with Trackers([], tmp_path, tmp_path, 3) as none:
        none.log(1, {"loss": 1.0})
    assert [*tmp_path.iterdir()] == []


def test_what_is_sent_are_finite_numbers_with_flat_names() -> None:
    values = {
        "loss": 2, "stage": "one", "none": None, "flag": True, "nan": float("nan"),
        "mtp_loss": [0.5, float("inf"), 1.5], "mixture": {"math": 0.25, "shares": (1, 2)},
    }  # fmt: skip
    assert scalars(values) == {
        "loss": 2, "mtp_loss/0": 0.5, "mtp_loss/2": 1.5,
        "mixture/math": 0.25, "mixture/shares/0": 1, "mixture/shares/1": 2,
    }  # fmt: skip
