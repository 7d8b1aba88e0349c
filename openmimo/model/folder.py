"""Writing model folders, in the layout of the public MiMo-7B ones.

    config.json                      the published form (`openmimo.model.published`)
    model.safetensors                the trunk and the first MTP layer, or several shards of them
    model.safetensors.index.json     which file holds which tensor
    mtp_extra.safetensors            MTP layers 1 and up; only openmimo reads it
    openmimo.json                    the settings that the published form has no place for
    configuration_mimo.py, modeling_mimo.py      for transformers with `trust_remote_code`
    tokenizer.json, tokenizer_config.json, generation_config.json    if a tokenizer is given

The index is written even for a single file, because vLLM reads every *.safetensors of a folder
without one, and its MiMo draft model has no place for the extra layers.

Tensors are asked for one by one and written shard by shard: memory holds one shard and one tensor.
"""

from __future__ import annotations

import importlib.resources
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from openmimo.config.schema import ModelConfig
from openmimo.errors import UserError
from openmimo.json_files import read_json
from openmimo.model.layout import Shape, is_extra, tensor_shapes
from openmimo.model.published import to_published
from openmimo.model.tensors import INDEX, WEIGHTS
from openmimo.model.widen import CHANGED
from openmimo.runs import require_space
from openmimo.tokenizer import Tokenizer

CONFIG = "config.json"
OWN_CONFIG = "openmimo.json"
GENERATION_CONFIG = "generation_config.json"
EXTRA_WEIGHTS = "mtp_extra.safetensors"
REMOTE_CODE = ("configuration_mimo.py", "modeling_mimo.py")
SHARD_BYTES = 2 * 10**9

# In openmimo.json the number of MTP layers counts the extra ones, unlike the published number.
OWN_FIELDS = ("num_nextn_predict_layers", "mtp_hidden", "mtp_mask_first")
BEFORE_WIDENING = "before_widening"
"""In openmimo.json of a folder with zeros for vLLM: the sizes without them (`model.widen`)."""

ORIGINAL_CARD = "ORIGINAL_README.md"
PAPERS = ("LICENSE*", "LICENCE*", "NOTICE*", ORIGINAL_CARD)
MAX_PAPER = 2**20
"""Bytes."""

Read = Callable[[str], Tensor]
"""Gives the tensor of a published name, in any dtype."""


@dataclass(frozen=True)
class Endings:
    """Where a model's texts begin and end.

    bos, eos: of config.json; eos may be several ids.
    generation: the content of generation_config.json.
    original: whether all this is what the model came with, absent parts included.
    """

    bos: Any = None
    eos: Any = None
    generation: dict[str, Any] | None = None
    original: bool = False

    @classmethod
    def of_folder(cls, folder: Path) -> Endings:
        """What a model folder says."""
        published = read_json(folder / CONFIG)
        path = folder / GENERATION_CONFIG
        generation = read_json(path) if path.is_file() else None
        return cls(published.get("bos_token_id"), published.get("eos_token_id"), generation, True)

    def completed(self, tokenizer: Tokenizer | None) -> Endings:
        """With the tokenizer's ids where config.json has none: <|endoftext|> and <|im_end|>."""
        if tokenizer is None:
            return self
        bos = tokenizer.doc_end_id if self.bos is None else self.bos
        eos = tokenizer.eos_id if self.eos is None else self.eos
        return replace(self, bos=bos, eos=eos)


def write_folder(
    folder: Path,
    config: ModelConfig,
    read: Read,
    dtype: torch.dtype,
    tokenizer: Tokenizer | None = None,
    max_shard_bytes: int = SHARD_BYTES,
    endings: Endings | None = None,
    before_widening: ModelConfig | None = None,
) -> None:
    """Write the files of a MiMo folder into `folder`, which exists.

    Args:
        folder: where to.
        config: the model's shape; `rope_theta` must be the base that it was trained with last.
        read: called once for every tensor of the layout, in the order of `write_order`.
        dtype: of the stored weights: bfloat16, float16 or float32.
        tokenizer: if given, its files and a generation_config.json are written too.
        max_shard_bytes: a larger model is split into files of at most about this size.
        endings: what the original says of its answers' ends; what it leaves out follows from the
            tokenizer.
        before_widening: the shape without the zeros of `model.widen`; None if there are none.

    Raises:
        UserError: the tokenizer does not fit the model, there is no space, or `read` raises it.
    """
    if tokenizer is not None:
        check_vocabulary(tokenizer, config, "the model")
    shapes = dict(tensor_shapes(config))
    require_space(folder, sum(map(math.prod, shapes.values())) * dtype.itemsize)
    published = {name: shape for name, shape in shapes.items() if not is_extra(name)}
    write_weights(folder, published, read, dtype, max_shard_bytes)
    if extra := [name for name in shapes if is_extra(name)]:
        _write_file(folder / EXTRA_WEIGHTS, extra, read, dtype)
    endings = (endings or Endings()).completed(tokenizer)
    published = to_published(config, dtype_name(dtype), endings.bos, endings.eos)
    write_json(folder / CONFIG, published)
    own: dict[str, Any] = {name: getattr(config, name) for name in OWN_FIELDS}
    if before_widening is not None and before_widening != config:
        own[BEFORE_WIDENING] = {name: getattr(before_widening, name) for name in CHANGED}
    write_json(folder / OWN_CONFIG, own)
    write_texts(folder, tokenizer, config, endings)
    copy_mode(folder)
    for name in REMOTE_CODE:
        code = importlib.resources.files("openmimo.model.hf") / name
        (folder / name).write_text(code.read_text(encoding="utf-8"), encoding="utf-8")


def write_order(config: ModelConfig) -> list[str]:
    """Every tensor's name in the order in which `write_folder` reads them: extra layers last."""
    names = [name for name, _ in tensor_shapes(config)]
    return sorted(names, key=is_extra)


def write_weights(
    folder: Path, shapes: dict[str, Shape], read: Read, dtype: torch.dtype, max_shard_bytes: int
) -> None:
    """Write safetensors files of the tensors in `shapes`, and their index."""
    shards: list[list[str]] = [[]]
    filled = total = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * dtype.itemsize
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
        total += size
    files: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        many = len(shards) > 1
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if many else WEIGHTS
        _write_file(folder / file, names, read, dtype)
        files |= dict.fromkeys(names, file)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": files})


def write_texts(
    folder: Path, tokenizer: Tokenizer | None, config: ModelConfig, endings: Endings
) -> None:
    """The tokenizer's files and generation_config.json.

    Of a model of our own the latter says the sampling of the MiMo evaluations, which vLLM and
    transformers take as their default; of an imported one it is the original's.
    """
    if tokenizer is not None:
        tokenizer.save(folder)
    generation = endings.generation
    if generation is None and tokenizer is not None and not endings.original:
        generation = {
            "bos_token_id": endings.bos,
            "eos_token_id": endings.eos,
            "pad_token_id": tokenizer.doc_end_id,
            "do_sample": True,
            "temperature": 0.6,
            "top_p": 0.95,
            "max_new_tokens": min(2048, config.max_position_embeddings),
        }
    if generation is not None:
        write_json(folder / GENERATION_CONFIG, generation)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """One JSON object, readable."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_mode(folder: Path) -> None:
    """Let those read the weights who may read the config: safetensors lets only the owner."""
    for path in folder.glob("*.safetensors"):
        shutil.copymode(folder / CONFIG, path)


def check_vocabulary(tokenizer: Tokenizer, config: ModelConfig, where: str) -> None:
    """Raise UserError if the tokenizer has more ids than the model has rows."""
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and {where} only "
            f"{config.vocab_size}: they do not belong together"
        )


def dtype_name(dtype: torch.dtype) -> str:
    """As torch spells it after the dot: "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def _write_file(path: Path, names: list[str], read: Read, dtype: torch.dtype) -> None:
    tensors = {name: _cast(name, read(name), dtype) for name in names}
    try:
        # transformers refuses a file that does not say for which library it is.
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise UserError(f"cannot write {path}, is the disk full? {error}") from error


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    stored = tensor.detach().to("cpu", dtype).contiguous()
    if tensor.dtype != dtype and not stored.isfinite().all():
        kind = dtype_name(dtype)
        raise UserError(f"{name} has numbers that are too large for {kind}: choose another dtype")
    return stored


def copy_papers(source: Path, folder: Path) -> None:
    """Licence, notice and original card go with the weights; small text files of `source` alone.

    A link is followed only within the folder or, as the hub's cache has them, to its `blobs`: else
    a downloaded folder could put any file of this machine into what its user publishes.
    """
    for pattern in PAPERS:
        for path in sorted(source.glob(pattern)):
            if path.suffix in ("", ".md", ".txt") and is_paper(path):
                shutil.copyfile(path, folder / path.name)


def is_paper(path: Path) -> bool:
    """Whether a file is small and no link to somewhere else."""
    real = path.resolve()
    inside = real.parent == path.parent.resolve() or real.parent.name == "blobs"
    return inside and real.is_file() and real.stat().st_size < MAX_PAPER
