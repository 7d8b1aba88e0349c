"""The release stage on a run folder with tiny models, and what its model cards say."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from openmimo.config.base import Config
from openmimo.config.schema import ModelConfig
from openmimo.errors import UserError
from openmimo.metrics import MetricsWriter
from openmimo.model.checkpoint import load_release, save_model
from openmimo.model.mimo import MiMo
from openmimo.release import VARIANTS
from openmimo.release import run as run_release
from openmimo.runs import Run
from openmimo.tokenizer import Tokenizer

MODEL = ModelConfig(
    vocab_size=320,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    max_position_embeddings=256,
    num_nextn_predict_layers=3,
)


class Release(Config):
    dtype: str = "float32"


def recipe(dtype: str = "float32") -> Any:
    return SimpleNamespace(release=Release(dtype=dtype))


def score(value: float) -> dict[str, Any]:
    return {"pass_at_1": value, "low": value - 0.02, "high": value + 0.02, "n": 500, "samples": 4}


RESULTS = {
    "sampling": {"temperature": 0.6, "top_p": 0.95},
    "variants": {
        name: score(value)
        | {"by_domain": {"math": score(0.613)}, "by_tier": {"hard": score(0.157)}}
        for name, value in {"base": 0.2, "sft": 0.412, "rl_zero": 0.508, "rl": 0.733}.items()
    },
    "mtp": {"rl": {"acceptance": [0.914, 0.8, 0.66], "tokens_per_forward": 3.374}},
}


def finish(run: Run, name: str) -> None:
    run.stage(name, f"{name} settings").finish()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that has done everything but eval and release; each model has other weights."""
    run = Run(tmp_path / "run")
    stages = run.dir / "stages"
    Tokenizer.train(["What is 17 + 25? It is 42.\n" * 9], 300).save(stages / "data" / "tokenizer")
    for seed, name in enumerate(VARIANTS.values()):
        model = MiMo(MODEL)
        model.init_weights(torch.Generator().manual_seed(seed))
        save_model(model, stages / name / "model", torch.float32)
        with MetricsWriter(stages / name / "metrics.jsonl") as metrics:
            metrics.log(30, tokens=12_345, stage="x")
        (stages / name / "state.json").write_text(json.dumps({"config_hash": f"{name} settings"}))
        finish(run, name)
    with MetricsWriter(stages / "pretrain" / "metrics.jsonl") as metrics:
        for step, (stage, loss) in enumerate([("one", 5.0), ("one", 2.5), ("two", 1.25)], 1):
            row = {"seq_len": 256 * step, "rope_base": 10_000, "loss": loss}
            metrics.log(step, tokens=1_000_000 * step, stage=stage, **row)
    return run


def add_results(run: Run, results: Any = RESULTS) -> None:
    stage = run.stage("eval", "eval settings")
    (stage.dir / "results.json").write_text(json.dumps(results))
    stage.finish()


def card(run: Run, variant: str) -> str:
    return (run.dir / variant / "README.md").read_text()


def test_each_folder_holds_the_model_of_its_stage(run: Run) -> None:
    run_release(recipe(), run)
    for seed, variant in enumerate(VARIANTS):
        model, tokenizer = load_release(run.dir / variant)
        expected = MiMo(MODEL)
        expected.init_weights(torch.Generator().manual_seed(seed))
        for name, tensor in expected.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor), (variant, name)
        assert tokenizer.encode("42") == Tokenizer.load(run.dir / "stages/data/tokenizer").encode(
            "42"
        )
    assert run.done("release") is not None


def test_the_dtype_is_a_setting(run: Run) -> None:
    run_release(recipe("bfloat16"), run)
    model, _ = load_release(run.dir / "rl")
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert json.loads((run.dir / "rl" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_a_finished_release_is_skipped_until_something_changes(run: Run) -> None:
    add_results(run)
    run_release(recipe(), run)
    marker = run.dir / "rl" / "marker"
    marker.touch()
    run_release(recipe(), run)
    assert marker.exists()
    run_release(recipe("bfloat16"), run)
    assert not marker.exists()


def test_a_deleted_folder_comes_back(run: Run) -> None:
    run_release(recipe(), run)
    (run.dir / "sft").rename(run.dir / "away")
    run_release(recipe(), run)
    assert (run.dir / "sft" / "model.safetensors").exists()


def test_a_later_evaluation_gets_into_the_cards(run: Run) -> None:
    run_release(recipe(), run)
    assert "Not evaluated." in card(run, "rl")
    add_results(run)
    run_release(recipe(), run)
    assert "Not evaluated." not in card(run, "rl")


def test_an_unfinished_stage_is_named(run: Run) -> None:
    (run.dir / "stages" / "rl_zero" / "done.json").unlink()
    with pytest.raises(UserError, match="rl_zero stage"):
        run_release(recipe(), run)
    assert not (run.dir / "base").exists()


def test_a_missing_model_is_named(run: Run) -> None:
    (run.dir / "stages" / "sft" / "model" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"sft/model .*model.safetensors is missing"):
        run_release(recipe(), run)
    assert run.done("release") is None


def test_the_card_of_rl(run: Run) -> None:
    add_results(run)
    run_release(recipe(), run)
    text = card(run, "rl")
    assert text.startswith("---\nlicense: apache-2.0\n")
    assert "not Xiaomi's" in text
    assert "| **RL** | **73.3** | 71.3 to 75.3 | 500 | 4 |" in text
    assert "| RL-Zero | 50.8 | 48.8 to 52.8 | 500 | 4 |" in text
    assert "| math | 61.3 |" in text
    assert "| hard | 15.7 |" in text
    assert "temperature 0.6, top p 0.95" in text
    assert "91.4 %, 80.0 %, 66.0 %; 3.37 tokens" in text
    assert "| one | 2,000,000 | 512 | 10,000 | 2.500 |" in text
    assert "| two | 3,000,000 | 768 | 10,000 | 1.250 |" in text
    steps = re.findall(r"^\d\. (.*)$", text, flags=re.MULTILINE)
    assert [step.split()[0] for step in steps] == [
        "Pre-training",
        "The",
        "Supervised",
        "Reinforcement",
    ]
    assert "3,000,000 tokens" in steps[0]
    assert "30 steps" in steps[3]
    assert "mimo chat rl" in text
    assert "\n\n\n" not in text


def rewrite_done(run: Run, name: str, **facts: Any) -> None:
    path = run.dir / "stages" / name / "done.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | facts))


def test_the_card_says_what_the_run_started_from(run: Run) -> None:
    rewrite_done(run, "pretrain", init_from="smollm2")
    run_release(recipe(), run)
    text = card(run, "base")
    assert (
        "1. Started from the imported model `smollm2`; pre-training went on, with one MTP layer: "
        "3,000,000 tokens.\n" in text
    )
    assert "from nothing" not in text
    assert text.startswith("---\nlicense: other\n")
    assert "## Licence\n\nThat of `smollm2`, the model it started from.\n" in text
    assert "read little else" not in text


def test_without_further_pre_training_the_card_speaks_of_none(run: Run) -> None:
    rewrite_done(run, "pretrain", init_from="smollm2")
    (run.dir / "stages" / "pretrain" / "metrics.jsonl").write_text("")
    run_release(recipe(), run)
    assert "1. Started from the imported model `smollm2`.\n" in card(run, "base")
    assert "| pre-training |" not in card(run, "base")


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({}, "The MTP layer copied; the copies tuned to draft further ahead, the rest frozen:"),
        (
            {"layers": 1, "tune_first": True, "generations": 9},
            "The MTP layer tuned on the model's own answers, the rest frozen:",
        ),
        (
            {"layers": 3, "tune_first": True, "generations": 0},
            "The MTP layer copied; it and the copies tuned, the rest frozen:",
        ),
    ],
)
def test_the_card_says_which_mtp_layers_were_tuned(
    run: Run, facts: dict[str, Any], sentence: str
) -> None:
    rewrite_done(run, "mtp_heads", **facts)
    run_release(recipe(), run)
    assert f"2. {sentence} 12,345 tokens.\n" in card(run, "base")


def test_the_card_of_base_tells_no_other_models_story(run: Run) -> None:
    add_results(run)
    run_release(recipe(), run)
    text = card(run, "base")
    assert "Supervised" not in text
    assert "tokens a forward pass" not in text  # its drafts were not measured
    assert "| **Base** |" in text


@pytest.mark.parametrize("content", ["{", "[]", '{"variants": {"rl": {"pass_at_1": 0.5}}}'])
def test_damaged_results_are_named(run: Run, content: str) -> None:
    add_results(run)
    (run.dir / "stages" / "eval" / "results.json").write_text(content)
    with pytest.raises(UserError, match=r"stages.*repeat the stage"):
        run_release(recipe(), run)


def test_missing_metrics_are_said_to_be_missing(run: Run) -> None:
    for path in run.dir.glob("stages/*/metrics.jsonl"):
        path.unlink()
    run_release(recipe(), run)
    assert "tokens not recorded" in card(run, "rl")
    assert "steps not recorded" in card(run, "rl")


@pytest.mark.slow
def test_the_snippet_of_the_card_runs(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    run_release(recipe(), run)
    (snippet,) = re.findall(r"```python\n(.*?)```", card(run, "rl"), flags=re.DOTALL)
    short = snippet.replace("**prompt)", "**prompt, max_new_tokens=4)")
    drafted = short.replace("=4)", "=4, use_mtp=True)")
    done = subprocess.run(
        [sys.executable, "-c", f"{short}\n{drafted}\nprint('done')"],
        cwd=run.dir,
        # transformers copies remote code to its cache; keep it out of the user's home.
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.endswith("done\n"), done.stderr


def test_the_licence_of_the_model_it_went_on_from_goes_along(run: Run) -> None:
    papers = run.dir / "stages" / "pretrain" / "papers"
    papers.mkdir()
    (papers / "LICENSE").write_text("theirs")
    (papers / "ORIGINAL_README.md").write_text("their card")
    run_release(recipe(), run)
    assert (run.dir / "rl" / "LICENSE").read_text() == "theirs"
    assert (run.dir / "rl" / "ORIGINAL_README.md").read_text() == "their card"
