"""Runs that go on from an imported model: what is taken, what is refused, what redoes a stage."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from openmimo.config.base import to_toml
from openmimo.config.load import load_config
from openmimo.config.schema import Recipe
from openmimo.data.build import data_hash
from openmimo.errors import UserError
from openmimo.model.checkpoint import load_model, save_model
from openmimo.model.mimo import MiMo
from openmimo.runs import Run
from openmimo.tokenizer import Tokenizer
from openmimo.training import pretrain
from openmimo.training.pretrain import first_weights
from openmimo.training.start import check_start, take_model

REST = """
name = "tiny"
[pretrain]
schedule = []
[mtp_heads]
layers = 1
tune_first = true
generations = 2
length = 48
[sft]
length = 48
[rl]
"""
ROW = """
[[pretrain.schedule]]
stage = "more"
until = 100
learning_rate = [0.0, 0.0]
batch = [1, 1]
length = 16
rope_base = {base}
mtp_weight = 0.1
mixture = {{ general = 1.0 }}
"""


@pytest.fixture
def folder(tmp_path: Path, make_model: Callable[..., MiMo], tokenizer: Tokenizer) -> Path:
    """An imported model: three MTP layers, weights in bfloat16, RoPE base 50,000."""
    folder = tmp_path / "imported"
    save_model(make_model(rope_theta=50_000.0), folder, torch.bfloat16)
    tokenizer.save(folder)
    return folder


def read(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    """As the command line reads a recipe file."""
    (tmp_path / "recipe.toml").write_text(text)
    path = str(tmp_path / "recipe.toml")
    recipe = load_config(Recipe, path, list(overrides), complete=take_model)
    check_start(recipe)
    return recipe


@pytest.fixture
def started(tmp_path: Path, folder: Path) -> Recipe:
    return read(tmp_path, f'init_from = "{folder}"\n{REST}')


def first_layer_only(model: MiMo) -> dict[str, torch.Tensor]:
    extra = ("model.mtp_layers.1.", "model.mtp_layers.2.")
    return {n: t.float() for n, t in model.state_dict().items() if not n.startswith(extra)}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_the_model_section_is_that_of_the_folder(folder: Path, started: Recipe) -> None:
    theirs = load_model(folder).config
    assert started.model == theirs.model_copy(update={"num_nextn_predict_layers": 1})
    assert started.model.rope_theta == 50_000.0


def test_a_part_of_the_section_may_be_said(tmp_path: Path, folder: Path) -> None:
    said = "[model]\nhidden_size = 16\nrope_theta = 50_000\n"
    assert read(tmp_path, f'init_from = "{folder}"\n{REST}{said}').model.num_hidden_layers == 2


def test_the_resolved_config_loads_again_even_without_the_folder(
    tmp_path: Path, folder: Path, started: Recipe
) -> None:
    assert read(tmp_path, to_toml(started)) == started
    shutil.rmtree(folder)
    assert read(tmp_path, to_toml(started)) == started
    with pytest.raises(UserError, match="no folder: make it with `mimo import`"):
        pretrain.run(started, finished_data(tmp_path))


def finished_data(tmp_path: Path) -> Run:
    run = Run(tmp_path / "empty")
    run.stage("data", "hash").finish()
    return run


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.hidden_size=32"], "model.hidden_size is 32, but the model of init_from"),
        (["model.rope_theta=1e4"], "model.rope_theta is 10000.0, but .* has 50000.0"),
        (["model.max_position_embeddings=128"], "model.max_position_embeddings is 128"),
        (["model.mtp_hidden=post_norm"], "model.mtp_hidden is post_norm"),
        (["sft.length=65"], "sft.length is 65, more than model.max_position_embeddings, 64"),
        (["data.tokenizer=qwen2"], "data.tokenizer must be left out"),
        (["init_from=nowhere"], "init_from is 'nowhere', which is no folder: make it with `mimo"),
        (["init_from=none"], "model is not set, and has no default"),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_the_setting(
    tmp_path: Path, folder: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, f'init_from = "{folder}"\n{REST}', *overrides)


def test_a_schedule_that_would_change_the_rope_base_unnoticed_is_refused(
    tmp_path: Path, folder: Path
) -> None:
    text = f'init_from = "{folder}"\n{REST.replace("schedule = []", "")}'
    assert read(tmp_path, text + ROW.format(base=50_000)).pretrain.schedule
    with pytest.raises(UserError, match=r"rope_base is 10000, but .* trained with 50000"):
        read(tmp_path, text + ROW.format(base=10_000))


def test_a_model_without_mtp_layers_needs_one(
    tmp_path: Path, make_model: Callable[..., MiMo]
) -> None:
    save_model(make_model(num_nextn_predict_layers=0), tmp_path / "trunk")
    with pytest.raises(UserError, match=r"has no MTP layer: .*`mimo import --add-mtp`"):
        read(tmp_path, f'init_from = "{tmp_path / "trunk"}"\n{REST}')


def test_without_a_schedule_the_model_is_handed_on(
    folder: Path, started: Recipe, make_run: Callable[[str], Run]
) -> None:
    run = make_run("run")
    pretrain.run(started, run)
    handed = load_model(run.dir / "stages" / "pretrain" / "model")
    assert handed.lm_head.weight.dtype == torch.float32
    assert handed.rope_base == 50_000.0
    assert equal(handed.state_dict(), first_layer_only(load_model(folder)))
    done = run.done("pretrain")
    assert done is not None
    assert done["init_from"] == "imported"


def test_the_first_mtp_layer_is_taken_and_the_others_are_not(folder: Path, started: Recipe) -> None:
    whole = load_model(folder, dtype=torch.float32)
    weights = dict(first_weights(started))
    assert equal(weights, first_layer_only(whole))
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_training_begins_with_the_weights_of_the_folder(
    tmp_path: Path, folder: Path, make_run: Callable[[str], Run]
) -> None:
    """Steps with learning rate 0 leave them as they are."""
    text = f'init_from = "{folder}"\n{REST.replace("schedule = []", "")}'
    run = make_run("run")
    pretrain.run(read(tmp_path, text + ROW.format(base=50_000)), run)
    trained = load_model(run.dir / "stages" / "pretrain" / "model")
    assert equal(trained.state_dict(), first_layer_only(load_model(folder)))


def test_another_model_or_tokenizer_in_the_folder_redoes_the_stages(
    folder: Path, started: Recipe, make_run: Callable[[str], Run], capsys: Any
) -> None:
    run = make_run("run")
    pretrain.run(started, run)
    pretrain.run(started, run)
    assert "starting over" not in capsys.readouterr().out
    data = data_hash(started)

    model = load_model(folder)
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    tokenizer = (folder / "tokenizer.json").read_text()
    save_model(model, folder, torch.bfloat16)
    (folder / "tokenizer.json").write_text(tokenizer)
    pretrain.run(started, run)
    assert "pretrain: starting over" in capsys.readouterr().out
    handed = load_model(run.dir / "stages" / "pretrain" / "model")
    assert equal(handed.state_dict(), first_layer_only(model))

    (folder / "tokenizer.json").write_text(tokenizer + "\n")
    assert data_hash(started) != data
