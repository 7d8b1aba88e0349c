"""A run folder up to the eval stage, with a model that is predictable and one that is not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from openmimo.config.load import load_config
from openmimo.config.schema import ModelConfig, Recipe
from openmimo.model.checkpoint import save_model
from openmimo.model.mimo import MiMo
from openmimo.runs import Run
from openmimo.tokenizer import Tokenizer

# Every token of it occurs once (its line ends are " \n", ";\n" and "```\n"), so that a model which
# knows only what follows each token can say it. It solves the problems below with answer 8 and 7.
PROGRAM = "```python \ndef f(xs): return 7;\n```\n"
ANSWER = PROGRAM + r"\boxed{8}"


def math(name: str, answer: str, tier: str = "train") -> dict[str, Any]:
    shared = {"id": name, "domain": "math", "family": "sums", "tier": tier}
    return shared | {"prompt": f"What is {name}?", "answer": answer}


def code(name: str, expected: int, tier: str = "train") -> dict[str, Any]:
    shared = {"id": name, "domain": "code", "family": "lists", "tier": tier}
    tests = [{"args": [[n, 1]], "expected": expected} for n in range(5)]
    prompt = f"Write a function f(xs) for {name}."
    return shared | {"prompt": prompt, "entry_point": "f", "tests": tests, "levels": None}


PROBLEMS = [
    math("m0", "8"), math("m1", "8"), math("m2", "9"), math("m3", "8", "hard"),
    code("c0", 7), code("c1", 6), code("c2", 7, "hard"), code("c3", 5, "hard"),
]  # fmt: skip


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    prompts = " ".join(problem["prompt"] for problem in PROBLEMS)
    return Tokenizer.train([f"assistant\nuser\n{ANSWER}\n{prompts}"] * 20, 380)


def make_model(vocab_size: int, seed: int) -> MiMo:
    config = ModelConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        num_nextn_predict_layers=3,
        initializer_range=0.3,
    )
    model = MiMo(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


@torch.no_grad()
def make_parrot(tokenizer: Tokenizer) -> MiMo:
    """A model that answers everything with ANSWER; its MTP layers know it too."""
    model = make_model(tokenizer.vocab_size, seed=0)
    words = [tokenizer.encode("\n")[-1], *tokenizer.encode(ANSWER), tokenizer.eos_id]
    assert len(set(words)) == len(words) <= 32
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.zero_()  # every block becomes the identity
    model.model.embed_tokens.weight.zero_()
    model.lm_head.weight.zero_()
    for index, word in enumerate(words):
        following = words[(index + 1) % len(words)]
        model.model.embed_tokens.weight[word, index] = 4
        model.lm_head.weight[following, index] = 4
    for layer in model.mtp_layers:
        layer.input_proj.weight.zero_()
        layer.input_proj.weight[:, 32:] = torch.eye(32)  # pass the token half through
    return model


@pytest.fixture(scope="session")
def parrot(tokenizer: Tokenizer) -> MiMo:
    return make_parrot(tokenizer)


def make_recipe(*overrides: str) -> Recipe:
    settings = ["eval.samples=3", "eval.max_new_tokens=30", "eval.slots=7", "eval.mtp_prompts=5"]
    return load_config(Recipe, "nano-smoke", [*settings, *overrides])


@pytest.fixture(name="make_recipe", scope="session")
def _make_recipe() -> Callable[..., Recipe]:
    return make_recipe


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, parrot: MiMo) -> Path:
    """A run that has done everything before eval. Base and RL-Zero are random, SFT and RL parrots.

    The random models have rows of the head that the tokenizer does not use, and that are by far
    the most likely.
    """
    run = Run(tmp_path_factory.mktemp("finished") / "run")
    random = make_model(tokenizer.vocab_size + 4, seed=1)
    with torch.no_grad():
        random.lm_head.weight[tokenizer.vocab_size :] *= 100
    models = {"data": None, "mtp_heads": random, "rl_zero": random, "sft": parrot, "rl": parrot}
    for name, model in models.items():
        stage = run.stage(name, f"{name} settings")
        if model is None:
            tokenizer.save(stage.dir / "tokenizer")
            (stage.dir / "problems").mkdir()
            lines = [json.dumps(problem) + "\n" for problem in PROBLEMS]
            (stage.dir / "problems" / "heldout.jsonl").write_text("".join(lines))
        else:
            save_model(model, stage.dir / "model", torch.float32)
        stage.finish()
    return run.dir


@pytest.fixture
def run(tmp_path: Path, finished: Path) -> Run:
    """A copy of `finished` to change."""
    return Run(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="session")
def problems() -> list[dict[str, Any]]:
    return PROBLEMS
