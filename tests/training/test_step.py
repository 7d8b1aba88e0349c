"""A step's update does not depend on how its rows are divided, and the division is a partition."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openmimo.config.schema import ComputeConfig, ModelConfig, OptimizerConfig
from openmimo.model.mimo import MiMo
from openmimo.training.batch import IGNORE, Batch, Segment, Share, batch_rows
from openmimo.training.loss import Objective, TrainingLoss, count_targets
from openmimo.training.optim import build_optimizer
from openmimo.training.parallel import prepare
from openmimo.training.step import micro_batches, train_step
from openmimo.training.throughput import StepClock
from openmimo.training.weights import empty_model, random_weights, save_weights, stored_weights
from openmimo.world import World
from tests.training.conftest import MODEL

OBJECTIVE = Objective(mtp_layers=(0, 1, 2))
LENGTH = 24


@pytest.fixture
def batch() -> Batch:
    """Four rows of documents, prompts and padding."""
    random = np.random.default_rng(0)
    rows = [
        [Segment(random.integers(0, 280, size=n), loss_from=n % 3) for n in lengths]
        for lengths in ((9, 15), (20,), (4, 5, 6, 7), (24,))
    ]
    return batch_rows(rows, LENGTH, pad_id=279)


def stepped(
    model: MiMo, batch: Batch, tokens: int, rate: float = 1e-2
) -> tuple[dict[str, torch.Tensor], object]:
    """Weights after two steps in micro-batches of `tokens`, and what the last one says."""
    model = copy.deepcopy(model)
    optimizer = build_optimizer(model.named_parameters(), OptimizerConfig())
    module = TrainingLoss(model, OBJECTIVE, head_chunk=7)
    clock = StepClock(torch.device("cpu"))
    for _ in range(2):
        result = train_step(
            module, optimizer, batch, 4, rate, 0.3, 1.0, tokens, World(), clock
        )  # fmt: skip
    return {name: p.detach() for name, p in model.named_parameters()}, result


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_micro_batches_make_the_same_update(
    make_model: Callable[..., MiMo], batch: Batch, rows: int
) -> None:
    model = make_model()
    expected, told = stepped(model, batch, 4 * LENGTH, rate=1e-3)
    found, tells = stepped(model, batch, rows * LENGTH, rate=1e-3)
    for name, weights in found.items():
        torch.testing.assert_close(weights, expected[name], atol=1e-6, rtol=0)
    for field in ("loss", "mtp_loss", "mtp_acceptance", "targets", "norm"):
        assert getattr(tells, field) == pytest.approx(getattr(told, field), rel=1e-5)


@given(st.integers(0, 50), st.integers(1, 12))
def test_every_row_has_one_rank(rows: int, size: int) -> None:
    shares = [Share(rank, size).of(rows) for rank in range(size)]
    assert [row for share in shares for row in share] == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 100))
def test_ranks_make_as_many_passes_and_blanks_have_no_target(
    rows: int, size: int, tokens: int
) -> None:
    row = [Segment(np.arange(LENGTH))]
    passes = []
    for rank in range(size):
        mine = Share(rank, size).of(rows)
        batch = batch_rows([row for _ in mine], LENGTH, pad_id=0)
        parts = micro_batches(batch, rows, tokens, World(rank, size))
        passes.append(len(parts))
        assert sum(int(count_targets(part, OBJECTIVE)[0]) for part in parts) == len(mine) * 23
        assert sum((part.targets[:, 0] != IGNORE).sum() for part in parts) == len(mine)
    assert len(set(passes)) == 1


def test_a_blank_pass_reaches_the_weights_with_zeros(make_model: Callable[..., MiMo]) -> None:
    """A rank without rows must still run every layer's backward: the others wait for it."""
    model = make_model()
    module = TrainingLoss(model, OBJECTIVE, head_chunk=7)
    blank = batch_rows([], LENGTH, pad_id=0).blank()
    module(blank, torch.tensor([5, 5, 5, 5]), 0.3).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@pytest.mark.parametrize("compute", [{}, {"activation_checkpointing": True}, {"dtype": "bfloat16"}])
def test_preparing_a_model_keeps_its_weights_and_names(
    compute: dict[str, object], batch: Batch, tmp_path: Path, make_model: Callable[..., MiMo]
) -> None:
    """Also in bfloat16, where the optimiser still has float32 weights."""
    config = ModelConfig(**MODEL | {"num_nextn_predict_layers": 3, "initializer_range": 0.3})
    plain = make_model()
    expected, _ = stepped(plain, batch, 48)
    with World() as world:
        settings = ComputeConfig.model_validate(compute | {"head_chunk": 7})
        module = prepare(empty_model(config), random_weights(config, 0), OBJECTIVE, settings, world)
        start = dict(module.model.named_parameters())
        assert start.keys() == dict(plain.named_parameters()).keys()
        optimizer = build_optimizer(module.model.named_parameters(), OptimizerConfig())
        for _ in range(2):
            train_step(
                module, optimizer, batch, 4, 1e-2, 0.3, 1.0, 48, world,
                StepClock(torch.device("cpu")),
            )  # fmt: skip
        folder = tmp_path / "model"
        save_weights(module.model, folder, world)
    for name, weights in stored_weights(folder, config):
        assert weights.dtype == torch.float32
        if "dtype" not in compute:
            assert torch.equal(weights, expected[name]), name
            continue
        # AdamW turns a gradient near 0 into a step of either sign, so single weights may differ.
        assert ((weights - expected[name]).abs() < 5e-3).float().mean() > 0.8, name
        assert not torch.equal(weights, weights.bfloat16().float()), name


@pytest.mark.parametrize("checkpointed", [False, True])
def test_activation_checkpointing_computes_each_layer_again(
    batch: Batch, checkpointed: bool
) -> None:
    config = ModelConfig(**MODEL)
    settings = ComputeConfig(activation_checkpointing=checkpointed)
    objective = Objective([0])
    module = prepare(empty_model(config), random_weights(config, 0), objective, settings, World())
    passes: list[str] = []
    for layer in (*module.model.model.layers, *module.model.mtp_layers):
        layer.self_attn.register_forward_hook(lambda *_: passes.append("one"))
    module(batch, count_targets(batch, objective), 0.3).total.backward()
    assert len(passes) == (6 if checkpointed else 3)
