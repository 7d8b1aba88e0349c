"""The MTP layers against a reference written from the report's formulas, without our modules.

Every choice that is silent in the output (it only costs acceptance) is tested in both directions:
the right one agrees, the wrong one does not.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from openmimo.model.mimo import MiMo

MakeModel = Callable[..., MiMo]
FAULTS = ["embedding first", "post norm", "no bias", "no final norm", "norms swapped", "not causal"]


def reference(model: MiMo, layer: int, ids: Tensor, fault: str = "") -> Tensor:
    """Logits [B, T - 1 - layer, vocab] of layer `layer`, entry t predicting token t + 2 + layer."""
    config, state = model.config, model.state_dict()
    full = torch.arange(ids.shape[1]).expand_as(ids)
    h = model.hidden(ids, full)[:, : ids.shape[1] - 1 - layer]
    e = state["model.embed_tokens.weight"][ids[:, 1 + layer :]]

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * state[name]

    def part(name: str) -> Tensor:
        return state[f"model.mtp_layers.{layer}.{name}"]

    def project(x: Tensor, name: str) -> Tensor:  # [B, T, heads * d] -> [B, heads, T, d]
        bias = 0 if fault == "no bias" else part(f"self_attn.{name}.bias")
        y = x @ part(f"self_attn.{name}.weight").T + bias
        return y.unflatten(-1, (-1, config.head_dim)).transpose(1, 2)

    def rotate(x: Tensor) -> Tensor:  # as complex numbers
        a, b = x.chunk(2, -1)
        half = config.head_dim // 2
        angle = torch.outer(
            torch.arange(x.shape[2]), model.rope_base ** (-torch.arange(half) / half)
        )
        z = torch.complex(a, b) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([z.real, z.imag], -1)

    prefix = f"model.mtp_layers.{layer}."
    if fault == "post norm":
        h = norm(h, "model.norm.weight")
    names = [prefix + "hidden_layernorm.weight", prefix + "token_layernorm.weight"]
    if fault == "norms swapped":
        names.reverse()
    both = [norm(h, names[0]), norm(e, names[1])]
    if fault == "embedding first":
        both.reverse()
    z = torch.cat(both, -1) @ part("input_proj.weight").T

    x = norm(z, prefix + "input_layernorm.weight")
    q, k, v = rotate(project(x, "q_proj")), rotate(project(x, "k_proj")), project(x, "v_proj")
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = q @ k.transpose(-1, -2) / config.head_dim**0.5
    if fault != "not causal":
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    heads = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    z = z + heads @ part("self_attn.o_proj.weight").T
    x = norm(z, prefix + "post_attention_layernorm.weight")
    gate, up = x @ part("mlp.gate_proj.weight").T, x @ part("mlp.up_proj.weight").T
    z = z + (gate * gate.sigmoid() * up) @ part("mlp.down_proj.weight").T
    if fault != "no final norm":
        z = norm(z, prefix + "final_layernorm.weight")
    return z @ state["lm_head.weight"].T


def mtp_logits(model: MiMo, layer: int, ids: Tensor) -> Tensor:
    length = ids.shape[1] - 1 - layer
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    hidden = model.hidden(ids, positions)[:, :length]
    draft = model.mtp_draft(layer, hidden, ids[:, 1 + layer :], positions[:, :length])
    return model.lm_head(draft)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_every_layer_equals_the_reference(make_model: MakeModel, ids: Tensor, layer: int) -> None:
    model = make_model()
    expected = reference(model, layer, ids)
    torch.testing.assert_close(mtp_logits(model, layer, ids), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_shows(make_model: MakeModel, ids: Tensor, fault: str) -> None:
    model = make_model()
    wrong = reference(model, 0, ids, fault)
    assert (mtp_logits(model, 0, ids) - wrong).abs().mean() > 0.05


def test_post_norm_setting(make_model: MakeModel, ids: Tensor) -> None:
    model = make_model(mtp_hidden="post_norm")
    expected = reference(model, 0, ids, "post norm")
    torch.testing.assert_close(mtp_logits(model, 0, ids), expected, rtol=1e-4, atol=1e-4)


def test_masking_the_first_embedding(make_model: MakeModel, ids: Tensor) -> None:
    # vLLM zeroes the embedding at position 0; zero stays zero through the norm.
    masked = make_model(mtp_mask_first=True)
    other = ids.clone()
    other[:, 1] = (other[:, 1] + 1) % 97
    hidden = masked.hidden(ids, torch.arange(24).expand_as(ids))[:, :1]
    first = torch.zeros_like(ids[:, :1])
    drafts = [masked.mtp_draft(0, hidden, x[:, 1:2], first) for x in (ids, other)]
    assert torch.equal(*drafts)
    plain = make_model()
    drafts = [plain.mtp_draft(0, hidden, x[:, 1:2], first) for x in (ids, other)]
    assert not torch.allclose(*drafts)
    # Later positions keep their embeddings.
    assert not torch.allclose(mtp_logits(masked, 0, ids)[:, 5:], mtp_logits(masked, 1, ids)[:, 4:])


def test_layers_are_parallel(make_model: MakeModel, ids: Tensor) -> None:
    # Layer 2 reads the trunk, not layer 1: another layer 1 changes nothing.
    model = make_model()
    before = mtp_logits(model, 2, ids)
    with torch.no_grad():
        for parameter in model.mtp_layers[1].parameters():
            parameter.zero_()
    assert torch.equal(mtp_logits(model, 2, ids), before)


def test_the_head_and_the_embedding_are_the_trunks_own(make_model: MakeModel, ids: Tensor) -> None:
    model = make_model()
    mtp_logits(model, 0, ids).square().mean().backward()
    assert model.model.embed_tokens.weight.grad is not None
    assert model.lm_head.weight.grad is not None
    # The trunk's final norm is not on the way.
    assert model.model.norm.weight.grad is None
