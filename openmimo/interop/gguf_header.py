"""The header of a GGUF file, read with every length checked before it is believed.

    magic "GGUF", version, number of tensors, number of fields
    fields:   name, type, value              (`general.architecture`, `tokenizer.ggml.tokens`, ...)
    tensors:  name, sizes, type, offset      (offsets count from the aligned end of the header)
    data

Format: ggml's docs/gguf.md. The gguf library has a reader too, but it is one for files that one
trusts: it maps the file, and a lying count makes it loop without end or ask for terabytes.
Constants, block sizes and dequantisation do come from the library.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from openmimo.errors import UserError
from openmimo.interop.gguf_library import gguf

Value = int | float | bool | str | list[str] | np.ndarray
"""A field's value; an array of numbers is one-dimensional."""

# No real header comes near it (a vocabulary of 262,144 takes 16 MB), and it bounds the memory that
# a hostile one can claim.
_HEADER_LIMIT = 64 * 2**20
_DEFAULT_ALIGNMENT = 32
_LONGEST_NAME = 200  # several times the longest real one; names appear in messages
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS

_SCALARS = {
    gguf.GGUFValueType.UINT8: "<u1",
    gguf.GGUFValueType.INT8: "<i1",
    gguf.GGUFValueType.UINT16: "<u2",
    gguf.GGUFValueType.INT16: "<i2",
    gguf.GGUFValueType.UINT32: "<u4",
    gguf.GGUFValueType.INT32: "<i4",
    gguf.GGUFValueType.FLOAT32: "<f4",
    gguf.GGUFValueType.UINT64: "<u8",
    gguf.GGUFValueType.INT64: "<i8",
    gguf.GGUFValueType.FLOAT64: "<f8",
    gguf.GGUFValueType.BOOL: "?",
}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in the file."""

    shape: tuple[int, ...]
    """In torch's order: the last dimension is contiguous."""
    kind: gguf.GGMLQuantizationType
    start: int
    """First byte, from the start of the file."""
    size: int
    """In bytes."""


@dataclass(frozen=True)
class Header:
    """What a GGUF file says before its data."""

    fields: dict[str, Value]
    tensors: dict[str, TensorInfo]


def read_header(path: Path) -> Header:
    """Read the header of `path`; every tensor it lists lies inside the file and on its own.

    Raises:
        UserError: no such file, no GGUF file of version 2 or 3, big-endian, cut off, or a count,
            size, type or offset that cannot be true.
    """
    if not path.is_file():  # opening a pipe would wait forever
        raise UserError(f"no file {path}")
    try:
        with path.open("rb") as file:
            return _Parser(file, path).header()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


class _Parser:
    """Reads forward through the header; never past the file's end."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._file_size = os.fstat(file.fileno()).st_size
        self._position = 0

    def header(self) -> Header:
        self._check_start()
        tensor_count, field_count = self._number(8), self._number(8)
        fields: dict[str, Value] = {}
        for _ in range(field_count):  # a count that lies runs into the end of the file
            name = self._name("a field's name")
            if name in fields:
                raise self._fault(f"the field {name} appears twice")
            fields[name] = self._value(name)
        described: dict[str, tuple[tuple[int, ...], gguf.GGMLQuantizationType, int]] = {}
        for _ in range(tensor_count):
            name = self._name("a tensor's name")
            if name in described:
                raise self._fault(f"the tensor {name} appears twice")
            described[name] = self._tensor(name)
        alignment = self._alignment(fields)
        data = -(-self._position // alignment) * alignment
        tensors = {
            name: TensorInfo(shape, kind, data + offset, _byte_size(shape, kind))
            for name, (shape, kind, offset) in described.items()
        }
        self._check_places(tensors, alignment)
        return Header(fields, tensors)

    def _check_start(self) -> None:
        if self._take(4, "the magic number") != b"GGUF":
            raise UserError(f"{self._path} is no GGUF file")
        version = self._number(4)
        if version & 0xFFFF == 0:
            raise self._fault("it is big-endian; convert it with gguf-convert-endian first")
        if version not in (2, 3):
            raise self._fault(f"it has version {version} of the format; 2 and 3 can be read")

    def _value(self, name: str) -> Value:
        kind = self._number(4)
        if kind == gguf.GGUFValueType.STRING:
            return self._string(name)
        if kind != gguf.GGUFValueType.ARRAY:
            scalar: int | float | bool = self._array(kind, 1, name)[0].item()
            return scalar
        kind, count = self._number(4), self._number(8)
        if kind == gguf.GGUFValueType.STRING:
            return [self._string(name) for _ in range(count)]
        return self._array(kind, count, name)

    def _array(self, kind: int, count: int, name: str) -> np.ndarray:
        dtype = _SCALARS.get(kind)  # type: ignore[call-overload]
        if dtype is None:
            raise self._fault(f"{name} has a value of type {kind}, which the format does not know")
        return np.frombuffer(self._take(count * np.dtype(dtype).itemsize, name), dtype)

    def _tensor(self, name: str) -> tuple[tuple[int, ...], gguf.GGMLQuantizationType, int]:
        dimensions = self._number(4)
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise self._fault(f"{name} has {dimensions} dimensions")
        sizes = [self._number(8) for _ in range(dimensions)]
        kind, offset = self._number(4), self._number(8)
        try:
            kind = gguf.GGMLQuantizationType(kind)
        except ValueError:
            raise self._fault(f"{name} has the unknown type {kind}") from None
        if 0 in sizes:
            raise self._fault(f"{name} is empty: its sizes are {sizes}")
        block = gguf.GGML_QUANT_SIZES[kind][0]
        if sizes[0] % block:
            raise self._fault(
                f"{name} has rows of {sizes[0]} numbers, but {kind.name} packs {block} at a time"
            )
        return tuple(reversed(sizes)), kind, offset

    def _alignment(self, fields: dict[str, Value]) -> int:
        alignment = fields.get("general.alignment", _DEFAULT_ALIGNMENT)
        # An upper bound, so that the padding stays a detail.
        if not isinstance(alignment, int) or alignment not in [2**bits for bits in range(3, 21)]:
            raise self._fault(f"general.alignment is {alignment!r}; it must be a power of two")
        return alignment

    def _check_places(self, tensors: dict[str, TensorInfo], alignment: int) -> None:
        end, before = 0, ""
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
            if tensor.start % alignment:
                raise self._fault(f"{name} does not start at a multiple of {alignment} bytes")
            if tensor.start < end:
                raise self._fault(f"{name} lies over {before}")
            end, before = tensor.start + tensor.size, name
            if end > self._file_size:
                raise self._fault(
                    f"it is cut off or damaged: {name} ends at byte {end}, "
                    f"the file at {self._file_size}"
                )

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size, "a number"), "little")

    def _name(self, what: str) -> str:
        name = self._string(what)
        if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
            raise self._fault(f"{what} is no name: {name[:20]!a}")
        return name

    def _string(self, what: str) -> str:
        length = int.from_bytes(self._take(8, what), "little")
        try:
            return self._take(length, what).decode("utf-8")
        except UnicodeDecodeError:
            raise self._fault(f"{what} is not UTF-8") from None

    def _take(self, count: int, what: str) -> bytes:
        self._position += count
        if self._position > _HEADER_LIMIT and self._position <= self._file_size:
            raise self._fault(f"its header is longer than {_HEADER_LIMIT >> 20} MB, at {what}")
        data = self._file.read(count) if self._position <= self._file_size else b""
        if len(data) < count:
            raise self._fault(f"it is cut off or damaged at {what}")
        return data

    def _fault(self, fault: str) -> UserError:
        return UserError(f"{self._path} cannot be read as GGUF: {fault}")


def _byte_size(shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return math.prod(shape) // block * size
