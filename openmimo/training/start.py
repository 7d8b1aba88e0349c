"""Going on from a model that was trained elsewhere: `init_from`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from openmimo.config.schema import ModelConfig, Recipe
from openmimo.errors import UserError
from openmimo.model.checkpoint import load_config, load_model, open_model
from openmimo.model.folder import CONFIG, OWN_CONFIG
from openmimo.model.mimo import MiMo
from openmimo.training.checkpoint import digest

_NOT_COMPARED = ("num_nextn_predict_layers", "initializer_range")


def start_model(recipe: Recipe, folder: Path) -> MiMo:
    """The model of `folder` with its first MTP layer alone, in float32.

    Raises:
        UserError: it cannot be read, has no MTP layer, or is not the model that the recipe
            describes; the message names the setting.
    """
    config = load_config(folder)
    check_start(recipe, config, folder)
    whole = load_model(folder, dtype=torch.float32)
    if config.num_nextn_predict_layers == 1:
        return whole
    # The others are copies for inference; the stage `mtp_heads` makes them anew.
    first = MiMo(config.model_copy(update={"num_nextn_predict_layers": 1}))
    state = whole.state_dict()
    first.load_state_dict({name: state[name] for name in first.state_dict()})
    return first


def check_start(recipe: Recipe, config: ModelConfig, folder: Path) -> None:
    """Raise UserError unless a model of `config` is what the recipe goes on with."""
    if not config.num_nextn_predict_layers:
        raise UserError(
            f"init_from = {folder} has no MTP layer: import it again with `mimo import --add-mtp`"
        )
    for name, value in recipe.model:
        if name not in _NOT_COMPARED and (theirs := getattr(config, name)) != value:
            raise UserError(
                f"model.{name} is {value}, but the model of init_from = {folder} has {theirs}: "
                "give the recipe that value"
            )
    rows = recipe.pretrain.schedule
    if rows and rows[0].rope_base != config.rope_theta:
        # Later rows may change it, as stage 3 does; the first would do so unnoticed.
        raise UserError(
            f"pretrain.schedule.0.rope_base is {rows[0].rope_base:g}, but the model of init_from = "
            f"{folder} was trained with {config.rope_theta:g}: begin with that"
        )


def folder_digest(folder: Path) -> str:
    """SHA-256 over a model folder's configuration and weights: whether it is still the same.

    Raises:
        UserError: it is no model folder.
    """
    _, files = open_model(folder)
    names = {tensor.file for tensor in files.stored.values()} | {folder / CONFIG}
    if (folder / OWN_CONFIG).exists():
        names.add(folder / OWN_CONFIG)
    total = hashlib.sha256()
    for path in sorted(names):
        total.update(f"{path.name} {digest(path)}\n".encode())
    return total.hexdigest()
