"""Tensors on disk, described before anything is allocated and read one at a time.

safetensors only: a pickle (`pytorch_model.bin`) can run code when it is opened. The library checks
a file's header; what is read here is copied with plain file reads, so that memory never holds more
than the tensor asked for, and a file that shrinks meanwhile is an error instead of a bus error.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from openmimo.errors import UserError, shown
from openmimo.json_files import parse_object, read_json
from openmimo.model.layout import Shape

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}

MAX_JSON = 16 * 2**20
"""Bytes of an index or of a file's header; those of 100,000 tensors have about ten million."""


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies.

    dtype: as safetensors spells it ("BF16").
    start: offset of its first byte in the file.
    """

    file: Path
    dtype: str
    shape: Shape
    start: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class TensorFiles:
    """The tensors of some safetensors files, by name.

    Attributes:
        stored: what is there; nothing but headers has been read.

    Raises:
        UserError: a file is damaged, a tensor is in two files, or has a type other than bfloat16,
            float16 and float32.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.stored: dict[str, StoredTensor] = {}
        for file in files:
            self.add(file)

    def add(self, file: Path) -> None:
        """Take the tensors of one more file."""
        for name, tensor in _read_header(file).items():
            if name in self.stored:
                other = self.stored[name].file.name
                raise UserError(f"{file.parent}: {name} is in both {other} and {file.name}")
            self.stored[name] = tensor

    @property
    def dtype(self) -> torch.dtype:
        """The one that holds every tensor exactly: the stored one, float32 if there are several.

        Raises:
            UserError: some are bfloat16 and some float16, which no writer does: a header lies.
        """
        found = {tensor.dtype for tensor in self.stored.values()}
        if {"BF16", "F16"} <= found:
            one, other = (
                next(name for name, tensor in self.stored.items() if tensor.dtype == dtype)
                for dtype in ("BF16", "F16")
            )
            where = self.stored[other].file.parent
            raise UserError(f"{where}: {one} is bfloat16 and {other} float16: one must be damaged")
        return DTYPES[found.pop()] if len(found) == 1 else torch.float32

    @property
    def shapes(self) -> dict[str, Shape]:
        """Every tensor's shape."""
        return {name: tensor.shape for name, tensor in self.stored.items()}

    def read(self, name: str) -> Tensor:
        """One tensor, as stored, in memory of its own.

        Raises:
            UserError: the file has changed, or the tensor holds infinities or NaN.
        """
        values = self.read_unchecked(name)
        if not all_finite(values):
            raise UserError(
                f"{self.stored[name].file}: {name} holds NaN or infinities: the model has diverged "
                "or the file is damaged"
            )
        return values

    def read_unchecked(self, name: str) -> Tensor:
        """One tensor, infinities and NaN and all.

        Raises:
            UserError: the file has changed.
        """
        tensor = self.stored[name]
        # The allocator would keep large buffers for itself after use, in holes that fit no other.
        large = tensor.bytes > 2**20
        buffer = mmap.mmap(-1, tensor.bytes) if large else bytearray(tensor.bytes)
        try:
            with tensor.file.open("rb", buffering=0) as file:
                file.seek(tensor.start)
                view, filled = memoryview(buffer), 0
                # One call returns at most 2 GiB.
                while filled < len(buffer) and (count := file.readinto(view[filled:])):
                    filled += count
        except OSError as error:
            raise UserError(f"cannot read {tensor.file}: {error.strerror}") from error
        if filled < len(buffer):
            raise UserError(f"{tensor.file} is damaged or cut off: {name} ends too early")
        if not buffer:
            return torch.empty(tensor.shape, dtype=DTYPES[tensor.dtype])
        return torch.frombuffer(buffer, dtype=DTYPES[tensor.dtype]).view(tensor.shape)


def all_finite(values: Tensor) -> bool:
    """Whether no number is infinite or NaN.

    Looks at the smallest and the largest, which are NaN if any number is: isfinite would make
    temporary tensors as large as `values`.
    """
    return not values.numel() or bool(torch.isfinite(torch.stack(torch.aminmax(values))).all())


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, by its index if there is one.

    Raises:
        UserError: a file is missing, or the index is no index or points out of the folder.
    """
    if not has_index(folder):
        _refuse_pickle(folder)
        return [existing(folder / WEIGHTS)]
    names = set(_weight_map(folder / INDEX).values())
    return [existing(folder / name) for name in sorted(names)]


def open_weights(folder: Path) -> TensorFiles:
    """The tensors of a model folder; its index, if there is one, is checked against its files.

    Raises:
        UserError: as `weight_files` and `TensorFiles`, or the index does not tell the truth.
    """
    files = TensorFiles(weight_files(folder))
    if has_index(folder):
        _check_index(folder, files)
    return files


def has_index(folder: Path) -> bool:
    """Whether a model folder has an index, be it only a broken link to one."""
    return os.path.lexists(folder / INDEX)


def existing(path: Path) -> Path:
    """`path`, which must be a file of a model folder."""
    if not os.path.isfile(path):  # unlike Path's, it takes any name without raising
        hint = "; it is a run: name one of its models" if (path.parent / "stages").is_dir() else ""
        raise UserError(
            f"{path.parent} is not a complete model folder: {path.name} is missing{hint}"
        )
    return path


def _read_header(file: Path) -> dict[str, StoredTensor]:
    """Where each tensor of a file lies; the library has checked the header."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > MAX_JSON:
                raise ValueError(f"its header claims to have {length:,} bytes")
            with safe_open(file, framework="pt"):
                pass
            header = parse_object(stream.read(length))
            size = os.fstat(stream.fileno()).st_size
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} is damaged or cut off: {error}") from error
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise UserError(
                f"{file}: {name} is {entry['dtype']}; only bfloat16, float16 and float32 weights "
                "can be read"
            )
        start = 8 + length + entry["data_offsets"][0]
        tensors[name] = StoredTensor(file, entry["dtype"], tuple(entry["shape"]), start)
        if start + tensors[name].bytes > size:
            raise UserError(f"{file} is damaged or cut off: {name} lies beyond its end")
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    content = read_json(index, MAX_JSON).get("weight_map")
    if not isinstance(content, dict) or not content:
        raise UserError(f"{index} has no weight_map")
    for name in content.values():
        # A path would lead out of the folder.
        if not isinstance(name, str) or "/" in name or not name.endswith(".safetensors"):
            raise UserError(f"{index}: {shown(name)} is no safetensors file of this folder")
    return content


def _check_index(folder: Path, files: TensorFiles) -> None:
    """Every tensor must be where the index says, and none may be left out."""
    weight_map = _weight_map(folder / INDEX)
    for name, file in sorted(weight_map.items()):
        if name not in files.stored:
            raise UserError(f"{folder / INDEX} lists {name}, which none of its files holds")
        if (found := files.stored[name].file.name) != file:
            raise UserError(f"{folder / INDEX}: {name} is in {found}, not in {file}")
    if left_out := sorted(files.stored.keys() - weight_map.keys()):
        raise UserError(f"{folder / INDEX} leaves out {left_out[0]}, which a file holds")


def _refuse_pickle(folder: Path) -> None:
    if not (folder / WEIGHTS).exists() and any(folder.glob("*.bin")):
        raise UserError(
            f"{folder} has its weights as pickle (*.bin), which can run code when it is opened: "
            "convert them to safetensors first"
        )
