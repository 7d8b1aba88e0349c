"""Small random models, random requests, and an engine-free reference for generation."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from openmimo.config.schema import ModelConfig
from openmimo.inference.protocol import Request
from openmimo.inference.sampling import Settings, draw, log_probabilities, uniforms
from openmimo.model.mimo import MiMo


def make_model(seed: int = 0, **changes: object) -> MiMo:
    """A tiny model with weights large enough for its outputs to vary, in every tensor."""
    values: dict[str, object] = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "num_nextn_predict_layers": 3,
        "initializer_range": 0.3,
    }
    model = MiMo(ModelConfig(**{**values, **changes}))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # a norm or a bias, which begin at 1 and 0
                parameter += torch.randn(parameter.shape, generator=generator) * 0.2
    return model.eval()


@torch.inference_mode()
def reference(model: MiMo, request: Request, used_vocab: int | None = None) -> list[int]:
    """Generate without cache, batch or engine: one full forward pass a token."""
    settings = Settings.of([request], used_vocab or model.config.vocab_size)
    seed = np.array([request.seed], np.uint64)
    ids = list(request.prompt_ids)
    while len(ids) < len(request.prompt_ids) + request.max_new_tokens:
        logits = model(torch.tensor([ids]))[:, -1:, :used_vocab]
        uniform = torch.from_numpy(uniforms(seed, np.array([len(ids)])))[:, None]
        token, _ = draw(log_probabilities(logits, settings), settings, uniform)
        ids.append(int(token))
        if ids[-1] in request.stop_ids:
            break
    return ids[len(request.prompt_ids) :]


def mixed_requests(
    count: int, seed: int = 0, vocab: int = 61, longest: int = 12, **fixed: Any
) -> list[Request]:
    """Requests of all kinds; half of the prompts begin like an earlier one, or are the same."""
    rng = np.random.default_rng(seed)
    prompts: list[tuple[int, ...]] = []
    for _ in range(count):
        prompt = rng.integers(0, vocab, size=rng.integers(1, longest + 1)).tolist()
        if prompts and rng.random() < 0.5:
            old = prompts[rng.integers(len(prompts))]
            prompt = [*old[: rng.integers(1, len(old) + 1)], *prompt][:longest]
            prompt = list(old) if rng.random() < 0.3 else prompt
        prompts.append(tuple(prompt))
    return [
        Request(
            **{
                "id": i,
                "prompt_ids": prompt,
                "max_new_tokens": int(rng.integers(1, 20)),
                "temperature": float(rng.choice([0.0, 0.6, 1.0, 1.5])),
                "top_p": float(rng.choice([0.5, 0.95, 1.0, 1.0])),
                "top_k": int(rng.choice([0, 0, 5, 200])),
                "min_p": float(rng.choice([0.0, 0.0, 0.1])),
                "seed": int(rng.integers(0, 2**40)),
                "stop_ids": tuple(rng.integers(0, vocab, size=rng.integers(0, 9)).tolist()),
                **fixed,
            }
        )
        for i, prompt in enumerate(prompts)
    ]


@pytest.fixture(scope="session", name="make_model")
def _make_model() -> Callable[..., MiMo]:
    return make_model


@pytest.fixture(scope="session", name="mixed_requests")
def _mixed_requests() -> Callable[..., list[Request]]:
    return mixed_requests


@pytest.fixture(scope="session", name="reference")
def _reference() -> Callable[..., list[int]]:
    return reference


@pytest.fixture(scope="session")
def model() -> MiMo:
    return make_model()


@pytest.fixture(scope="session")
def expected(model: MiMo) -> Callable[[Request], list[int]]:
    """`reference` for `model`; a request is computed once."""
    return functools.cache(functools.partial(reference, model))
