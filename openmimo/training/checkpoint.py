"""Training checkpoints: weights, optimiser moments and integers; no pickle.

    <folder>/step-000200/model.safetensors      every parameter, by name
    <folder>/step-000200/optimizer.safetensors  AdamW's moments, `<parameter>.exp_avg` and so on
    <folder>/step-000200/state.json             step, data position, counters, digests of both

A checkpoint appears whole or not at all, and the one before it is kept.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from openmimo.errors import UserError
from openmimo.runs import atomic_dir, require_space

KEEP = 2
FILES = ("model.safetensors", "optimizer.safetensors")
DIGESTS = "sha256"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.AdamW, state: dict[str, Any]
) -> None:
    """Write the checkpoint of `step`; `state` must be JSON. All but the last two are removed."""
    weights = {name: p.detach() for name, p in model.named_parameters()}
    moments = _moments(model, optimizer)
    size = sum(t.numel() * t.element_size() for t in (*weights.values(), *moments.values()))
    folder.mkdir(parents=True, exist_ok=True)
    require_space(folder, size)
    with atomic_dir(folder / f"step-{step:09d}") as partial:
        for name, tensors in zip(FILES, (weights, moments), strict=True):
            save_file(tensors, partial / name)
        record = {"step": step, **state, DIGESTS: {name: digest(partial / name) for name in FILES}}
        (partial / "state.json").write_text(json.dumps(record))
    for old in _checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old)


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.AdamW
) -> dict[str, Any] | None:
    """Restore the latest checkpoint in place and return its state; None if there is none.

    Raises:
        UserError: the checkpoint is damaged or belongs to another model.
    """
    found = _checkpoints(folder)
    if not found:
        return None
    latest = found[-1]
    try:
        state: dict[str, Any] = json.loads((latest / "state.json").read_bytes())
        expected = state.pop(DIGESTS)
        for name in FILES:
            if digest(latest / name) != expected[name]:
                raise ValueError(f"{name} has changed since it was written")
        _restore(model, optimizer, *(load_file(latest / name) for name in FILES))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError,
            SafetensorError) as error:  # fmt: skip
        raise UserError(
            f"the checkpoint {latest} is damaged ({str(error).splitlines()[0]}): delete this "
            "folder and repeat the command, it goes on from the checkpoint before"
        ) from error
    return state


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.suffix != ".tmp")


def _moments(model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {
        f"{names[parameter]}.{key}": values[key]
        for parameter, values in optimizer.state.items()
        for key in MOMENTS
    }


def _restore(
    model: nn.Module,
    optimizer: torch.optim.AdamW,
    weights: dict[str, Tensor],
    moments: dict[str, Tensor],
) -> None:
    parameters = dict(model.named_parameters())
    if parameters.keys() != weights.keys():
        raise KeyError("it holds other tensors than this model")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != weights[name].shape:
                raise ValueError(f"{name} has another shape")
            parameter.copy_(weights[name])
    for key, value in moments.items():
        name, _, moment = key.rpartition(".")
        # A copy, because the file's own pages would vanish with the file.
        optimizer.state[parameters[name]][moment] = value.clone()
