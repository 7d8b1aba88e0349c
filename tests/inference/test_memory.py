"""What an engine needs is known from the sizes of its model."""

from typing import Any

import pytest
import torch

from openmimo.errors import UserError
from openmimo.inference import memory
from openmimo.inference.chat import chat
from openmimo.inference.memory import cache_bytes, check_memory, free_memory, weight_bytes
from openmimo.model.checkpoint import write_model
from openmimo.model.mimo import MiMo

from .engines import MakeModel, engine_for

CPU = torch.device("cpu")


@pytest.mark.parametrize("drafts", [0, 1, 3])
@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 1, "head_dim": 12}])
def test_caches_are_those_of_the_engine(
    make_model: MakeModel, drafts: int, changes: dict[str, Any]
) -> None:
    model = make_model(**changes)
    stats = engine_for(model, slots=5, drafts=drafts, max_length=40).stats()
    assert cache_bytes(model.config, torch.float32, drafts, 5, 40) == stats.cache_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_those_that_the_engine_takes(model: MiMo, dtype: torch.dtype) -> None:
    for drafts in range(4):
        unused = {p for layer in model.mtp_layers[drafts:] for p in layer.parameters()}
        used = [p for p in model.parameters() if p not in unused]
        expected = dtype.itemsize * sum(p.numel() for p in used)
        assert weight_bytes(model.config, dtype, drafts) == expected


def test_only_more_than_is_free_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 3e9)
    check_memory(3 * 10**9, CPU, "they", "wait")
    with pytest.raises(UserError, match=r"they need 3.1 GB, and 3.0 GB are free: wait"):
        check_memory(31 * 10**8, CPU, "they", "wait")


def test_some_memory_is_free() -> None:
    assert 2**20 < free_memory(CPU) < 2**50 or free_memory(CPU) == float("inf")


def test_chat_refuses_a_model_before_loading_it(
    tmp_path: Any, model: MiMo, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(model, tmp_path, torch.float32)  # no tokenizer: loading would fail
    monkeypatch.setattr(memory, "free_memory", lambda device: 1e4)
    with pytest.raises(UserError, match=r"the weights of .* need"):
        chat(tmp_path)
