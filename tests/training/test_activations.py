"""The formulas of `training/activations.py` against what autograd saves in the real model."""

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from openmimo.config.schema import ModelConfig
from openmimo.model.mimo import MiMo
from openmimo.training.activations import activations
from openmimo.training.batch import Segment, batch_rows
from openmimo.training.loss import Objective, TrainingLoss, count_targets

LENGTH, ROWS = 128, 2


def shape(layers: int, mtp_layers: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=300, hidden_size=64, intermediate_size=160, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=24, max_position_embeddings=LENGTH,
        num_nextn_predict_layers=mtp_layers,
    )  # fmt: skip


def saved(layers: int, mtp_layers: int, dtype: torch.dtype, compiled: bool = False) -> float:
    """Bytes a token that a forward pass leaves, weights aside."""
    model = MiMo(shape(layers, mtp_layers)).to(dtype)
    model.init_weights(torch.Generator().manual_seed(0))
    if compiled:
        for layer in model.model.layers:
            layer.forward = torch.compile(layer.forward)  # type: ignore[method-assign]
    ids = torch.randint(300, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1)).numpy()
    batch = batch_rows([[Segment(row)] for row in ids], LENGTH, pad_id=0)
    # No layer is detached, so that all MTP layers are alike.
    objective = Objective(range(mtp_layers), detach_after=mtp_layers)
    loss = TrainingLoss(model, objective, head_chunk=50)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(batch, count_targets(batch, objective), 0.1)
    return sum(storage.nbytes() for storage in kept.values()) / (LENGTH * ROWS)


SIZES = [(torch.bfloat16, 2), (torch.float32, 4)]


@pytest.mark.parametrize(("dtype", "size"), SIZES)
def test_a_layer_keeps_what_autograd_saves(dtype: torch.dtype, size: int) -> None:
    formula = activations(shape(1, 1), size, mask=0, compiled=False, cpu=True)
    assert saved(2, 0, dtype) - saved(1, 0, dtype) == formula.layer


@pytest.mark.parametrize(("dtype", "size"), SIZES)
def test_an_mtp_layer_and_what_all_share(dtype: torch.dtype, size: int) -> None:
    formula = activations(shape(1, 1), size, mask=0, compiled=False, cpu=True)
    # In float32 the norm's input is the trunk's output itself, once for all of them.
    once = 4 * 64 if size == 4 else 0
    assert saved(1, 2, dtype) - saved(1, 1, dtype) == pytest.approx(formula.mtp - once, rel=0.01)
    head = 64 * size + 300 * 64 * size / (LENGTH * ROWS)  # gradients of its input and its weights
    alone = saved(1, 0, dtype) - formula.layer - head
    assert alone == pytest.approx(formula.shared, abs=20)  # token ids, places of the targets


@pytest.mark.slow
def test_a_compiled_layer() -> None:
    kept = saved(2, 0, torch.bfloat16, compiled=True) - saved(1, 0, torch.bfloat16, compiled=True)
    assert kept == activations(shape(1, 1), 2, mask=0, compiled=True, cpu=True).layer
