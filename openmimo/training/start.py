"""Going on from a model that was trained elsewhere: the setting `init_from`.

    settings of a recipe -> take_model -> checked settings -> check_start -> pretrain: first_weights

torch is imported only where a recipe has the setting: `mimo VERB --help` must answer at once.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from openmimo.config.base import NONE
from openmimo.config.schema import ModelConfig, Recipe
from openmimo.errors import UserError

_NOT_COMPARED = ("num_nextn_predict_layers", "initializer_range")
"""Pre-training has one MTP layer, whatever the folder has; nothing is initialised."""


_NEEDED = {name for name, field in ModelConfig.model_fields.items() if field.is_required()}


def take_model(settings: dict[str, Any]) -> None:
    """Fill in [model] from the folder of `init_from`, where a recipe leaves it out.

    Args:
        settings: of a recipe, as they were read and not checked yet; changed in place.

    Raises:
        UserError: [model] is needed, and there is no such folder or it describes no MiMo model.
    """
    folder = settings.get("init_from")
    if not isinstance(folder, str) or folder == NONE:
        return
    model = settings.setdefault("model", {})
    if not isinstance(model, dict):
        return  # said when the settings are checked
    if not Path(folder).is_dir() and model.keys() >= _NEEDED:
        return  # enough is said, as in a run's config.toml that has outlived the folder
    theirs = _read_config(folder).model_dump(mode="json") | {"num_nextn_predict_layers": 1}
    for name, value in theirs.items():
        model.setdefault(name, value)


def check_start(recipe: Recipe) -> None:
    """Raise UserError unless the model of `init_from` is what the recipe goes on with.

    Nothing is checked without `init_from`, nor once its folder is gone: the stages `data` and
    `pretrain` say so if they still need it.
    """
    folder = recipe.init_from
    if folder is None or not Path(folder).is_dir():
        return
    config = _read_config(folder)
    if not config.num_nextn_predict_layers:
        raise UserError(
            f"init_from = {folder} has no MTP layer: import it again with `mimo import --add-mtp`"
        )
    for name, value in recipe.model:
        if name not in _NOT_COMPARED and (theirs := getattr(config, name)) != value:
            raise UserError(
                f"model.{name} is {value}, but the model of init_from = {folder} has {theirs}: "
                "give the recipe that value, or leave [model] out of it"
            )
    rows = recipe.pretrain.schedule
    if rows and rows[0].rope_base != config.rope_theta:
        # Later rows may change it, as stage 3 does; the first would do so unnoticed.
        raise UserError(
            f"pretrain.schedule.0.rope_base is {rows[0].rope_base:g}, but the model of init_from = "
            f"{folder} was trained with {config.rope_theta:g}: begin with that"
        )


def start_digest(recipe: Recipe) -> str:
    """SHA-256 over configuration and weights in `init_from`: whether it is still the same model.

    Raises:
        UserError: it is no model folder.
    """
    from openmimo.model.checkpoint import open_model
    from openmimo.model.folder import CONFIG, OWN_CONFIG
    from openmimo.training.checkpoint import digest

    folder = _existing(str(recipe.init_from))
    _, files = open_model(folder)
    names = {tensor.file for tensor in files.stored.values()} | {folder / CONFIG}
    if (folder / OWN_CONFIG).exists():
        names.add(folder / OWN_CONFIG)
    total = hashlib.sha256()
    for path in sorted(names):
        total.update(f"{path.name} {digest(path)}\n".encode())
    return total.hexdigest()


def _read_config(folder: str) -> ModelConfig:
    from openmimo.model.checkpoint import load_config

    return load_config(_existing(folder))


def _existing(folder: str) -> Path:
    if not Path(folder).is_dir():
        raise UserError(f"init_from is {folder!r}, which is no folder: make it with `mimo import`")
    return Path(folder)
