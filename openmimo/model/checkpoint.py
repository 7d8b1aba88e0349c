"""Models as folders, in the layout of the public MiMo-7B ones.

    config.json                      the published form (`openmimo.model.published`)
    model.safetensors                the trunk and the first MTP layer, or several shards of them
    model.safetensors.index.json     which file holds which tensor
    mtp_extra.safetensors            MTP layers 1 and up; only openmimo reads it
    openmimo.json                    the settings that the published form has no place for
    configuration_mimo.py, modeling_mimo.py      for transformers with `trust_remote_code`
    tokenizer.json, tokenizer_config.json, generation_config.json    if a tokenizer is given

The index is written even for a single file, because vLLM reads every *.safetensors of a folder
without one, and its MiMo draft model has no place for the extra layers.
"""

from __future__ import annotations

import importlib.resources
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from openmimo.config.schema import ModelConfig
from openmimo.errors import UserError
from openmimo.model.mimo import MiMo
from openmimo.model.published import from_published, to_published
from openmimo.runs import atomic_dir
from openmimo.tokenizer import Tokenizer

CONFIG = "config.json"
OWN_CONFIG = "openmimo.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
EXTRA_WEIGHTS = "mtp_extra.safetensors"
REMOTE_CODE = ("configuration_mimo.py", "modeling_mimo.py")

# In openmimo.json the number of MTP layers counts the extra ones, unlike the published number.
_OWN_FIELDS = ("num_nextn_predict_layers", "mtp_hidden", "mtp_mask_first")
_DTYPES = ("bfloat16", "float16", "float32")


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
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Write the files of a model folder into `folder`, which exists.

    Args:
        model: the model; its `rope_base`, not its config's, becomes `rope_theta`.
        folder: where to.
        dtype: bfloat16, float16 or float32; the model itself keeps its own.
        tokenizer: if given, its files and a generation_config.json are written too.
        max_shard_bytes: a larger model is split into files of at most about this size.

    Raises:
        UserError: the tokenizer does not fit the model, or the weights cannot be written.
    """
    if tokenizer is not None:
        _check_vocabulary(tokenizer, model.config, "the model")
    state = model.state_dict()
    extra = {name: tensor for name, tensor in state.items() if _is_extra(name)}
    published = {name: tensor for name, tensor in state.items() if name not in extra}
    _write_json(folder / INDEX, _save_shards(published, folder, dtype, max_shard_bytes))
    if extra:
        _save_tensors(extra, folder / EXTRA_WEIGHTS, dtype)
    _write_configs(model, folder, dtype, tokenizer)
    for path in folder.glob("*.safetensors"):
        shutil.copymode(folder / CONFIG, path)  # safetensors lets nobody but the owner read them
    for name in REMOTE_CODE:
        code = importlib.resources.files("openmimo.model.hf") / name
        (folder / name).write_text(code.read_text(encoding="utf-8"), encoding="utf-8")


def load_model(
    folder: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> MiMo:
    """Read a model folder, ours or a public one.

    Args:
        folder: what `save_model` wrote.
        device: where the weights go.
        dtype: what to convert them to; None keeps what is stored.

    Raises:
        UserError: a file is missing, damaged or not what config.json promises.
    """
    folder = Path(folder)
    config = load_config(folder)
    with torch.device("meta"):
        model = MiMo(config)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    stored = _weight_files(folder)
    if any(map(_is_extra, expected)):
        stored.append(_existing(folder / EXTRA_WEIGHTS))
    tensors: dict[str, Tensor] = {}
    for path in stored:
        tensors |= _load_tensors(path, expected, device, dtype)
    _check_names(set(expected), set(tensors), folder)
    model.load_state_dict(tensors, assign=True)
    return model


def load_release(
    folder: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> tuple[MiMo, Tokenizer]:
    """`load_model` and the tokenizer beside it, checked to fit each other."""
    model = load_model(folder, device, dtype)
    tokenizer = Tokenizer.load(folder)
    _check_vocabulary(tokenizer, model.config, str(folder))
    return model, tokenizer


def load_config(folder: Path | str) -> ModelConfig:
    """The `ModelConfig` of a model folder, from its config.json and openmimo.json.

    Raises:
        UserError: no such folder or file, or it does not describe a MiMo model.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no model folder {folder}")
    published = _read_json(_existing(folder / CONFIG))
    own = _read_json(folder / OWN_CONFIG) if (folder / OWN_CONFIG).exists() else {}
    if unknown := sorted(own.keys() - set(_OWN_FIELDS)):
        raise UserError(f"{folder / OWN_CONFIG} has an unknown key: {unknown[0]}")
    return from_published(published, own, str(folder / CONFIG))


def _is_extra(name: str) -> bool:
    """Whether a tensor belongs to an MTP layer that the published form does not have."""
    prefix, _, rest = name.partition("mtp_layers.")
    return prefix == "model." and not rest.startswith("0.")


def _save_shards(
    tensors: dict[str, Tensor], folder: Path, dtype: torch.dtype, max_shard_bytes: int
) -> dict[str, Any]:
    """Write the shards; returns the content of the index."""
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * dtype.itemsize
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += size
    files: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        many = len(shards) > 1
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if many else WEIGHTS
        _save_tensors(shard, folder / file, dtype)
        files |= dict.fromkeys(shard, file)
    total = sum(tensor.numel() for tensor in tensors.values()) * dtype.itemsize
    return {"metadata": {"total_size": total}, "weight_map": files}


def _save_tensors(tensors: dict[str, Tensor], path: Path, dtype: torch.dtype) -> None:
    stored = {
        name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()
    }
    try:
        # transformers refuses a file that does not say for which library it is.
        save_file(stored, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise UserError(f"cannot write {path}, is the disk full? {error}") from error


def _write_configs(
    model: MiMo, folder: Path, dtype: torch.dtype, tokenizer: Tokenizer | None
) -> None:
    config = model.config.model_copy(update={"rope_theta": model.rope_base})
    bos, eos = (tokenizer.doc_end_id, tokenizer.eos_id) if tokenizer else (None, None)
    dtype_name = str(dtype).removeprefix("torch.")
    _write_json(folder / CONFIG, to_published(config, dtype_name, bos, eos))
    _write_json(folder / OWN_CONFIG, {name: getattr(config, name) for name in _OWN_FIELDS})
    if tokenizer is None:
        return
    tokenizer.save(folder)
    # The sampling of the MiMo evaluations; vLLM and transformers take it as their default.
    generation = {
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": bos,
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.95,
        "max_new_tokens": min(2048, config.max_position_embeddings),
    }
    _write_json(folder / GENERATION_CONFIG, generation)


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the published tensors."""
    if not (folder / INDEX).exists():
        return [_existing(folder / WEIGHTS)]
    weight_map = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{folder / INDEX} has no weight_map")
    return [_existing(folder / str(name)) for name in sorted(set(weight_map.values()))]


def _load_tensors(
    path: Path,
    expected: dict[str, torch.Size],
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> dict[str, Tensor]:
    """The tensors of one file, each checked against the shape in `expected`."""
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118, it is no mapping
                shape = torch.Size(file.get_slice(name).get_shape())
                if shape != expected.get(name, shape):
                    wanted = tuple(expected[name])
                    raise UserError(f"{path}: {name} is {tuple(shape)}, config.json says {wanted}")
                tensor = file.get_tensor(name)
                if str(tensor.dtype).removeprefix("torch.") not in _DTYPES:
                    raise UserError(f"{path}: {name} is {tensor.dtype}; use {', '.join(_DTYPES)}")
                # A copy, because the file's own pages would vanish with the file.
                tensors[name] = tensor.to(device, dtype or tensor.dtype, copy=True)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or cut off: {error}") from error
    return tensors


def _check_names(expected: set[str], found: set[str], folder: Path) -> None:
    missing, unexpected = sorted(expected - found), sorted(found - expected)
    faults = []
    if missing:
        faults.append(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    if unexpected:
        faults.append(f"{len(unexpected)} tensors are unexpected, the first is {unexpected[0]}")
    if faults:
        raise UserError(f"{folder} does not hold the model of its config.json: {'; '.join(faults)}")


def _check_vocabulary(tokenizer: Tokenizer, config: ModelConfig, where: str) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and {where} only "
            f"{config.vocab_size}: they do not belong together"
        )


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path.parent} is not a complete model folder: {path.name} is missing")
    return path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold one JSON object")
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
