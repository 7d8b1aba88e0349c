"""`mimo plan` as a user meets it, fed with mistakes."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from openmimo import cli
from openmimo.data.shards import write_shard


@dataclass(frozen=True)
class Result:
    returncode: int
    stdout: str
    stderr: str


class Plan:
    """`mimo plan` in an empty folder, which is the current one."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, words: str) -> Result:
        code = cli.main(["plan", *shlex.split(words)])
        return Result(code, *self._capsys.readouterr())

    def json(self, words: str) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self(f"{words} --json -").stdout)
        return record


@pytest.fixture
def plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Plan:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return Plan(capsys)


def shards(run: Path, **tokens: int) -> None:
    for source, count in tokens.items():
        write_shard(run / "stages" / "data" / "shards", source, [[1] * count], vocab_size=100)


def test_the_preset_of_the_report(tmp_path: Path, plan: Plan) -> None:
    result = plan("mimo-7b --gpus 128 --price 2.5")
    assert (result.returncode, result.stderr) == (0, "")
    assert "7,833,409,536 parameters" in result.stdout
    # Rows of the schedule, of the times and of the memory.
    assert re.search(r"stage1 +10\.284T +10\.116T +482,369 +1\.07e-4 +2,560 ", result.stdout)
    assert re.search(r"stage3 +23\.784T .* 640K 0\.1 ", result.stdout)
    assert re.search(r"pretrain +23\.784T 1,156,410 1\.34e\+24 +306\.3 days", result.stdout)
    assert re.search(r"longest row that fits +[0-9,]+ tokens", result.stdout)
    assert "nothing found that would stop it" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert list(tmp_path.iterdir()) == []


def test_torch_is_not_imported(tmp_path: Path) -> None:
    code = (
        "import sys, openmimo.cli\n"
        "assert openmimo.cli.main(['plan', 'mimo-7b', '--gpus', '128']) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=tmp_path, stdout=subprocess.DEVNULL
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the following arguments are required: RECIPE"),
        ("nan", "no recipe 'nan': the presets are mimo-7b, nano"),
        ("nano --gpu H1000", "no GPU 'H1000' in the table: it has A100-40"),
        ("nano --gpu Z --peak 9", "no GPU 'Z' in the table"),
        ("nano --gpus 0", "argument --gpus: 0 is not from 1 to 1e+06"),
        ("nano --gpus two", "argument --gpus: 'two' is no whole number"),
        ("nano --gpus -3", "argument --gpus"),
        ("nano --mfu 40", "argument --mfu: 40 is not from 1e-06 to 1"),
        ("nano --mfu nan", "argument --mfu: nan is not from"),
        ("nano --price free", "argument --price: 'free' is no number"),
        ("nano --stage rl", "argument --stage: invalid choice: 'rl'"),
        ("nano sft.stepz=3", "unknown setting sft.stepz (command line); did you mean sft.steps?"),
        ("nano extra", "cannot read 'extra'"),
        ("x.toml --smoke", "--smoke goes with a preset"),
        ("nano --json no/where.json", "cannot write no/where.json"),
        ("nano --gpus 2 --ranks 4", "4 ranks need as many GPUs, and there are 2"),
        ("nano --out new", "no data in new/stages/data: make it with `mimo data`"),
        ("mimo-7b --gpus 8 --gpu L4 --stage sft", "sft does not fit: a rank needs "),
        ("nano --gpus 8 --stage sft", "sft: 4 sequences a step do not divide by 8 ranks"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(plan: Plan, arguments: str, message: str) -> None:
    result = plan(arguments)
    assert result.returncode == 2
    assert re.fullmatch(r"mimo: error: [^\n]+\n", result.stderr)
    assert message in result.stderr


def test_overrides_change_the_plan(plan: Plan) -> None:
    once = plan.json("nano sft.steps=150")
    twice = plan.json("nano --sft.steps 300")
    assert twice["stages"]["sft"]["flops"] == 2 * once["stages"]["sft"]["flops"]
    assert twice["stages"]["pretrain"] == once["stages"]["pretrain"]


def test_a_file_of_the_user_and_a_gpu_of_the_user(tmp_path: Path, plan: Plan) -> None:
    (tmp_path / "own.toml").write_text('extends = "nano"\nname = "own"\n[sft]\nsteps = 7\n')
    gpu = "--gpu mine --peak 50 --memory 10 --mfu 0.5"
    record = plan.json(f"own.toml {gpu} --stage sft")
    assert (record["recipe"], list(record["stages"])) == ("own", ["sft"])
    assert record["stages"]["sft"]["steps"] == 7
    cluster = record["cluster"]
    assert (cluster["gpu"], cluster["peak"], cluster["memory"]) == ("mine", 50e12, 10e9)
    seconds = record["stages"]["sft"]["flops"] / (50e12 * 0.5)
    assert record["stages"]["sft"]["seconds"] == pytest.approx(seconds)


def test_the_fewest_gpus_that_suffice_are_taken(plan: Plan) -> None:
    assert plan.json("nano")["cluster"]["ranks"] == 1
    ranks = plan.json("mimo-7b")["cluster"]["ranks"]
    assert ranks > 1
    fewer = plan(f"mimo-7b --gpus {ranks // 2}")
    assert f"{ranks} GPUs" in fewer.stderr


def test_data_that_is_there_is_counted_and_what_is_missing_named(
    tmp_path: Path, plan: Plan
) -> None:
    run = tmp_path / "runs" / "nano"
    shards(run, general=900_000, math=900_000, code=900_000, synthetic=10_000)
    assert plan("nano").returncode == 0
    record = plan.json("nano")
    synthetic = [each for each in record["sources"] if each["source"] == "synthetic"]
    assert [each["stored"] for each in synthetic] == [10_000, 10_000]
    assert synthetic[0]["epochs"] == synthetic[0]["wanted"] / 10_000
    assert any("reads 'synthetic' 5.0 times" in note for note in record["notes"])

    (run / "stages" / "data" / "shards" / "math.json").unlink()
    result = plan("nano")
    assert result.returncode == 2
    assert "math.json is missing" in result.stderr
    # A source that no mixture names is not asked for.
    rows = [f"pretrain.schedule.{row}.mixture={{general=1.0}}" for row in range(6)]
    others = plan(f"nano {' '.join(rows)} mtp_heads.mixture={{general=1.0}}")
    assert others.returncode == 0, others.stderr

    shards(run, math=900_000)
    with (run / "stages" / "data" / "shards" / "math.bin").open("r+b") as file:
        file.truncate(1000)
    assert "was cut short" in plan("nano").stderr
    shutil.rmtree(run)
    assert "no data in runs/nano" in plan("nano").stdout


@pytest.mark.parametrize("columns", [40, 200])
def test_any_width(plan: Plan, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    result = plan("nano")
    assert result.returncode == 0
    assert max(map(len, result.stdout.splitlines())) <= columns


def test_a_terminal_without_unicode(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "openmimo.cli", "plan", "nano"],
        cwd=tmp_path, capture_output=True, timeout=60,
        env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, b"")
