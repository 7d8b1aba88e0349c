"""The formulas of `training/flops.py` against the model itself and against torch's own counter."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from openmimo.config.load import load_config
from openmimo.config.schema import ModelConfig, Recipe
from openmimo.model.mimo import MiMo
from openmimo.training.batch import Segment, batch_rows
from openmimo.training.flops import mean_context, parameters, training_flops
from openmimo.training.loss import Objective, TrainingLoss, count_targets
from openmimo.training.mtp_heads import freeze_all_but

LENGTH = 24


def shape(mtp_layers: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=200, hidden_size=48, intermediate_size=80, num_hidden_layers=3,
        num_attention_heads=6, num_key_value_heads=2, head_dim=12, max_position_embeddings=64,
        num_nextn_predict_layers=mtp_layers,
    )  # fmt: skip


def counted(config: ModelConfig, layers: range, trunk: bool) -> float:
    """Operations that torch counts in a forward and backward pass over one row of LENGTH."""
    model = MiMo(config).bfloat16()  # in float32 the head's last product is none torch counts
    model.init_weights(torch.Generator().manual_seed(0))
    if not trunk:
        freeze_all_but(model, layers)
    ids = torch.randint(config.vocab_size, (LENGTH,), generator=torch.Generator().manual_seed(1))
    batch = batch_rows([[Segment(ids.numpy())]], LENGTH, pad_id=0)
    objective = Objective(layers, main=trunk)
    loss = TrainingLoss(model, objective, head_chunk=LENGTH)
    # The plain kernel is counted product by product.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss(batch, count_targets(batch, objective), 0.1).total.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("mtp_layers", "layers", "trunk"),
    [(0, range(0), True), (1, range(1), True), (3, range(3), True), (3, range(1, 3), False)],
    ids=["no MTP", "pretrain", "sft", "mtp_heads"],
)
def test_operations_are_those_torch_counts(mtp_layers: int, layers: range, trunk: bool) -> None:
    config = shape(mtp_layers)
    # The plain kernel computes every score of the row, also those that the mask removes.
    expected = LENGTH * training_flops(config, LENGTH, len(layers), trunk=trunk).total
    # A row's last positions have no target, and do not go through the head.
    shifts = ([1] if trunk else []) + [2 + layer for layer in layers]
    expected -= sum(shifts) * config.vocab_size * config.hidden_size * (6 if trunk else 4)
    assert counted(config, layers, trunk) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("mtp_layers", [0, 1, 3])
def test_parameters_are_the_model_s(mtp_layers: int) -> None:
    model = MiMo(shape(mtp_layers))
    parts = parameters(model.config)

    def size(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    assert parts.total == size(model)
    assert parts.layers == size(model.model.layers)
    assert parts.mtp == sum(size(layer) for layer in model.mtp_layers)
    assert parts.embedding == size(model.model.embed_tokens)
    assert (parts.norm, parts.head) == (size(model.model.norm), size(model.lm_head))


def test_mimo_7b() -> None:
    config = load_config(Recipe, "mimo-7b").model
    parts = parameters(config)
    assert (parts.total, parts.mtp) == (7_833_409_536, 210_790_400)
    assert parts.layers + parts.norm == 6_380_056_576
    # By hand: a layer's matrices are 2 x 4096^2 + 2 x 4096 x 1024 + 3 x 4096 x 11008.
    layer = 2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 11_008
    flops = training_flops(config, 4096, 1)
    assert flops.layers == 6 * 36 * layer
    assert flops.mtp == 6 * (layer + 2 * 4096**2)
    assert flops.head == 6 * 2 * 151_680 * 4096
    assert flops.attention == 12 * 37 * 4096 * 4096


@pytest.mark.parametrize(("length", "document", "mean"), [(8, None, 4.5), (8, 3, 2), (8, 99, 4.5)])
def test_a_query_sees_itself_and_what_is_before_it(
    length: int, document: int | None, mean: float
) -> None:
    assert mean_context(length, document) == mean
    if document == 3:
        sizes = [3, 3]
        positions = torch.cat([torch.arange(size) for size in sizes])
        assert float((positions + 1).float().mean()) == mean
