"""The beginning of a fresh MTP layer."""

from pathlib import Path

import torch
from torch import Tensor

from openmimo.config.schema import ModelConfig
from openmimo.interop.fresh_mtp import PROBE, FreshMTP, last_input_size
from openmimo.model.mimo import MiMo

CONFIG = ModelConfig(
    vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=128, rope_theta=50_000.0,
    initializer_range=0.3, num_nextn_predict_layers=0,
)  # fmt: skip


def trunk() -> MiMo:
    model = MiMo(CONFIG)
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def with_fresh_layer(model: MiMo) -> MiMo:
    grown = MiMo(CONFIG.model_copy(update={"num_nextn_predict_layers": 1}))
    state = model.state_dict()
    fresh = FreshMTP(CONFIG, state.__getitem__)
    state |= {
        f"model.mtp_layers.0.{part}": fresh.tensor(part)
        for part in grown.mtp_layers[0].state_dict()
    }
    grown.load_state_dict(state)
    return grown


def last_input(model: MiMo, ids: Tensor) -> Tensor:
    """What the last layer reads, by a hook."""
    seen: list[Tensor] = []
    layer = model.model.layers[-1]
    hook = layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    model(ids)
    hook.remove()
    return seen[0]


@torch.no_grad()
def test_the_size_is_that_of_the_last_layers_input() -> None:
    model = trunk()
    ids = torch.randint(97, (1, PROBE), generator=torch.Generator().manual_seed(0))
    expected = last_input(model, ids).square().mean(-1).sqrt().median()
    size = last_input_size(CONFIG, model.state_dict().__getitem__)
    torch.testing.assert_close(torch.tensor(size), expected)


@torch.no_grad()
def test_the_fresh_layer_is_the_last_layer_on_h_at_its_usual_size() -> None:
    """Whatever the next token is: its half is zero."""
    model = with_fresh_layer(trunk())
    ids = torch.randint(97, (2, 12), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(12).expand_as(ids)
    hidden = model.hidden(ids, positions)
    draft = model.mtp_draft(0, hidden, ids.roll(-1, 1), positions)
    assert torch.equal(draft, model.mtp_draft(0, hidden, ids, positions))
    size = last_input_size(CONFIG, model.state_dict().__getitem__)
    rms = (hidden.square().mean(-1, keepdim=True) + CONFIG.rms_norm_eps).sqrt()

    seen: list[Tensor] = []
    model.model.layers[-1].register_forward_pre_hook(lambda _, a: (hidden / rms * size, *a[1:]))
    model.model.norm.register_forward_hook(lambda _, __, out: seen.append(out))
    model(ids)
    torch.testing.assert_close(draft, seen[0], atol=1e-4, rtol=1e-4)


def test_both_halves_learn_from_the_start() -> None:
    model = with_fresh_layer(trunk())
    ids = torch.randint(97, (2, 12), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(12).expand_as(ids)
    draft = model.mtp_draft(0, model.hidden(ids, positions).detach(), ids.roll(-1, 1), positions)
    model.lm_head(draft).logsumexp(-1).sum().backward()
    weight = model.mtp_layers[0].input_proj.weight
    assert weight.grad is not None
    assert all(half.abs().max() > 0 for half in weight.grad.chunk(2, dim=1))


def test_a_trunk_of_zeros_gets_a_layer_of_plain_norms(tmp_path: Path) -> None:
    zeros = {name: torch.zeros_like(tensor) for name, tensor in trunk().state_dict().items()}
    assert last_input_size(CONFIG, zeros.__getitem__) == 1.0
