"""The whole recipe from an imported model, as a user runs it, with the smoke preset's settings."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from openmimo.model.checkpoint import load_model, load_release
from openmimo.tokenizer import Tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SETTINGS = """
extends = "nano-smoke"
name = "continued"
init_from = "imported"
[pretrain]
schedule = []
[mtp_heads]
layers = 2
tune_first = true
generations = 12
generation_tokens = 16
"""


def mimo(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "openmimo.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small Llama, its tokenizer, and a recipe that goes on from its import."""
    transformers = pytest.importorskip("transformers")
    place = tmp_path_factory.mktemp("place")
    tokenizer = Tokenizer.train(["What is 17 + 25? It is 42.\ndef f(x): return x\n" * 20], 320)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=48, intermediate_size=96, head_dim=16,
        num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1, rope_theta=30_000.0,
        max_position_embeddings=1024, tie_word_embeddings=True, rms_norm_eps=1e-6,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(place / "llama")
    tokenizer.save(place / "llama")
    mimo(place, "import", "llama", "imported", "--add-mtp")
    model = "".join(
        f"{name} = {value}\n"
        for name, value in load_model(place / "imported").config
        if value is not None and name != "mtp_hidden" and not isinstance(value, bool)
    )
    (place / "recipe.toml").write_text(f"{SETTINGS}[model]\n{model}")
    return place


def test_a_run_from_an_imported_model(place: Path) -> None:
    mimo(place, "speedrun", "--recipe", "recipe.toml", "--out", "run")
    run = place / "run"
    start = load_model(place / "imported")
    base, tokenizer = load_release(run / "base")
    assert base.rope_base == 30_000.0
    assert len(base.mtp_layers) == 2
    theirs = start.state_dict()
    for name, tensor in base.state_dict().items():
        if ".mtp_layers." not in name:
            assert torch.equal(tensor, theirs[name].to(tensor.dtype)), name
    sft, _ = load_release(run / "sft")
    assert not torch.equal(sft.lm_head.weight, base.lm_head.weight)
    own = Tokenizer.load(place / "imported")
    assert tokenizer.encode("What is 17 + 25?") == own.encode("What is 17 + 25?")

    report = json.loads((run / "report.json").read_text())
    assert report["missing"] == []
    assert report["variants"].keys() == {"base", "sft", "rl_zero", "rl"}
    card = (run / "rl" / "README.md").read_text()
    assert "1. Started from the imported model `imported`." in card
    assert "from nothing" not in card

    before = {p: p.stat().st_mtime_ns for p in run.glob("stages/*/done.json")}
    assert "mtp-heads: done, skipped" in mimo(place, "speedrun", "--out", "run")
    assert before == {p: p.stat().st_mtime_ns for p in run.glob("stages/*/done.json")}
