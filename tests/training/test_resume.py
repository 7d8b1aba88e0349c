"""A stage that was stopped at any step ends with the same bits as one that was not."""

import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from openmimo.config.schema import Recipe
from openmimo.errors import UserError
from openmimo.metrics import read_metrics
from openmimo.model.checkpoint import load_model, save_model
from openmimo.model.mimo import MiMo
from openmimo.runs import Run
from openmimo.training import mtp_heads, pretrain, sft

STAGES = {"pretrain": pretrain.run, "mtp_heads": mtp_heads.run, "sft": sft.run}
STEPS = {"pretrain": 8, "mtp_heads": 5, "sft": 5}
MEASURED = ("time", "tokens_per_second", "data_wait", "memory", "peak_share", "mfu")


class PowerCutError(Exception):
    """Not an error of the program: the end of it, without a chance to clean up."""


class CutAtStep(StringIO):
    """A standard output that ends the program with the line of one step.

    By then the step is logged; its checkpoint, if it has one, is not written.
    """

    def __init__(self, step: int) -> None:
        super().__init__()
        self._step = step

    def write(self, text: str) -> int:
        if f" {self._step}/" in text:
            raise PowerCutError
        return len(text)


@pytest.fixture
def start(
    make_run: Callable[[str], Run], make_model: Callable[..., MiMo]
) -> Callable[[str, str], Path]:
    """`start(name, stage)`: the folder of a run in which `stage` is next."""

    def start(name: str, stage: str) -> Path:
        run = make_run(name)
        before = {"mtp_heads": ("pretrain", 1), "sft": ("mtp_heads", 3)}
        if stage in before:
            upstream, layers = before[stage]
            model = make_model(num_nextn_predict_layers=layers, rope_theta=640_000.0)
            finished = run.stage(upstream, "hash")
            save_model(model, finished.dir / "model", torch.float32)
            finished.finish()
        return run.dir

    return start


def stored(checkpoint: Path) -> dict[str, bytes]:
    """Every weight and moment of a checkpoint."""
    reader = dcp.FileSystemReader(checkpoint)
    entries = reader.read_metadata().state_dict_metadata
    state = {name: torch.empty(entry.size) for name, entry in entries.items()}
    dcp.load(state, storage_reader=reader, no_dist=True)
    return {name: tensor.numpy().tobytes() for name, tensor in state.items()}


def result(folder: Path, stage: str) -> tuple[Any, ...]:
    """All that a stage leaves, but for clocks: model files, moments, metrics, facts."""
    stage_dir = folder / "stages" / stage
    last = max((stage_dir / "checkpoints").iterdir())
    files = sorted((stage_dir / "model").iterdir())
    files += stage_dir.glob("mixture.json")
    metrics = [
        {key: value for key, value in record.items() if not key.startswith(MEASURED)}
        for record in read_metrics(stage_dir / "metrics.jsonl")
    ]
    done = json.loads((stage_dir / "done.json").read_text())
    facts = {key: value for key, value in done.items() if key in ("rope_base", "parameters")}
    return {path.name: path.read_bytes() for path in files}, stored(last), metrics, facts


@pytest.mark.parametrize("stage", STAGES)
def test_power_cuts_change_no_bit(
    stage: str, recipe: Recipe, start: Callable[[str, str], Path]
) -> None:
    """Cut before the first checkpoint, after it, and at the last step."""
    plain = start("plain", stage)
    STAGES[stage](recipe, Run(plain))
    expected = result(plain, stage)
    folder = start("cut", stage)
    for step in (1, 4, STEPS[stage]):
        with pytest.raises(PowerCutError), redirect_stdout(CutAtStep(step)):
            STAGES[stage](recipe, Run(folder))
        assert Run(folder).done(stage) is None
    STAGES[stage](recipe, Run(folder))
    assert result(folder, stage) == expected
    assert [record["step"] for record in expected[2]] == list(range(1, STEPS[stage] + 1))


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_after_every_step_changes_no_bit(
    stage: str, recipe: Recipe, start: Callable[[str, str], Path]
) -> None:
    """The pre-training schedule has a growing batch, and a boundary of stages after step 5."""
    plain = start("plain", stage)
    STAGES[stage](recipe, Run(plain))
    folder = start("stopped", stage)
    for step in range(1, STEPS[stage] + 1):
        run = Run(folder)
        assert run.done(stage) is None
        run.interrupt.requested = True
        STAGES[stage](recipe, run)
        assert len(read_metrics(folder / "stages" / stage / "metrics.jsonl")) == step
    assert result(folder, stage) == result(plain, stage)


@pytest.mark.parametrize("stage", STAGES)
def test_cut_between_the_last_checkpoint_and_the_end(
    stage: str, recipe: Recipe, start: Callable[[str, str], Path]
) -> None:
    folder = start("plain", stage)
    STAGES[stage](recipe, Run(folder))
    expected = result(folder, stage)
    (folder / "stages" / stage / "done.json").unlink()
    shutil.rmtree(folder / "stages" / stage / "model")
    STAGES[stage](recipe, Run(folder))
    assert result(folder, stage) == expected


def test_pretraining_follows_its_table(recipe: Recipe, make_run: Callable[[str], Run]) -> None:
    run = make_run("run")
    pretrain.run(recipe, run)
    folder = run.dir / "stages" / "pretrain"
    metrics = read_metrics(folder / "metrics.jsonl")
    columns = ("stage", "seq_len", "rope_base", "mtp_weight")
    rows = [tuple(record[key] for key in columns) for record in metrics]
    assert rows == [("stage1", 16, 10_000.0, 0.3)] * 5 + [("stage3", 32, 640_000.0, 0.1)] * 3
    assert [record["batch_tokens"] // record["seq_len"] for record in metrics] == [
        1, 1, 2, 2, 2, 2, 2, 2,
    ]  # fmt: skip
    assert load_model(folder / "model").rope_base == 640_000.0
    mixture = json.loads((folder / "mixture.json").read_text())["mixture"]
    assert mixture["stage1"]["target"] == {"general": 0.5, "math": 0.5}
    # 128 tokens hold few documents, of up to 39 tokens.
    assert mixture["stage1"]["realised"]["math"] == pytest.approx(0.5, abs=0.35)
    assert sum(mixture["stage3"]["tokens"].values()) <= 192


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_the_table_s_mtp_weight_is_trained_with(
    recipe: Recipe, make_run: Callable[[str], Run], weight: float
) -> None:
    """Seen in the norms of the MTP layer, which begin as 1 and do not decay."""
    table = tuple(row.model_copy(update={"mtp_weight": weight}) for row in recipe.pretrain.schedule)
    settings = recipe.pretrain.model_copy(update={"schedule": table})
    run = make_run("run")
    pretrain.run(recipe.model_copy(update={"pretrain": settings}), run)
    [layer] = load_model(run.dir / "stages" / "pretrain" / "model").mtp_layers
    assert bool((layer.final_layernorm.weight == 1).all()) == (weight == 0)


def test_a_shard_that_has_changed_is_named(recipe: Recipe, make_run: Callable[[str], Run]) -> None:
    run = make_run("run")
    path = run.dir / "stages" / "data" / "shards" / "math.bin"
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"math\.bin .* changed since it was written"):
        pretrain.run(recipe, run)


def test_a_stages_mixture_covers_all_of_its_rows(
    recipe: Recipe, make_run: Callable[[str], Run]
) -> None:
    """Two rows of one stage with other shares: the target is their mean, by tokens."""
    first, second = recipe.pretrain.schedule
    second = second.model_copy(update={"stage": "stage1"})
    table = recipe.pretrain.model_copy(update={"schedule": (first, second)})
    run = make_run("run")
    pretrain.run(recipe.model_copy(update={"pretrain": table}), run)
    folder = run.dir / "stages" / "pretrain"
    mixture = json.loads((folder / "mixture.json").read_text())["mixture"]
    tokens = [record["batch_tokens"] for record in read_metrics(folder / "metrics.jsonl")]
    early, late = sum(tokens[:5]), sum(tokens[5:])
    for source, share in {"general": (0.5, 0.2), "math": (0.5, 0.5), "synthetic": (0, 0.3)}.items():
        wanted = (share[0] * early + share[1] * late) / (early + late)
        assert mixture["stage1"]["target"][source] == pytest.approx(wanted)
    assert sum(mixture["stage1"]["realised"].values()) == pytest.approx(1)
    # What is left of a document when the shares change counts to neither.
    assert early + late - 39 <= sum(mixture["stage1"]["tokens"].values()) <= early + late
