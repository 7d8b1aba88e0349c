"""Models from and to folders in the public layout (`openmimo.model.folder` lists the files)."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from openmimo.config.schema import ModelConfig
from openmimo.errors import UserError
from openmimo.json_files import read_json
from openmimo.model.folder import (
    BEFORE_WIDENING,
    CONFIG,
    EXTRA_WEIGHTS,
    OWN_CONFIG,
    OWN_FIELDS,
    SHARD_BYTES,
    check_vocabulary,
    dtype_name,
    write_folder,
)
from openmimo.model.layout import MTP, Shape, tensor_count, tensor_shapes
from openmimo.model.mimo import MiMo
from openmimo.model.published import from_published, make_config
from openmimo.model.tensors import TensorFiles, existing, open_weights
from openmimo.model.widen import CHANGED, narrow, vllm_shape
from openmimo.runs import atomic_dir
from openmimo.tokenizer import Tokenizer


def save_model(model: MiMo, folder: Path | str, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write `model` to `folder`, which appears whole or not at all; an old one is replaced.

    Args and errors: those of `write_model`.
    """
    with atomic_dir(Path(folder)) as target:
        write_model(model, target, dtype)


def write_model(
    model: MiMo,
    folder: Path,
    dtype: torch.dtype,
    tokenizer: Tokenizer | None = None,
    max_shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the files of a model folder into `folder`, which exists.

    The model's `rope_base`, not its config's, becomes `rope_theta`. Args and errors: those of
    `openmimo.model.folder.write_folder`; the model itself keeps its dtype.
    """
    config = model.config.model_copy(update={"rope_theta": model.rope_base})
    state = model.state_dict()
    write_folder(folder, config, state.__getitem__, dtype, tokenizer, max_shard_bytes)


def load_model(
    folder: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> MiMo:
    """Read a model folder, ours or a public one.

    Args:
        folder: what `save_model` wrote.
        device: where the weights go.
        dtype: what to convert them to; None keeps what is stored (float32 if it is mixed).

    Raises:
        UserError: a file is missing, damaged or not what config.json promises, or a weight is not
            finite.
    """
    config, files = open_model(Path(folder))
    wanted = dtype or files.dtype
    narrower = torch.finfo(wanted).max < torch.finfo(files.dtype).max
    with torch.device("meta"):
        model = MiMo(config)
    tensors: dict[str, Tensor] = {}
    for name in files.stored:
        tensor = files.read(name).to(device, wanted)
        if narrower and not torch.isfinite(tensor).all():
            raise UserError(f"{folder}: {name} is too large for {dtype_name(wanted)}")
        tensors[name] = tensor
    model.load_state_dict(tensors, assign=True)
    return model


def load_release(
    folder: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> tuple[MiMo, Tokenizer]:
    """A model to run, and the tokenizer beside it, checked to fit each other.

    As `load_model`, but the zeros that `mimo export --to vllm` may have put in are left out: the
    model computes the same, up to rounding, in less time.
    """
    model = without_zeros(load_model(folder, device, dtype), Path(folder))
    tokenizer = Tokenizer.load(folder)
    check_vocabulary(tokenizer, model.config, str(folder))
    return model, tokenizer


def without_zeros(model: MiMo, folder: Path) -> MiMo:
    """The model as it was before widening (`config_without_zeros`).

    Raises:
        UserError: openmimo.json is damaged, or the weights are not those that were widened.
    """
    config = config_without_zeros(model.config, folder)
    if config == model.config:
        return model
    with torch.device("meta"):
        small = MiMo(config)
    state = model.state_dict()
    tensors = {name: narrow(name, state.pop(name), config, model.config) for name in list(state)}
    small.load_state_dict(tensors, assign=True)
    return small


def config_without_zeros(config: ModelConfig, folder: Path) -> ModelConfig:
    """The sizes before widening, by what the folder's openmimo.json says; `config` if nothing.

    Raises:
        UserError: openmimo.json is damaged.
    """
    path = folder / OWN_CONFIG
    sizes = read_json(path).get(BEFORE_WIDENING) if path.is_file() else None
    if sizes is None:
        return config
    where = f"{path}: {BEFORE_WIDENING}"
    if not isinstance(sizes, dict) or sizes.keys() != set(CHANGED):
        raise UserError(f"{where} must have {', '.join(CHANGED)}")
    before = make_config(config.model_dump() | sizes, config.rope_scaling, where)
    if vllm_shape(before) != config:
        raise UserError(f"{where} does not belong to config.json")
    return before


def open_model(folder: Path) -> tuple[ModelConfig, TensorFiles]:
    """The config and the tensors of a model folder, checked against each other; none is read.

    Raises:
        UserError: as `load_model`, but for what only the weights themselves show.
    """
    config = load_config(folder)
    files = open_weights(folder)
    add_extra_layers(files, folder, config.num_nextn_predict_layers)
    check_shapes(config, files.shapes, folder)
    return config, files


def add_extra_layers(files: TensorFiles, folder: Path, layers: int) -> None:
    """Take mtp_extra.safetensors too, if there are MTP layers that the other files do not hold.

    Raises:
        UserError: it is missing or damaged, or `layers` leaves it out: openmimo.json is damaged.
    """
    if layers > 1 and not any(name.startswith(f"{MTP}1.") for name in files.stored):
        files.add(existing(folder / EXTRA_WEIGHTS))
    elif layers < 2 and os.path.lexists(folder / EXTRA_WEIGHTS):
        raise UserError(
            f"{folder / OWN_CONFIG} should count the MTP layers in {EXTRA_WEIGHTS}: restore it, "
            f"or remove {EXTRA_WEIGHTS} to go on without them"
        )


def load_config(folder: Path | str) -> ModelConfig:
    """The `ModelConfig` of a model folder, from its config.json and openmimo.json.

    Raises:
        UserError: no such folder or file, or it does not describe a MiMo model.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise UserError(f"no model folder {folder}")
    published = read_json(existing(folder / CONFIG))
    return from_published(published, read_own_config(folder), str(folder / CONFIG))


def read_own_config(folder: Path) -> dict[str, object]:
    """What openmimo.json says; empty without one."""
    own = read_json(folder / OWN_CONFIG) if os.path.lexists(folder / OWN_CONFIG) else {}
    own.pop(BEFORE_WIDENING, None)  # no setting: `without_zeros` reads it
    if unknown := sorted(own.keys() - set(OWN_FIELDS)):
        raise UserError(f"{folder / OWN_CONFIG} has an unknown key: {unknown[0]}")
    return own


def check_shapes(config: ModelConfig, found: dict[str, Shape], where: Path) -> None:
    """Raise UserError unless `found` is what a model of `config` consists of."""
    if (wanted := tensor_count(config)) > 2 * len(found) + 100:
        # Not one by one: an absurd number of layers would take all memory.
        raise UserError(f"{where}: config.json asks for {wanted:,} tensors, {len(found)} are there")
    expected = dict(tensor_shapes(config))
    missing, unexpected = sorted(expected.keys() - found), sorted(found.keys() - expected)
    faults = []
    if missing:
        faults.append(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    if unexpected:
        faults.append(f"{len(unexpected)} tensors are unexpected, the first is {unexpected[0]}")
    if faults:
        raise UserError(f"{where} does not hold the model of its config.json: {'; '.join(faults)}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise UserError(f"{where}: {name} is {found[name]}, config.json says {shape}")
