"""Checkpoints give back every bit, and say so when they cannot."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from openmimo.config.schema import OptimizerConfig
from openmimo.errors import UserError
from openmimo.model.mimo import MiMo
from openmimo.training.checkpoint import Checkpoints
from openmimo.training.optim import build_optimizer, update
from openmimo.world import World

MakeModel = Callable[..., MiMo]
SHARDS = "__0_0.distcp"
STATE = {"tokens": 12, "source": {"open": ["math", 3, 1], "share": 0.1}}


def save_checkpoint(
    folder: Path, step: int, model: MiMo, optimizer: torch.optim.AdamW, state: dict[str, Any]
) -> None:
    """Save and wait until it is written."""
    with Checkpoints(folder, World()) as checkpoints:
        checkpoints.save(step, model, optimizer, state)


def load_checkpoint(
    folder: Path, model: MiMo, optimizer: torch.optim.AdamW
) -> dict[str, Any] | None:
    return Checkpoints(folder, World()).load(model, optimizer)


def take_steps(model: MiMo, optimizer: torch.optim.AdamW, steps: int, seed: int = 0) -> None:
    """Random gradients; the last MTP layer has none, so it never gets moments."""
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for name, parameter in model.named_parameters():
            if "mtp_layers.2" not in name:
                parameter.grad = torch.randn(parameter.shape, generator=random)
        update(optimizer, 1e-2, clip=1.0)


def trained(make_model: MakeModel, steps: int = 3) -> tuple[MiMo, torch.optim.AdamW]:
    model = make_model()
    optimizer = build_optimizer(model.named_parameters(), OptimizerConfig())
    take_steps(model, optimizer, steps)
    return model, optimizer


def everything(model: MiMo, optimizer: torch.optim.AdamW) -> dict[str, torch.Tensor]:
    """Copies of all weights and moments."""
    found = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{name}.{key}"] = value.clone()
    return found


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def test_round_trip_keeps_every_bit_and_the_next_steps(
    make_model: MakeModel, tmp_path: Path
) -> None:
    model, optimizer = trained(make_model)
    save_checkpoint(tmp_path / "new" / "folder", 3, model, optimizer, STATE)
    other, other_optimizer = trained(make_model, steps=1)
    state = load_checkpoint(tmp_path / "new" / "folder", other, other_optimizer)
    assert state == {"step": 3, **STATE}
    saved = everything(model, optimizer)
    assert_equal(everything(other, other_optimizer), saved)
    assert "lm_head.weight.exp_avg_sq" in saved
    assert "model.mtp_layers.2.input_proj.weight.exp_avg" not in saved
    take_steps(model, optimizer, 2, seed=1)
    take_steps(other, other_optimizer, 2, seed=1)
    assert_equal(everything(other, other_optimizer), everything(model, optimizer))


def test_training_on_leaves_the_file_as_it_was(make_model: MakeModel, tmp_path: Path) -> None:
    model, optimizer = trained(make_model)
    save_checkpoint(tmp_path, 3, model, optimizer, {})
    before = everything(model, optimizer)
    load_checkpoint(tmp_path, model, optimizer)
    take_steps(model, optimizer, 2)
    load_checkpoint(tmp_path, model, optimizer)
    assert_equal(everything(model, optimizer), before)


def test_the_last_two_are_kept(make_model: MakeModel, tmp_path: Path) -> None:
    model, optimizer = trained(make_model)
    for step in (9, 10, 1000):
        save_checkpoint(tmp_path, step, model, optimizer, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000010", "step-000001000"]
    assert load_checkpoint(tmp_path, model, optimizer) == {"step": 1000}


def test_nothing_there(make_model: MakeModel, tmp_path: Path) -> None:
    model, optimizer = trained(make_model)
    assert load_checkpoint(tmp_path / "nowhere", model, optimizer) is None


def test_a_half_written_one_is_ignored_and_replaced(make_model: MakeModel, tmp_path: Path) -> None:
    model, optimizer = trained(make_model)
    save_checkpoint(tmp_path, 5, model, optimizer, {})
    half = tmp_path / "step-000000006.tmp"
    half.mkdir()
    (half / SHARDS).write_bytes(b"half")
    assert load_checkpoint(tmp_path, model, optimizer) == {"step": 5}
    save_checkpoint(tmp_path, 6, model, optimizer, {})
    assert load_checkpoint(tmp_path, model, optimizer) == {"step": 6}
    assert not half.exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, empty, Path.unlink])
@pytest.mark.parametrize("file", [SHARDS, ".metadata", "state.json"])
def test_damage_is_named_with_its_folder(
    damage: Callable[[Path], None], file: str, make_model: MakeModel, tmp_path: Path
) -> None:
    model, optimizer = trained(make_model)
    for step in (4, 5):
        save_checkpoint(tmp_path, step, model, optimizer, {"tokens": 1})
    damage(tmp_path / "step-000000005" / file)
    with pytest.raises(UserError, match=r"step-000000005 is damaged .*: delete this folder"):
        load_checkpoint(tmp_path, model, optimizer)


@pytest.mark.parametrize(
    "changes", [{"num_nextn_predict_layers": 1}, {"intermediate_size": 8}, {"vocab_size": 281}]
)
def test_another_model_is_refused(
    changes: dict[str, int], make_model: MakeModel, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, 3, *trained(make_model), {})
    model = make_model(**changes)
    optimizer = build_optimizer(model.named_parameters(), OptimizerConfig())
    with pytest.raises(UserError, match="step-000000003"):
        load_checkpoint(tmp_path, model, optimizer)


def test_state_is_json(make_model: MakeModel, tmp_path: Path) -> None:
    model, optimizer = trained(make_model)
    save_checkpoint(tmp_path, 3, model, optimizer, STATE)
    assert json.loads((tmp_path / "step-000000003" / "state.json").read_text())["tokens"] == 12
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, 4, model, optimizer, {"bad": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000003"]


def test_a_step_that_is_not_finite_changes_nothing(make_model: MakeModel) -> None:
    model, optimizer = trained(make_model)
    before = everything(model, optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.lm_head.weight.grad[0, 0] = torch.nan  # type: ignore[index]
    assert math.isnan(update(optimizer, 1e-2, clip=1.0))
    assert_equal(everything(model, optimizer), before)


def test_gradients_are_clipped_to_one_norm_over_all_weights(make_model: MakeModel) -> None:
    """Seen in the first moment: AdamW's first step itself does not depend on the scale."""
    model = make_model()
    optimizer = build_optimizer(model.named_parameters(), OptimizerConfig(beta1=0.9))
    random = torch.Generator().manual_seed(0)
    gradients = [torch.randn(p.shape, generator=random) for p in model.parameters()]
    norm = math.sqrt(sum(float(grad.double().square().sum()) for grad in gradients))
    for clip, factor in ((0.5, 0.5 / norm), (2 * norm, 1.0)):
        optimizer.state.clear()
        for parameter, grad in zip(model.parameters(), gradients, strict=True):
            parameter.grad = grad.clone()
        assert update(optimizer, 1e-2, clip) == pytest.approx(norm, rel=1e-5)
        for parameter, grad in zip(model.parameters(), gradients, strict=True):
            moment = optimizer.state[parameter]["exp_avg"]
            torch.testing.assert_close(moment, 0.1 * factor * grad, rtol=1e-4, atol=1e-7)
            assert parameter.grad is None


def test_decay_spares_norms_biases_and_the_embedding(make_model: MakeModel) -> None:
    model = make_model()
    model.lm_head.requires_grad_(False)
    optimizer = build_optimizer(model.named_parameters(), OptimizerConfig(weight_decay=0.1))
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        bare = name.endswith("bias") or "norm" in name or "embed_tokens" in name
        expected = None if "lm_head" in name else 0.0 if bare else 0.1
        assert decay.get(id(parameter)) == expected, name


@pytest.mark.parametrize("file", [SHARDS, ".metadata"])
def test_a_single_flipped_bit_is_noticed(make_model: MakeModel, tmp_path: Path, file: str) -> None:
    model, optimizer = trained(make_model)
    save_checkpoint(tmp_path, 5, model, optimizer, STATE)
    path = tmp_path / "step-000000005" / file
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x40
    path.write_bytes(content)
    before = everything(model, optimizer)
    with pytest.raises(UserError, match=f"damaged .{file} has changed since it was written"):
        load_checkpoint(tmp_path, model, optimizer)
    assert_equal(everything(model, optimizer), before)


@pytest.mark.parametrize("content", ["null", "{}", "[]", '{"step": 1, "sha256": null}'])
def test_a_state_without_its_digests_is_damaged(
    make_model: MakeModel, tmp_path: Path, content: str
) -> None:
    model, optimizer = trained(make_model)
    save_checkpoint(tmp_path, 5, model, optimizer, STATE)
    (tmp_path / "step-000000005" / "state.json").write_text(content)
    with pytest.raises(UserError, match="step-000000005 is damaged"):
        load_checkpoint(tmp_path, model, optimizer)
