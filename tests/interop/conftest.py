"""Tiny random models of other projects, made by transformers, as folders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ..model.conftest import make_model, pristine, tokenizer
from .gguf_files import hard_texts, smollm2, write_gguf_file

# Fixtures.
__all__ = ["hard_texts", "make_model", "pristine", "smollm2", "tokenizer", "write_gguf_file"]

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {"model_type": "qwen2"},
    "qwen2 tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2 linear": {
        "model_type": "qwen2",
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    },
    "llama": {"model_type": "llama", "head_dim": 10, "rms_norm_eps": 1e-5},
    "llama tied": {"model_type": "llama", "tie_word_embeddings": True, "num_key_value_heads": 4},
    "llama 3": {"model_type": "llama", "rope_parameters": LLAMA3},
}

Make = Callable[..., Path]


def make_foreign(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A random model of transformers with every weight drawn; saved to `folder`."""
    transformers = pytest.importorskip("transformers")
    settings = SIZES | changes
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
            if "norm" in name:
                parameter += 1
    model.save_pretrained(folder)
    return model


def edit_config(folder: Path, **changes: Any) -> None:
    """Change keys of config.json; a value of ... removes the key."""
    path = folder / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: v for key, v in content.items() if v is not ...}))


@pytest.fixture
def long_ids() -> torch.Tensor:
    """Token ids [2, 100]: longer than the original context of `LLAMA3`."""
    return torch.randint(97, (2, 100), generator=torch.Generator().manual_seed(1))
