"""Tiny models, and a run folder with hand-made data for the training stages."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openmimo.config.schema import ModelConfig, Recipe
from openmimo.data.documents import write_records
from openmimo.data.shards import write_shard
from openmimo.model.mimo import MiMo
from openmimo.runs import Run
from openmimo.tokenizer import Tokenizer

MODEL = {
    "vocab_size": 280,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
}

ROW = {
    "stage": "stage1",
    "learning_rate": [0.0, 1e-2],
    "batch": [1, 3],
    "length": 16,
    "rope_base": 10_000.0,
    "mtp_weight": 0.3,
    "mixture": {"general": 0.5, "math": 0.5},
}
LONG_ROW = ROW | {
    "stage": "stage3",
    "learning_rate": [1e-2, 1e-3],
    "shape": "cosine",
    "batch": [2, 2],
    "length": 32,
    "rope_base": 640_000.0,
    "mtp_weight": 0.1,
    "mixture": {"general": 0.2, "math": 0.5, "synthetic": 0.3},
}
TUNE = {"steps": 5, "batch": 2, "length": 48, "warmup_steps": 2, "learning_rate": 1e-2}

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "model": MODEL,
    "data": {"vocab_size": 280},
    # 5 steps of a growing batch, then 3 of twice the length.
    "pretrain": {
        "schedule": [ROW | {"until": 128}, LONG_ROW | {"until": 300}],
        "tokens_per_microbatch": 32,
        "checkpoint_every": 3,
    },
    "mtp_heads": TUNE | {"checkpoint_every": 2, "mixture": {"general": 0.3, "code": 0.7}},
    "sft": TUNE | {"checkpoint_every": 2, "tokens_per_microbatch": 64, "length": 64},
    "rl": {},
}


@pytest.fixture(scope="session")
def make_model() -> Callable[..., MiMo]:
    """`make_model(seed=0, **changes)`: weights large enough for every part to matter."""

    def make(seed: int = 0, **changes: Any) -> MiMo:
        values = {"num_nextn_predict_layers": 3, "initializer_range": 0.3}
        model = MiMo(ModelConfig(**MODEL | values | changes))
        model.init_weights(torch.Generator().manual_seed(seed))
        return model

    return make


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """Stages of 5 and 8 steps, with a checkpoint every 2 or 3."""
    return Recipe.model_validate(RECIPE)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["What is 1 + 1? It is 2.\n" * 20], 280)


@pytest.fixture
def make_run(tmp_path: Path, tokenizer: Tokenizer) -> Callable[[str], Run]:
    """`make_run(name)`: a run whose data stage is done; all have the same data."""

    def make(name: str) -> Run:
        run = Run(tmp_path / name)
        stage = run.stage("data", "hash of data")
        tokenizer.save(stage.dir / "tokenizer")
        random = np.random.default_rng(0)
        for source, low in (("general", 0), ("math", 70), ("code", 140), ("synthetic", 210)):
            lengths = random.integers(1, 40, size=12)
            documents = [random.integers(low, low + 70, size=n) for n in lengths]
            write_shard(stage.dir / "shards", source, documents, 280)
        samples = [{"prompt": f"What is {n} + 1?", "response": f"{n + 1}." * n} for n in range(9)]
        write_records(stage.dir / "sft.jsonl", samples)
        stage.finish()
        return run

    return make
