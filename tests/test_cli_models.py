"""The verbs on model folders as a user meets them, mistakes included."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from openmimo.cli import main
from openmimo.model.checkpoint import load_model, write_model
from openmimo.model.mimo import MiMo
from openmimo.tokenizer import Tokenizer

from .interop.conftest import FAMILIES, make_foreign
from .model.conftest import make_model, tokenizer
from .test_release import run  # a run of tiny models

__all__ = ["make_model", "run", "tokenizer"]  # fixtures


@pytest.fixture
def release(make_model: Callable[..., MiMo], tokenizer: Tokenizer, tmp_path: Path) -> Path:
    folder = tmp_path / "release"
    folder.mkdir()
    write_model(make_model(vocab_size=304), folder, torch.float32, tokenizer)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Card\n")
    return folder


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a wrong command ends with."""
    assert main([str(argument) for argument in arguments]) == 2
    line = capsys.readouterr().err
    assert line.startswith("mimo: error: ")
    assert line.count("\n") == 1
    return line


def test_import_says_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_foreign(tmp_path / "theirs", **FAMILIES["llama tied"])
    source, target = str(tmp_path / "theirs"), str(tmp_path / "ours")
    assert main(["import", source, target, "--add-mtp", "--dtype", "bfloat16"]) == 0
    said = capsys.readouterr().out
    for words in ("theirs (llama) is now", "two equal ones", "no bias", "fresh MTP", "rounded to b",
                  "no tokenizer"):  # fmt: skip
        assert words in said
    assert load_model(target).lm_head.weight.dtype == torch.bfloat16


def test_a_model_goes_to_every_program(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for form, words in {
        "hf": "from_pretrained",
        "vllm": '"num_speculative_tokens": 1',
        "qwen2": "vllm serve",
    }.items():
        target = tmp_path / form
        assert main(["export", str(release), str(target), "--to", form]) == 0
        said = capsys.readouterr().out
        assert f"wrote {target}" in said
        assert words in said
    assert "This copy leaves out 3 MTP layers" in (tmp_path / "qwen2" / "README.md").read_text()
    header = (tmp_path / "qwen2" / "README.md").read_text().splitlines()[:3]
    assert header == ["---", "license: mit", "---"]
    assert (tmp_path / "hf" / "README.md").read_text() == (release / "README.md").read_text()


def test_a_model_without_mtp_is_served_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_foreign(tmp_path / "theirs", **FAMILIES["qwen2"])
    assert main(["import", str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 0
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "out"), "--to", "vllm"]) == 0
    assert "speculative" not in capsys.readouterr().out


def test_a_run_exports_its_variants(run: object, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run.dir  # type: ignore[attr-defined]
    assert main(["export", str(folder), "--to", "qwen2"]) == 0
    made = {path.name for path in (folder / "qwen2").iterdir()}
    assert made == {"base", "sft", "rl_zero", "rl"}
    config = json.loads((folder / "qwen2" / "rl" / "config.json").read_text())
    assert (config["model_type"], config["torch_dtype"]) == ("qwen2", "bfloat16")
    assert "Not evaluated" in (folder / "qwen2" / "rl" / "README.md").read_text()
    one = folder.parent / "mine"
    assert main(["export", str(folder), str(one), "--variant", "sft", "--dtype", "float32"]) == 0
    expected = load_model(folder / "stages" / "sft" / "model").state_dict()
    got = load_model(one).state_dict()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


def test_mistakes_are_one_line(
    release: Path, run: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, folder = tmp_path / "out", run.dir  # type: ignore[attr-defined]
    assert "TARGET" in fails(capsys, "export", release)
    assert "no folder" in fails(capsys, "export", tmp_path / "none", out)
    assert "--variant" in fails(capsys, "export", release, out, "--variant", "rl")
    assert "exists already" in fails(capsys, "export", release, release)
    assert "invalid choice" in fails(capsys, "export", release, out, "--to", "onnx")
    assert "above 0" in fails(capsys, "export", release, out, "--shard-gb", "0")
    assert "above 0" in fails(capsys, "import", release, out, "--shard-gb", "nan")
    assert "takes no" in fails(capsys, "import", release, out, "model.hidden_size=3")
    assert "no folder or file" in fails(capsys, "import", tmp_path / "none", out)
    assert "has an MTP layer already" in fails(capsys, "import", release, out, "--add-mtp")
    assert "cannot make the folder" in fails(capsys, "import", release, "/proc/none")
    assert "cannot make the folder" in fails(capsys, "export", release, "/proc/none")
    (tmp_path / "text.txt").write_text("hello")
    assert "neither" in fails(capsys, "import", tmp_path / "text.txt", out)
    (folder / "stages" / "rl" / "model" / "config.json").write_text("{")
    assert "config.json" in fails(capsys, "export", folder, "--variant", "rl", "--to", "vllm")
    assert not out.exists()


def test_help_of_the_model_verbs_imports_nothing_heavy() -> None:
    code = (
        "import sys, openmimo.cli\n"
        "for verb in ('import', 'export'):\n"
        "    try: openmimo.cli.main([verb, '--help'])\n"
        "    except SystemExit: pass\n"
        "assert not {'torch', 'pydantic', 'numpy', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)
