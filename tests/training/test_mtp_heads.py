"""The copies of the MTP layer: equal at the start, and all that is trained."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from openmimo.config.schema import Recipe
from openmimo.metrics import read_metrics
from openmimo.model.checkpoint import load_model, save_model
from openmimo.model.mimo import MiMo
from openmimo.runs import Run
from openmimo.training import mtp_heads
from openmimo.training.batch import Batch
from openmimo.training.loss import backward_step
from openmimo.training.mtp_heads import copied_layers, freeze_all_but
from openmimo.training.weights import fill


def with_copied_layers(base: MiMo, layers: int, folder: Path) -> MiMo:
    save_model(base, folder, torch.float32)
    model, weights = copied_layers(folder, layers)
    model.to_empty(device="cpu")
    fill(model, weights)
    return model


COPIES = ("model.mtp_layers.1.", "model.mtp_layers.2.")


@pytest.fixture
def base(make_model: Callable[..., MiMo]) -> MiMo:
    model = make_model(num_nextn_predict_layers=1)
    model.rope_base = 640_000.0
    return model


@pytest.fixture
def batch() -> Batch:
    ids = torch.randint(280, (2, 12), generator=torch.Generator().manual_seed(0))
    return Batch(ids, torch.arange(12).expand_as(ids), ids)


def test_copies_equal_layer_0_and_the_rest_is_as_before(
    base: MiMo, batch: Batch, tmp_path: Path
) -> None:
    grown = with_copied_layers(base, 3, tmp_path / "base")
    assert len(grown.mtp_layers) == 3
    first, *copies = (layer.state_dict() for layer in grown.mtp_layers)
    for copy in copies:
        assert all(torch.equal(copy[name], tensor) for name, tensor in first.items())
    weights = grown.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in base.state_dict().items())
    assert grown.rope_base == base.rope_base
    assert torch.equal(grown(batch.ids), base(batch.ids))
    # Nothing is shared: training one leaves the others alone.
    pointers = {parameter.data_ptr() for model in (base, grown) for parameter in model.parameters()}
    assert len(pointers) == len([*base.parameters(), *grown.parameters()])


def test_only_the_copies_get_a_gradient(base: MiMo, batch: Batch, tmp_path: Path) -> None:
    model = with_copied_layers(base, 3, tmp_path / "base")
    freeze_all_but(model, range(1, 3))
    main, mtp = backward_step(model, batch, (1, 2), 1.0, 100, main=False)
    assert main == 0
    assert len(mtp) == 2
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith(COPIES), name


def test_the_stage_trains_the_copies_alone(
    recipe: Recipe, make_run: Callable[[str], Run], base: MiMo
) -> None:
    """The code source is read here alone: the stage opens its own mixture's sources."""
    run = make_run("run")
    upstream = run.stage("pretrain", "hash")
    save_model(base, upstream.dir / "model", torch.float32)
    upstream.finish()
    mtp_heads.run(recipe, run)
    model = load_model(run.dir / "stages" / "mtp_heads" / "model")
    start = with_copied_layers(base, 3, run.dir.parent / "base").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, start[name]) != name.startswith(COPIES), name
    assert model.rope_base == 640_000.0
    metrics = read_metrics(run.dir / "stages" / "mtp_heads" / "metrics.jsonl")
    assert [(record["step"], record["loss"]) for record in metrics] == [
        (n, None) for n in range(1, 6)
    ]
    assert all(len(record["mtp_loss"]) == 2 for record in metrics)
