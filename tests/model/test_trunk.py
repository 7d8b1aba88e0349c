"""The trunk against Qwen2 of transformers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from openmimo.model.mimo import MiMo
from openmimo.model.rope import apply_rope, rope_tables

transformers = pytest.importorskip("transformers")
qwen2 = pytest.importorskip("transformers.models.qwen2.modeling_qwen2")


def qwen2_config(model: MiMo) -> Any:
    # It shares all field names, and ignores those it does not know.
    return transformers.Qwen2Config(**model.config.model_dump(), tie_word_embeddings=False)


@pytest.mark.parametrize("base", [10_000.0, 640_000.0])
def test_our_weights_in_qwen2(make_model: Callable[..., MiMo], ids: Tensor, base: float) -> None:
    ours = make_model(num_nextn_predict_layers=0, rope_theta=base)
    theirs = transformers.Qwen2ForCausalLM(qwen2_config(ours)).eval()
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)


def test_weights_of_qwen2_in_ours(make_model: Callable[..., MiMo], ids: Tensor) -> None:
    ours = make_model(num_nextn_predict_layers=0)
    torch.manual_seed(3)
    theirs = transformers.Qwen2ForCausalLM(qwen2_config(ours)).eval()
    for parameter in theirs.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)


def test_gradients_equal_those_of_qwen2(make_model: Callable[..., MiMo], ids: Tensor) -> None:
    ours = make_model(num_nextn_predict_layers=0)
    theirs = transformers.Qwen2ForCausalLM(qwen2_config(ours))
    theirs.load_state_dict(ours.state_dict())
    for logits in (ours(ids), theirs(ids).logits):
        logits.logsumexp(-1).mean().backward()
    for (name, a), (other, b) in zip(
        sorted(ours.named_parameters()), sorted(theirs.named_parameters()), strict=True
    ):
        assert name == other
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


def test_bfloat16_stays_near_float32(make_model: Callable[..., MiMo], ids: Tensor) -> None:
    ours = make_model(num_nextn_predict_layers=0)
    theirs = transformers.Qwen2ForCausalLM(qwen2_config(ours)).eval()
    theirs.load_state_dict(ours.state_dict())
    exact = ours(ids)
    error = (ours.bfloat16()(ids).float() - exact).abs().mean()
    their_error = (theirs.bfloat16()(ids).logits.float() - exact).abs().mean()
    assert error < 1.2 * their_error


def test_packed_positions_equal_those_of_qwen2(
    make_model: Callable[..., MiMo], ids: Tensor
) -> None:
    # Two documents in a row: transformers gets each on its own.
    ours = make_model(num_nextn_predict_layers=0)
    theirs = transformers.Qwen2ForCausalLM(qwen2_config(ours)).eval()
    theirs.load_state_dict(ours.state_dict())
    positions = torch.cat([torch.arange(9), torch.arange(15)]).expand_as(ids)
    expected = torch.cat([theirs(ids[:, :9]).logits, theirs(ids[:, 9:]).logits], dim=1)
    torch.testing.assert_close(ours(ids, positions), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("base", [10_000.0, 640_000.0])
def test_rope_equals_that_of_qwen2(make_model: Callable[..., MiMo], base: float) -> None:
    config = qwen2_config(make_model(rope_theta=base))
    positions = torch.tensor([[0, 1, 2, 1000, 32_767]])
    q, k = torch.randn(2, 1, 4, 5, config.head_dim, generator=torch.Generator().manual_seed(0))
    cos, sin = rope_tables(positions, config.head_dim, base)
    their_cos, their_sin = qwen2.Qwen2RotaryEmbedding(config)(q, positions)
    # A last-bit difference of an angle of 32,767 is 0.002.
    torch.testing.assert_close(cos[:, 0], their_cos, rtol=0, atol=5e-3)
    torch.testing.assert_close(sin[:, 0], their_sin, rtol=0, atol=5e-3)
    expected_q, expected_k = qwen2.apply_rotary_pos_emb(q, k, cos[:, 0], sin[:, 0])
    torch.testing.assert_close(apply_rope(q, cos, sin), expected_q)
    torch.testing.assert_close(apply_rope(k, cos, sin), expected_k)
