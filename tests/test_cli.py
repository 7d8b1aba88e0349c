"""The command line as a user meets it: mostly real processes, fed with mistakes."""

import os
import re
import resource
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from openmimo import cli
from openmimo.config.base import to_toml
from openmimo.config.load import load_config
from openmimo.config.schema import Recipe
from openmimo.errors import UserError
from openmimo.runs import Run

MIMO = [sys.executable, "-m", "openmimo.cli"]


def mimo(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MIMO, *arguments], cwd=folder, capture_output=True, text=True, timeout=60
    )


def assert_one_line(result: subprocess.CompletedProcess[str], message: str) -> None:
    assert result.returncode == 2
    assert re.fullmatch(r"mimo: error: [^\n]+\n", result.stderr)
    assert message in result.stderr


def test_help_is_instant_and_imports_nothing_heavy(tmp_path: Path) -> None:
    # Processor time, not wall time: other work on the machine must not fail this test.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = mimo("--help", folder=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
    assert result.returncode == 0
    for verb in (*cli.STAGES, "speedrun", "report", "chat"):
        assert f"\n    {verb}" in result.stdout
    code = (
        "import sys, openmimo.cli; openmimo.cli.main(['--help'])\n"
        "assert not {'torch', 'pydantic', 'numpy', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)


def test_the_installed_command_is_the_same(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("mimo")
    result = subprocess.run([command, "nonsense"], capture_output=True, text=True, timeout=60)
    assert_one_line(result, "invalid choice: 'nonsense'")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("trian", "invalid choice: 'trian'"),
        ("rl rl.learning_rte=1", "rl.learning_rte (command line); did you mean rl.learning_rate?"),
        ("rl --rl.learning-rate fast", "rl.learning_rate is 'fast' (command line): expected"),
        ("rl --sede 3", "unknown setting sede (command line); did you mean seed?"),
        ("rl --seed x", "seed is 'x' (command line): expected a valid integer"),
        ("rl --seed", "argument --seed: expected one argument"),
        ("rl extra", "cannot read 'extra'"),
        ("rl --recipe nan", "no recipe 'nan': the presets are mimo-7b, nano"),
        ("rl --recipe none.toml", "no recipe 'none.toml'"),
        ("rl --recipe x.toml --smoke", "--smoke goes with a preset"),
        ("rl --out .", "holds other files and is no run folder"),
        ("rl --out file", "cannot use file as a run folder"),
        ("sft --out new", "no run new: begin with `mimo data` or `mimo speedrun`"),
        ("sft --recipe=", "--recipe is empty"),
        ("data --seed -1", "seed is -1 (command line): expected"),
        ("report nowhere", "nowhere"),
        ("report", "the following arguments are required: RUN"),
        ("report nowhere --x 1", "mimo report takes no '--x'"),
        ("chat nowhere", "no folder nowhere"),
        ("chat . --temperature warm", "argument --temperature: invalid float value: 'warm'"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(
    tmp_path: Path, arguments: str, message: str
) -> None:
    (tmp_path / "file").write_text("")
    assert_one_line(mimo(*arguments.split(), folder=tmp_path), message)


def test_a_verbs_help_shows_its_settings(tmp_path: Path) -> None:
    result = mimo("rl", "--help", "rl.learning_rate=0.125", folder=tmp_path)
    assert result.returncode == 0
    assert "--recipe NAME|FILE" in result.stdout
    assert "\n  rl.learning_rate = 0.125\n      " in result.stdout
    assert "\n  pretrain." not in result.stdout
    assert "\n  pretrain." in mimo("speedrun", "--help", folder=tmp_path).stdout
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def only_data(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], None]:
    """Replaces the stage `data` by a function, so that the frame around it is what is tested."""

    def replace(run: Callable[..., None]) -> None:
        module = types.ModuleType("a_stage")
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "a_stage", module)
        monkeypatch.setitem(cli.STAGES, "data", cli.StageVerb("", "a_stage", ("data",)))

    return replace


def test_a_stage_runs_once_and_again_by_force(
    tmp_path: Path, only_data: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def stage(recipe: Any, run: Run) -> None:
        place = run.stage("data", f"seed {recipe.seed}")
        if not place.is_done():
            ran.append(recipe.seed)
            place.finish()

    only_data(stage)
    for words in ([], [], ["--force"], ["--seed", "3"], [], ["--recipe", "nano"]):
        assert cli.main(["data", "--out", str(tmp_path / "run"), *words]) == 0
    # Without --recipe the run's own config.toml counts, so seed 3 stays until it is named.
    assert ran == [0, 0, 3, 0]
    out = capsys.readouterr().out
    assert out.count("data: done, skipped\n") == 2
    assert len(re.findall(r"^data: \d+\.\d s$", out, re.MULTILINE)) == 4
    assert "data: starting over, because of --force" in out


def test_faults_of_the_machine_are_explained(
    tmp_path: Path, only_data: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(recipe: Any, run: Run) -> None:
        Path("/dev/full").write_text("x")

    def corrupt(recipe: Any, run: Run) -> None:
        (tmp_path / "w.safetensors").write_bytes(b"not a header")
        load_file(tmp_path / "w.safetensors")

    def forbidden(recipe: Any, run: Run) -> None:
        raise PermissionError(13, "Permission denied", "/etc/shadow")

    for stage, message in (
        (full, "no space left"),
        (corrupt, "a weights file is corrupt"),
        (forbidden, "no permission to write or read for /etc/shadow"),
    ):
        only_data(stage)
        assert cli.main(["data", "--out", str(tmp_path / "run")]) == 2
        assert message in capsys.readouterr().err


def test_bugs_keep_their_traceback(tmp_path: Path, only_data: Any) -> None:
    def stage(recipe: Any, run: Run) -> None:
        raise KeyError("a bug")

    only_data(stage)
    with pytest.raises(KeyError):
        cli.main(["data", "--out", str(tmp_path / "run")])


def test_ctrl_c_ends_with_130_after_the_step(
    tmp_path: Path, only_data: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = []

    def stage(recipe: Any, run: Run) -> None:
        run.stage("data", "x")
        os.kill(os.getpid(), signal.SIGINT)
        saved.append(run.interrupt.requested)

    only_data(stage)
    assert cli.main(["data", "--out", str(tmp_path / "run")]) == 130
    assert saved == [True]
    assert "the same command goes on" in capsys.readouterr().err


def test_ctrl_c_while_a_model_loads_promises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("openmimo.serving.serve.check_model", interrupted)
    assert cli.main(["serve", str(tmp_path), "--port", "0"]) == 130
    assert "goes on" not in capsys.readouterr().err


def finished(folder: Path, *stages: str) -> Run:
    """A run of nano in which these stages are done."""
    run = Run(folder)
    recipe = load_config(Recipe, "nano")
    (run.dir / "config.toml").write_text(to_toml(recipe))
    for stage in stages:
        run.stage(stage, "hash").finish()
    return run


def test_a_verb_refuses_settings_that_an_earlier_stage_was_not_made_with(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", "data", "pretrain")
    config = (run.dir / "config.toml").read_text()
    for stage, path in (
        ("pretrain", "model.hidden_size"),
        ("pretrain", "pretrain.schedule.0.until"),
        ("data", "seed"),
        ("data", "data.rl_problems"),
        ("data", "sft.responses_per_query"),
    ):
        result = mimo("mtp-heads", "--out", "run", f"{path}=3", folder=tmp_path)
        assert_one_line(result, f"the {stage} stage of run was made with another {path}")
        assert (run.dir / "config.toml").read_text() == config
    # Nothing was made with these, or no result depends on them.
    free = ["sft.steps=3", "rl.steps=2", "mtp_heads.steps=2", "pretrain.checkpoint_every=7"]
    recipe = load_config(Recipe, str(run.dir / "config.toml"), free)
    cli.check_stages_before("mtp-heads", recipe, run)


def test_rl_takes_its_own_settings_but_not_those_of_the_difficulty(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", "difficulty")
    for path, refused in (("rl.steps", False), ("rl.learning_rate", False), ("rl.levels", True)):
        recipe = load_config(Recipe, str(run.dir / "config.toml"), [f"{path}=1"])
        if refused:
            with pytest.raises(UserError, match=f"difficulty stage .* another {path}"):
                cli.check_stages_before("rl", recipe, run)
        else:
            cli.check_stages_before("rl", recipe, run)


def test_force_sets_aside_what_depends_on_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [name.replace("-", "_") for name in cli.STAGES]
    run = finished(tmp_path / "run", *names)
    monkeypatch.setattr(cli, "run_stage", lambda *_: None)
    assert cli.main(["rl", "--out", str(run.dir), "--force"]) == 0
    left = [name for name in names if (run.dir / "stages" / name).is_dir()]
    assert left == ["data", "pretrain", "mtp_heads", "sft", "difficulty", "rl_zero"]
    assert cli.main(["speedrun", "--out", str(run.dir), "--force"]) == 2
    assert "speedrun takes no --force" in capsys.readouterr().err


def test_a_reader_that_leaves_ends_the_command_quietly(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)  # it has left before the first line
    process = subprocess.run(
        [*MIMO, "rl", "--help"], cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, timeout=60
    )
    os.close(write)
    assert (process.returncode, process.stderr) == (141, b"")
