"""`training/memory.py` against the bytes that are alive in real training steps on the CPU."""

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from openmimo.config.load import load_config
from openmimo.config.schema import ComputeConfig, ModelConfig, OptimizerConfig, Recipe
from openmimo.training.batch import Segment, batch_rows
from openmimo.training.loss import Objective
from openmimo.training.memory import Workload, training_memory
from openmimo.training.optim import build_optimizer
from openmimo.training.parallel import prepare
from openmimo.training.step import train_step
from openmimo.training.throughput import StepClock
from openmimo.training.weights import empty_model, random_weights
from openmimo.world import World


class Alive(TorchDispatchMode):
    """Bytes of all tensors made inside, at the fullest moment while `watching`."""

    def __init__(self) -> None:
        super().__init__()
        self.peak, self.watching = 0, False
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        grown = False
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.device.type == "cpu":
                local = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
                grown |= self._is_new(local.untyped_storage())
        if self.watching and grown:
            # Sizes are read anew: FSDP empties storages that it keeps.
            alive = [storage() for storage in list(self._storages.values())]
            self.peak = max(self.peak, sum(each.nbytes() for each in alive if each is not None))
        return out

    def _is_new(self, storage: torch.UntypedStorage) -> bool:
        key = id(storage)
        known = self._storages.get(key)
        if known is not None and known() is storage:
            return False

        def forget(_: object) -> None:
            self._storages.pop(key, None)

        self._storages[key] = weakref.ref(storage, forget)
        return True


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World() as world:
        yield world


def fullest(config: ModelConfig, compute: ComputeConfig, work: Workload, world: World) -> int:
    """Bytes at the fullest moment of the second of two steps."""
    rows = work.tokens // work.length * work.micro_batches
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (rows, work.length), generator=generator).numpy()
    batch = batch_rows([[Segment(row)] for row in ids], work.length, pad_id=0)
    model = empty_model(config)
    layers = range(config.num_nextn_predict_layers)
    if not work.trunk:
        layers = layers[-work.mtp_layers :]
        model.requires_grad_(False)
        for layer in layers:
            model.mtp_layers[layer].requires_grad_(True)
    objective = Objective(layers, main=work.trunk)
    with Alive() as alive:
        module = prepare(model, random_weights(config, 0), objective, compute, world)
        optimizer = build_optimizer(module.named_parameters(), OptimizerConfig())
        clock = StepClock(world.device)
        for second in (False, True):
            alive.watching = second
            train_step(module, optimizer, batch, rows, 1e-3, 0.1, 1.0, work.tokens, world, clock)
    return alive.peak


def shape(layers: int, mtp_layers: int, vocabulary: int, hidden: int, inner: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner,
        num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2, head_dim=24,
        max_position_embeddings=256, num_nextn_predict_layers=mtp_layers,
    )  # fmt: skip


DEEP = shape(4, 1, 256, 96, 256)
WIDE_HEAD = shape(2, 3, 2048, 64, 160)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("config", "work", "dtype"),
    [
        (DEEP, Workload(512, 256, 1), "float32"),
        pytest.param(
            DEEP, Workload(512, 256, 1, micro_batches=2), "bfloat16", marks=pytest.mark.slow
        ),
        (WIDE_HEAD, Workload(128, 128, 3), "bfloat16"),
        (WIDE_HEAD, Workload(128, 128, 3), "float32"),
        pytest.param(
            WIDE_HEAD, Workload(512, 128, 2, trunk=False), "bfloat16", marks=pytest.mark.slow
        ),
    ],
    ids=["float32", "two micro-batches", "large head", "large head, float32", "frozen trunk"],
)
def test_the_estimate_against_a_real_step(
    config: ModelConfig, work: Workload, dtype: Any, checkpointing: bool, world: World
) -> None:
    compute = ComputeConfig(dtype=dtype, activation_checkpointing=checkpointing, head_chunk=128)
    estimate = training_memory(config, compute, work, ranks=1, cpu=True)
    # With a frozen head the plan counts one chunk of float32 logits more than are there.
    within = 0.1 if work.trunk else 0.12
    assert estimate.total == pytest.approx(fullest(config, compute, work, world), rel=within)


def test_more_ranks_leave_less_to_each_but_for_the_activations() -> None:
    mimo = load_config(Recipe, "mimo-7b")
    work = Workload(32_768, 32_768, 1)
    few, many = (training_memory(mimo.model, mimo.compute, work, ranks) for ranks in (8, 64))
    for part in ("weights (float32)", "AdamW's moments"):
        assert many.parts[part] == pytest.approx(few.parts[part] / 8, rel=1e-6)
    assert many.parts["activations"] == few.parts["activations"]


def test_what_each_setting_saves() -> None:
    mimo = load_config(Recipe, "mimo-7b")
    work = Workload(32_768, 32_768, 1)

    def total(tokens: int = 32_768, **changes: Any) -> int:
        compute = mimo.compute.model_copy(update=changes)
        fewer = Workload(tokens, min(tokens, 32_768), 1)
        return training_memory(mimo.model, compute, fewer, ranks=64).total

    assert total() == training_memory(mimo.model, mimo.compute, work, ranks=64).total
    for changes in (
        {"activation_checkpointing": False},
        {"dtype": "float32"},
        {"compile": False},
        {"head_chunk": 32_768},
        {"tokens": 65_536},
    ):
        assert total(**changes) > total()
