"""`mimo inspect`: what a model folder or GGUF file is, without reading its weights.

Everything in it is foreign: JSON is read with size limits, headers are checked by arithmetic,
Python and pickles beside them are listed and never opened. A folder that cannot be loaded is
described as far as it can be read.
"""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from openmimo.config.schema import ModelConfig
from openmimo.errors import UserError
from openmimo.interop.deviations import Facts, deviations
from openmimo.interop.families import Family, check_stored, read_family
from openmimo.interop.memory import Need, parameter_count, to_run, to_train
from openmimo.interop.sources import FolderSource
from openmimo.interop.weight_scan import scan
from openmimo.model.checkpoint import open_model, read_own_config
from openmimo.model.folder import CONFIG, EXTRA_WEIGHTS, check_vocabulary
from openmimo.model.layout import EMBEDDING, HEAD, LAYER, MTP, NORM, Shape, tensor_count
from openmimo.model.tensors import (
    INDEX,
    MAX_JSON,
    TensorFiles,
    existing,
    has_index,
    read_json,
    weight_files,
)
from openmimo.tokenizer import Tokenizer
from openmimo.tokenizer_folder import FILES as TOKENIZER_FILES

MOST_ENTRIES = 10_000
"""Directory entries that are looked at; a model folder has a few dozen."""
MOST_FAULTS = 5
"""Faults of one kind that are named one by one."""
TRAIN_TOKENS = 2_048
"""Of a micro-batch, and of its longest row."""

_ITEMSIZE = {"bfloat16": 2, "float16": 2, "float32": 4}
_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
T = TypeVar("T")


@dataclass
class Inspection:
    """What was found.

    family: mimo, qwen2 or llama; None if config.json does not tell.
    parameters: by part; `mtp` is a list, one number a layer.
    storage: types, files, bytes, index.
    deviations: from the published layout, a sentence each; openmimo can still use the model.
    faults: why it cannot be used, a line each; empty if it can.
    weights: what `--weights` found, a sentence each; None without it.
    """

    path: str
    family: str | None = None
    architecture: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    storage: dict[str, Any] = field(default_factory=dict)
    mtp: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] | None = None
    memory: list[dict[str, Any]] = field(default_factory=list)
    deviations: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    weights: list[str] | None = None


def inspect_model(path: Path, weights: bool = False) -> Inspection:
    """Describe a model folder or a GGUF file.

    Args:
        path: the folder or file.
        weights: read every tensor too, one at a time, and say what is odd about its values.

    Raises:
        UserError: there is nothing to describe at `path`.
    """
    if os.path.isdir(path):
        return _Folder(path).inspect(weights)
    if os.path.isfile(path) and path.suffix == ".gguf":
        return _inspect_gguf(path, weights)
    if not os.path.lexists(path):
        raise UserError(f"{path} does not exist")
    raise UserError(f"{path} is neither a model folder nor a .gguf file")


class _Folder:
    """One folder, looked at piece by piece; every piece may be missing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._faults: list[str] = []
        self._published = self._attempt(lambda: read_json(existing(path / CONFIG))) or {}
        self._own = self._attempt(lambda: read_own_config(path)) or {}
        self._family: Family | None = None
        if self._published:
            where = str(path / CONFIG)
            self._family = self._attempt(lambda: read_family(self._published, self._own, where))
        self._files = self._open_files()

    def inspect(self, weights: bool) -> Inspection:
        found = Inspection(str(self._path))
        self._check_loads()
        shapes = self._files.shapes
        found.parameters = count_parameters(shapes)
        found.storage = self._storage()
        tokenizer = self._read_tokenizer()
        if self._family:
            config = self._family.config
            dtype = self._main_dtype()
            found.family = self._family.name
            found.architecture = describe(config)
            found.mtp = self._mtp(config, shapes)
            found.memory = memory(config, dtype)
            if tokenizer:
                found.tokenizer = describe_tokenizer(tokenizer, config)
                found.tokenizer["chat_template"] = self._has_chat_template()
        found.deviations = deviations(self._facts(found, tokenizer))
        if weights:
            found.weights, faults = scan(shapes, self._files.read_unchecked)
            found.faults += faults
        found.faults = self._faults + found.faults
        return found

    def _attempt(self, action: Callable[[], T]) -> T | None:
        """What `action` returns; a UserError is noted, once."""
        try:
            return action()
        except UserError as error:
            self._note(str(error))
            return None

    def _note(self, fault: str) -> None:
        if fault not in self._faults:
            self._faults.append(fault)

    def _open_files(self) -> TensorFiles:
        """The headers of all weight files that can be read."""
        paths = self._attempt(lambda: weight_files(self._path))
        if paths is None:  # a lying index, or none: what is there?
            names = sorted(name for name in self._names() if name.endswith(".safetensors"))
            paths = [self._path / name for name in names]
        extra = self._path / EXTRA_WEIGHTS
        if os.path.isfile(extra) and extra not in paths:
            paths.append(extra)
        files = TensorFiles([])
        for path in paths:
            if os.path.isfile(path):
                self._attempt(lambda path=path: files.add(path))  # type: ignore[misc]
        return files

    def _names(self) -> list[str]:
        """The folder's entries, at most `MOST_ENTRIES`."""
        with os.scandir(self._path) as entries:
            return sorted(entry.name for entry in itertools.islice(entries, MOST_ENTRIES))

    def _check_loads(self) -> None:
        """Ask the loader; if it refuses, say more than the first thing that it found."""
        if self._published.get("model_type") == "mimo":
            fault = self._refusal(lambda: open_model(self._path))
        else:
            fault = self._refusal(self._check_foreign)
        if fault is None:
            return
        if self._family:
            for line in shape_faults(self._family, self._files.shapes):
                self._note(line)
        if not any(fault.endswith(line) for line in self._faults):
            self._note(fault)

    def _check_foreign(self) -> None:
        source = FolderSource(self._path, self._path.name)
        where = str(self._path)
        check_stored(read_family(source.config, source.own, where), source.shapes, where)

    def _refusal(self, action: Callable[[], object]) -> str | None:
        try:
            action()
        except UserError as error:
            return str(error)
        return None

    def _main_dtype(self) -> str:
        """The stored type; float32 if there are several, as the loader takes it."""
        found = {tensor.dtype for tensor in self._files.stored.values()}
        return _NAMES[found.pop()] if len(found) == 1 else "float32"

    def _storage(self) -> dict[str, Any]:
        by_file: Counter[str] = Counter()
        dtypes: dict[str, dict[str, int]] = {}
        for tensor in self._files.stored.values():
            by_file[tensor.file.name] += 1
            kind = dtypes.setdefault(_NAMES[tensor.dtype], {"tensors": 0, "bytes": 0})
            kind["tensors"] += 1
            kind["bytes"] += tensor.bytes
        files = [
            {"name": name, "bytes": (self._path / name).stat().st_size, "tensors": count}
            for name, count in sorted(by_file.items())
        ]
        return {
            "format": "safetensors",
            "dtypes": dtypes,
            "files": files,
            "bytes": sum(kind["bytes"] for kind in dtypes.values()),
            "sharded": len([f for f in files if f["name"] != EXTRA_WEIGHTS]) > 1,
            "indexed": has_index(self._path),
            "total_size": self._total_size(),
        }

    def _total_size(self) -> str | None:
        """Whether the index gives the bytes of its tensors: right, wrong (with both), missing."""
        if not has_index(self._path):
            return None
        index = self._attempt(lambda: read_json(self._path / INDEX, MAX_JSON))
        metadata = (index or {}).get("metadata")
        said = metadata.get("total_size") if isinstance(metadata, dict) else None
        stored = self._files.stored.values()
        true = sum(t.bytes for t in stored if t.file.name != EXTRA_WEIGHTS)
        if said is None:
            return "missing"
        if isinstance(said, int | float) and said == true:
            return "right"
        return f"wrong: {said if isinstance(said, int) and abs(said) < 1e18 else '?'}, not {true}"

    def _mtp(self, config: ModelConfig, shapes: dict[str, Shape]) -> dict[str, Any]:
        apart = {
            tensor.file.name == EXTRA_WEIGHTS
            for name, tensor in self._files.stored.items()
            if name.startswith(MTP)
        }
        return {
            "layers": config.num_nextn_predict_layers,
            "published": self._published.get("num_nextn_predict_layers", 0),
            "in_extra_file": True in apart,
            "hidden": config.mtp_hidden,
            "mask_first": config.mtp_mask_first,
        }

    def _read_tokenizer(self) -> Tokenizer | None:
        if not any(os.path.lexists(self._path / name) for name in ("tokenizer.json", "vocab.json")):
            return None
        tokenizer = self._attempt(lambda: Tokenizer.load(self._path))
        if tokenizer and self._family:
            config = self._family.config
            self._attempt(lambda: check_vocabulary(tokenizer, config, str(self._path)))
        return tokenizer

    def _has_chat_template(self) -> bool:
        if any((self._path / f"chat_template.{kind}").is_file() for kind in ("jinja", "json")):
            return True
        config = self._path / "tokenizer_config.json"
        if not config.is_file():
            return False
        content = self._attempt(lambda: read_json(config, MAX_JSON)) or {}
        return bool(content.get("chat_template"))

    def _facts(self, found: Inspection, tokenizer: Tokenizer | None) -> Facts:
        names = self._names()
        read = {file["name"] for file in found.storage["files"]} | set(TOKENIZER_FILES)
        return Facts(
            folder=self._path,
            published=self._published,
            family=self._family,
            dtypes=set(found.storage["dtypes"]),
            total_size=found.storage["total_size"],
            names=names,
            read=read,
            eos_id=tokenizer.eos_id if tokenizer else None,
            chatml=tokenizer.turn_start_id is not None if tokenizer else None,
        )


def count_parameters(shapes: dict[str, Shape]) -> dict[str, Any]:
    """Numbers in the tensors of `shapes`, by part of the model."""
    parts: Counter[str] = Counter()
    mtp: Counter[int] = Counter()
    for name, shape in shapes.items():
        size = math.prod(shape)
        parts["total"] += size
        layer = name.removeprefix(MTP).split(".")[0] if name.startswith(MTP) else ""
        if layer.isdecimal() and len(layer) < 6:
            mtp[int(layer)] += size
        elif name.startswith(LAYER):
            parts["trunk_layers"] += size
        else:
            part = {EMBEDDING: "embedding", NORM: "final_norm", HEAD: "head"}.get(name, "other")
            parts[part] += size
    blocks = parts["trunk_layers"] + parts["final_norm"]
    return {
        "embedding": parts["embedding"],
        "trunk_layers": parts["trunk_layers"],
        "final_norm": parts["final_norm"],
        "head": parts["head"],
        "mtp": [mtp[layer] for layer in sorted(mtp)],
        "other": parts["other"],
        "total": parts["total"],
        "trunk_without_embeddings": blocks,
        "without_embeddings": blocks + mtp.total(),
    }


def describe(config: ModelConfig) -> dict[str, Any]:
    """The architecture, with config.json's names."""
    return config.model_dump(mode="json", exclude={"mtp_hidden", "mtp_mask_first"})


def describe_tokenizer(tokenizer: Tokenizer, config: ModelConfig) -> dict[str, Any]:
    """Ids in use and not, and the tokens of a chat."""
    return {
        "kind": "byte-level BPE",
        "ids": tokenizer.vocab_size,
        "dead_rows": max(0, config.vocab_size - tokenizer.vocab_size),
        "chatml": tokenizer.turn_start_id is not None,
        "eos_id": tokenizer.eos_id,
    }


def memory(config: ModelConfig, dtype: str) -> list[dict[str, Any]]:
    """To run, as stored and in float32 or bfloat16, and to train.

    Counts what openmimo holds: a head and biases too where the files have none.
    """
    parameters = parameter_count(config)
    context = config.max_position_embeddings
    other = "bfloat16" if dtype == "float32" else "float32"
    needs: list[Need] = [
        to_run(config, parameters, _ITEMSIZE[kind], kind, context, batch=1)
        for kind in (dtype, other)
    ]
    needs.append(to_train(config, parameters, TRAIN_TOKENS, min(context, TRAIN_TOKENS)))
    return [
        {"for": need.purpose, "bytes": need.total, "parts": need.parts, "assumes": need.assumes}
        for need in needs
    ]


def shape_faults(family: Family, found: dict[str, Shape]) -> list[str]:
    """Every tensor that is missing, too many or of another shape than config.json says."""
    if (wanted := tensor_count(family.config)) > 2 * len(found) + 100:
        return [f"config.json asks for {wanted:,} tensors, {len(found)} are there"]
    expected = family.stored_shapes()
    kinds = {
        "is missing": sorted(expected.keys() - found),
        "is not part of this model": sorted(found.keys() - expected),
    }
    lines = [
        f"{name} is {found[name]}, config.json says {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    return [
        *_first([f"{name} {kind}" for kind, names in kinds.items() for name in names]),
        *_first(lines),
    ]


def _first(lines: list[str]) -> list[str]:
    more = len(lines) - MOST_FAULTS
    return lines[:MOST_FAULTS] + ([f"and {more:,} more of this kind"] if more > 0 else [])


def _inspect_gguf(path: Path, weights: bool) -> Inspection:
    found = Inspection(str(path))
    try:
        from openmimo.interop.gguf_read import GGUFSource

        source = GGUFSource(path)
        family = read_family(source.config, source.own, str(path))
        check_stored(family, source.shapes, str(path))
    except UserError as error:
        found.faults.append(str(error))
        return found
    config = family.config
    found.family, found.architecture = family.name, describe(config)
    found.parameters = count_parameters(source.shapes)
    size = path.stat().st_size
    found.storage = {
        "format": "gguf",
        "dtypes": {source.stored_as: {"tensors": len(source.shapes), "bytes": size}},
        "files": [{"name": path.name, "bytes": size, "tensors": len(source.shapes)}],
        "bytes": size,
        "sharded": False,
        "indexed": False,
        "total_size": None,
    }
    found.mtp = {"layers": 0, "published": 0, "in_extra_file": False}
    dtype = str(source.dtype).removeprefix("torch.")
    found.memory = memory(config, dtype)
    found.deviations = ["a GGUF file: bring it in with `mimo import`"]
    try:
        tokenizer = source.tokenizer()
        if tokenizer:
            found.tokenizer = describe_tokenizer(tokenizer, config)
    except UserError as error:
        found.faults.append(str(error))
    if weights:
        found.weights, faults = scan(source.shapes, source.read)
        found.faults += faults
    return found
