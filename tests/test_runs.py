import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openmimo.errors import UserError
from openmimo.runs import Interrupt, Run, atomic_dir, atomic_write, require_space


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A child that runs ``code``; tests read its lines and so know how far it is."""
    return subprocess.Popen(
        [sys.executable, "-uc", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_stage_is_done_only_with_the_same_settings(tmp_path: Path) -> None:
    with Run(tmp_path / "run") as run:
        stage = run.stage("data", "aaaa")
        assert not stage.is_done()
        assert run.done("data") is None
        stage.finish(documents=3)
        assert stage.is_done()
        assert run.stage("data", "aaaa").is_done()
        done = run.done("data")
    assert done is not None
    assert done["documents"] == 3
    assert done["config_hash"] == run.require("data") == "aaaa"
    assert 0 <= done["seconds"] < 5
    assert 0.01 < done["peak_memory_gb"] < 8
    assert done["finished"][:2] == "20"


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_set_the_stage_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], finished: bool
) -> None:
    with Run(tmp_path / "run") as run:
        for settings in ("aaaa", "bbbb", "cccc"):
            stage = run.stage("data", settings)
            assert [path.name for path in stage.dir.iterdir()] == ["state.json"]
            (stage.dir / "output").write_text(settings)
            if finished:
                stage.finish()
    assert (run.dir / "stages/data.old/output").read_text() == "bbbb"
    assert capsys.readouterr().out.count("data: starting over, because its settings") == 2


def test_the_same_settings_resume_in_place(tmp_path: Path) -> None:
    for _ in range(2):
        with Run(tmp_path / "run") as run:
            stage = run.stage("data", "aaaa")
            with (stage.dir / "output").open("a") as file:
                file.write("x")
    assert (stage.dir / "output").read_text() == "xx"


def test_seconds_add_up_over_resumes_and_memory_is_the_largest(tmp_path: Path) -> None:
    for _ in range(3):
        with Run(tmp_path / "run") as run:
            stage = run.stage("data", "aaaa")
            time.sleep(0.1)
    state = json.loads((stage.dir / "state.json").read_text())
    (stage.dir / "state.json").write_text(json.dumps({**state, "peak_memory_gb": 500}))
    with Run(tmp_path / "run") as run:
        run.stage("data", "aaaa").finish()
        done = run.done("data")
    assert done is not None
    assert 0.3 <= done["seconds"] < 3
    assert done["peak_memory_gb"] == 500


def test_a_damaged_marker_means_not_done(tmp_path: Path) -> None:
    with Run(tmp_path / "run") as run:
        run.stage("data", "aaaa").finish()
        for damaged in ("{", "[]", '{"documents": 3}'):
            (run.dir / "stages/data/done.json").write_text(damaged)
            with pytest.raises(UserError, match="is not finished"):
                run.require("data")
            assert not run.stage("data", "aaaa").is_done()


def test_an_unfinished_stage_is_named_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data stage of .*run is not finished: run `mimo data`"):
        Run(tmp_path / "run").require("data")


def test_folders_that_are_no_run_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="other files"):
        Run(tmp_path)
    with pytest.raises(UserError, match="cannot use"):
        Run(tmp_path / "file")
    with pytest.raises(UserError, match="cannot use"):
        Run(tmp_path / "file" / "inner")


HOLD = """
import os, sys, time
from openmimo.runs import Run
with Run(sys.argv[1]):
    if sys.argv[2] == "fork" and os.fork() == 0:
        time.sleep(60)
    print("held")
    time.sleep(60)
"""


def test_two_processes_cannot_share_a_run(tmp_path: Path) -> None:
    holder = python(HOLD, str(tmp_path / "run"), "alone")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"in use by process {holder.pid}"):
        Run(tmp_path / "run").__enter__()
    holder.kill()
    holder.communicate()
    with Run(tmp_path / "run"):
        pass


def test_a_surviving_worker_does_not_keep_the_lock(tmp_path: Path) -> None:
    holder = python("import os; os.setpgid(0, 0)\n" + HOLD, str(tmp_path / "run"), "fork")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    holder.wait()
    try:
        with Run(tmp_path / "run"):
            pass
    finally:
        os.killpg(holder.pid, signal.SIGKILL)  # the worker
        holder.communicate()


LOOP = """
import sys, time
from openmimo.runs import Run
with Run(sys.argv[1]) as run:
    print("ready")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (sys.argv[2] == "polite" and run.interrupt.requested):
        time.sleep(0.01)
    print("saved")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_lets_the_step_end(tmp_path: Path, number: signal.Signals) -> None:
    child = python(LOOP, str(tmp_path / "run"), "polite")
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(number)
    out, err = child.communicate(timeout=20)
    assert (out, child.returncode) == ("saved\n", 0)
    assert "Stopping after this step" in err


def test_the_second_signal_stops_at_once(tmp_path: Path) -> None:
    child = python(LOOP, str(tmp_path / "run"), "busy")
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.readline()
    child.send_signal(signal.SIGINT)
    child.stderr.readline()
    child.stderr.readline()
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=20)
    assert "saved" not in out
    assert "KeyboardInterrupt" in err


def test_interrupt_restores_the_handlers_and_can_raise() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupt() as interrupt:
        interrupt.check()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            interrupt.check()
    assert signal.getsignal(signal.SIGINT) is before


def test_atomic_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    for content in ("one", b"two"):
        atomic_write(tmp_path / "file", content)
    assert (tmp_path / "file").read_text() == "two"
    assert len(list(tmp_path.iterdir())) == 1


def test_atomic_dir_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "folder"

    def fill(content: str, fail: bool) -> None:
        with atomic_dir(target) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / content).write_text(content)
            assert not (target / "sub" / content).exists()
            if fail:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        fill("broken", fail=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "folder.tmp" / "left by a dead process").mkdir(parents=True)
    fill("first", fail=False)
    fill("second", fail=False)
    with pytest.raises(RuntimeError):
        fill("broken", fail=True)
    assert [path.name for path in (target / "sub").iterdir()] == ["second"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_space_is_checked_before_it_is_needed(tmp_path: Path) -> None:
    require_space(tmp_path, 1)
    with pytest.raises(UserError, match=r"1,000,000,000\.0 GB needed, [\d.,]+ GB free"):
        require_space(tmp_path, 10**18)


def test_a_finished_stage_without_its_files_is_done_again(tmp_path: Path) -> None:
    with Run(tmp_path / "run") as run:
        stage = run.stage("sft", "aaaa")
        (stage.dir / "model").mkdir()
        (stage.dir / "checkpoints").mkdir()
        stage.finish()
        (stage.dir / "checkpoints").rmdir()  # may go: nothing after the stage reads them
        assert run.stage("sft", "aaaa").is_done()
        (stage.dir / "model").rmdir()
        assert not run.stage("sft", "aaaa").is_done()


def test_a_kill_before_the_first_file_does_not_cost_the_folder_set_aside(tmp_path: Path) -> None:
    with Run(tmp_path / "run") as run:
        (run.stage("sft", "aaaa").dir / "weights").write_text("precious")
        run.stage("sft", "bbbb")
        for path in (run.dir / "stages" / "sft").iterdir():
            path.unlink()  # what a kill leaves between making the folder and its first file
        run.stage("sft", "bbbb")
    assert (run.dir / "stages" / "sft.old" / "weights").read_text() == "precious"


def test_a_finished_folder_set_aside_outlives_an_unfinished_one(tmp_path: Path) -> None:
    """--force, Ctrl-C, --force again: the finished model must not be gone."""
    with Run(tmp_path / "run") as run:
        stage = run.stage("sft", "aaaa")
        (stage.dir / "weights").write_text("finished")
        stage.finish()
        run.set_aside("sft", "of --force")
        (run.stage("sft", "aaaa").dir / "weights").write_text("half")
        run.set_aside("sft", "of --force")
    assert (run.dir / "stages" / "sft.old" / "weights").read_text() == "finished"
