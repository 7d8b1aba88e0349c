"""Wider heads compute the same, trunk and MTP layer, in every shape that vLLM would refuse."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openmimo.config.schema import ModelConfig, RopeScaling
from openmimo.errors import UserError
from openmimo.interop.exporting import Model, export_model
from openmimo.model.checkpoint import load_model, without_zeros, write_model
from openmimo.model.mimo import MiMo
from openmimo.model.widen import HEAD_DIMS, vllm_shape, widen

MakeModel = Callable[..., MiMo]

# nano's proportions; heads wider and narrower, together, than the residual stream; a fitting head
# size with the wrong sum; stretched RoPE.
SHAPES = {
    "nano": {"hidden_size": 80, "num_attention_heads": 4, "head_dim": 20},
    "wide heads": {"hidden_size": 32, "num_attention_heads": 6, "head_dim": 8},
    "narrow heads": {"hidden_size": 96, "num_attention_heads": 2, "head_dim": 30},
    "only the sum": {"hidden_size": 36, "num_attention_heads": 2, "head_dim": 32},
    "linear RoPE": {"rope_scaling": RopeScaling(kind="linear", factor=4.0)},
    "llama 3 RoPE": {
        "rope_scaling": RopeScaling(kind="llama3", factor=8.0, original_max_position_embeddings=32),
    },
}


def both_logits(model: MiMo, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the trunk and of MTP layer 0."""
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    hidden = model.hidden(ids, positions)
    drafts = model.mtp_draft(0, hidden[:, :-1], ids[:, 1:], positions[:, :-1])
    return model.logits(hidden), model.lm_head(drafts)


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_the_same_logits(make_model: MakeModel, tmp_path: Path, shape: str) -> None:
    ids = torch.randint(97, (2, 60), generator=torch.Generator().manual_seed(1))
    # A large eps, so that it counts; one MTP layer, as the form has.
    model = make_model(**SHAPES[shape], rms_norm_eps=0.1, num_nextn_predict_layers=1)
    (tmp_path / "in").mkdir()
    write_model(model, tmp_path / "in", torch.float32)
    exported = export_model(Model.from_folder(tmp_path / "in"), tmp_path / "out", "vllm")
    wide = load_model(tmp_path / "out")
    assert wide.config.head_dim in HEAD_DIMS
    assert wide.config.hidden_size == wide.config.num_attention_heads * wide.config.head_dim
    assert "zeros make heads" in exported.changed[0]
    for theirs, ours in zip(both_logits(wide, ids), both_logits(model, ids), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4 * float(ours.abs().max()))
    small = without_zeros(wide, tmp_path / "out")
    assert small.config == model.config
    for name, tensor in small.state_dict().items():
        torch.testing.assert_close(tensor, model.get_parameter(name), rtol=1e-6, atol=0)


def widened(model: MiMo, folder: Path) -> Path:
    """`model` as `mimo export --to vllm` writes it."""
    (folder / "in").mkdir()
    write_model(model, folder / "in", torch.float32)
    return export_model(Model.from_folder(folder / "in"), folder / "out", "vllm").path


def test_zeros_that_are_none_any_more_are_refused(make_model: MakeModel, tmp_path: Path) -> None:
    folder = widened(make_model(), tmp_path)
    model = load_model(folder)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight += 1  # another program trained it
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.down_proj.* before_widening"):
        without_zeros(model, folder)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (3, "must have hidden_size, head_dim"),
        ({"head_dim": 8}, "must have hidden_size, head_dim"),
        ({"hidden_size": 64, "head_dim": 7}, "even"),
        ({"hidden_size": 64, "head_dim": 512}, "does not belong"),
    ],
)
def test_wrong_sizes_before_widening(
    make_model: MakeModel, tmp_path: Path, sizes: Any, message: str
) -> None:
    folder = widened(make_model(), tmp_path)
    own = json.loads((folder / "openmimo.json").read_text())
    if isinstance(sizes, dict) and len(sizes) > 1:
        sizes = own["before_widening"] | sizes
    (folder / "openmimo.json").write_text(json.dumps(own | {"before_widening": sizes}))
    with pytest.raises(UserError, match=message):
        without_zeros(load_model(folder), folder)


def test_a_shape_that_vllm_runs_keeps_every_bit(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(hidden_size=64, num_attention_heads=2, head_dim=32)
    (tmp_path / "in").mkdir()
    write_model(model, tmp_path / "in", torch.bfloat16)
    exported = export_model(Model.from_folder(tmp_path / "in"), tmp_path / "out", "vllm")
    assert exported.changed == []
    whole = load_model(tmp_path / "in").state_dict()
    state = load_model(tmp_path / "out").state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in state.items())


def test_no_form_but_vllm_is_widened(make_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_model(make_model(), tmp_path / "in", torch.float32)
    export_model(Model.from_folder(tmp_path / "in"), tmp_path / "out", "hf")
    assert load_model(tmp_path / "out").config == load_model(tmp_path / "in").config


def test_the_published_shape_stays(make_model: MakeModel) -> None:
    config = ModelConfig(
        vocab_size=151_680,
        hidden_size=4096,
        intermediate_size=11_008,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=32_768,
    )
    assert vllm_shape(config) == config
    weight = torch.ones(3, dtype=torch.bfloat16)
    assert widen("model.norm.weight", weight, config, config) is weight


def test_heads_that_are_too_large_are_refused(make_model: MakeModel) -> None:
    config = make_model().config.model_copy(update={"head_dim": 514})
    with pytest.raises(UserError, match="at most 512"):
        vllm_shape(config)


def test_only_what_must_change_changes(make_model: MakeModel) -> None:
    config = make_model(num_attention_heads=2, head_dim=30, hidden_size=64).config
    config = config.model_copy(update={"rms_norm_eps": 1e-6 / 3})
    wide = vllm_shape(config)
    assert wide.head_dim == 32
    assert wide.rms_norm_eps == config.rms_norm_eps


def test_a_rope_base_out_of_range_is_refused(make_model: MakeModel) -> None:
    config = make_model().config.model_copy(
        update={"head_dim": 34, "num_attention_heads": 2, "rope_theta": 1e14}
    )
    with pytest.raises(UserError, match=r"heads of 34 .* rope_theta: .*1000000000000000"):
        vllm_shape(config)
