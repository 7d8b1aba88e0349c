"""Tiny models with random weights in every tensor, so that no part can be left out unnoticed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from openmimo.config.schema import ModelConfig
from openmimo.model.mimo import MiMo
from openmimo.tokenizer import Tokenizer

from .damage import Pristine

# The attention is wider than the residual stream, so that no two sizes can be confused.
TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "num_nextn_predict_layers": 3,
}

MakeModel = Callable[..., MiMo]


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """`make_model(seed=0, **changes)`: a float32 model of the tiny shape with `changes`."""

    def make(seed: int = 0, **changes: Any) -> MiMo:
        model = MiMo(ModelConfig(**TINY | changes))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.normal_(std=0.3, generator=generator)
                if "norm" in name:
                    parameter += 1
        return model.eval()

    return make


@pytest.fixture
def ids() -> torch.Tensor:
    """Token ids [2, 24] of the tiny vocabulary."""
    return torch.randint(97, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A tokenizer of fewer than 304 tokens, the smallest size of a model for it."""
    return Tokenizer.train(["One and one is two. 1 + 1 = 2\n" * 20], 300)


@pytest.fixture(scope="session")
def pristine(
    make_model: MakeModel, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Pristine:
    """An undamaged folder in each stored type, to copy and damage."""
    return Pristine(tmp_path_factory.mktemp("pristine"), make_model(vocab_size=304), tokenizer)
