"""Headers: as the gguf library reads them, and what a hostile one gets."""

import os
import random
import struct
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.errors import UserError
from openmimo.interop.gguf_header import read_header
from openmimo.interop.gguf_read import GGUFSource

from .gguf_files import checked

UINT8, UINT32, STRING, ARRAY, UINT64 = 0, 4, 8, 9, 10
F32, Q4_0 = 0, 2
HUGE = 2**63 - 1
MAX = 2**64 - 1

names = st.text("abcdefgh.", min_size=1, max_size=12).map("x.".__add__)
values = st.one_of(
    st.booleans(),
    st.integers(0, 2**32 - 1),
    st.floats(width=32, allow_nan=False),
    st.text(st.characters(codec="utf-8"), min_size=1),
    st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=5),
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=5),
)
arrays = st.tuples(st.integers(1, 5), st.integers(1, 40)).map(
    lambda shape: np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape)
)


@given(
    fields=st.dictionaries(names, values, max_size=6),
    tensors=st.dictionaries(names, arrays, max_size=4),
    alignment=st.sampled_from([None, 8, 64]),
)
def test_headers_are_what_the_library_reads(
    fields: dict[str, Any], tensors: dict[str, np.ndarray], alignment: int | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        if alignment:
            writer.add_custom_alignment(alignment)
        for name, value in fields.items():
            kinds = {bool: "add_bool", int: "add_uint32", float: "add_float32", str: "add_string"}
            getattr(writer, kinds.get(type(value), "add_array"))(name, value)
        for name, array in tensors.items():
            writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        ours, theirs = read_header(path), gguf.GGUFReader(path)
        content = path.read_bytes()
    expected = {n: f.contents() for n, f in theirs.fields.items() if not n.startswith("GGUF.")}
    found = {n: v.tolist() if isinstance(v, np.ndarray) else v for n, v in ours.fields.items()}
    assert found == expected
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert (info.kind, info.start, info.size) == (
            tensor.tensor_type,
            tensor.data_offset,
            tensor.n_bytes,
        )
        data = np.frombuffer(content[info.start : info.start + info.size], np.float32)
        assert np.array_equal(data.reshape(info.shape), tensors[tensor.name])


def number(value: int, size: int = 8) -> bytes:
    return value.to_bytes(size, "little")


def text(value: bytes | str, length: int | None = None) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return number(len(data) if length is None else length) + data


def field(name: bytes | str, kind: int, value: bytes) -> bytes:
    return text(name) + number(kind, 4) + value


def array(kind: int, count: int, data: bytes = b"") -> bytes:
    return number(kind, 4) + number(count) + data


def tensor(
    name: str = "t", sizes: tuple[int, ...] = (32,), kind: int = F32, offset: int = 0,
    dimensions: int | None = None,
) -> bytes:  # fmt: skip
    count = len(sizes) if dimensions is None else dimensions
    return text(name) + number(count, 4) + b"".join(map(number, sizes)) + number(
        kind, 4
    ) + number(offset)  # fmt: skip


def raw(
    *fields: bytes, tensors: tuple[bytes, ...] = (), magic: bytes = b"GGUF", version: int = 3,
    counts: tuple[int, int] | None = None, data: int = 4096,
) -> bytes:  # fmt: skip
    tensor_count, field_count = counts or (len(tensors), len(fields))
    head = magic + number(version, 4) + number(tensor_count) + number(field_count)
    return head + b"".join(fields) + b"".join(tensors) + bytes(data)


ARCH = field("general.architecture", STRING, text("llama"))

HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "cut off"),
    "three bytes": (b"GGU", "cut off"),
    "magic only": (b"GGUF", "cut off"),
    "other magic": (raw(magic=b"ggml"), "no GGUF file"),
    "safetensors": (number(2) + b"{}" + bytes(64), "no GGUF file"),
    "zip": (b"PK\x03\x04" + bytes(64), "no GGUF file"),
    "reversed magic": (raw(magic=b"FUGG"), "no GGUF file"),
    "version 0": (raw(version=0), "big-endian"),
    "version 1": (raw(version=1), "version 1"),
    "version 4": (raw(version=4), "version 4"),
    "big-endian": (raw(version=3 << 24), "big-endian"),
    "no counts": (raw()[:8], "cut off"),
    "half a count": (raw()[:20], "cut off"),
    "2^64 fields": (raw(counts=(0, MAX), data=0), "cut off"),
    "2^63 fields": (raw(ARCH, counts=(0, HUGE)), "is no name"),
    "2^64 tensors": (raw(ARCH, counts=(MAX, 1)), "is no name"),
    "one field too many": (raw(ARCH, counts=(0, 2), data=0), "cut off"),
    "name of 2^64 bytes": (raw(text("x", MAX)), "cut off"),
    "name of 2^63 bytes": (raw(text("x", HUGE)), "cut off"),
    "name of 1 GB": (raw(text("x", 2**30)), "cut off"),
    "name that is no UTF-8": (raw(field(b"\xff\xfe", UINT8, b"1")), "UTF-8"),
    "text of 2^64 bytes": (raw(field("a", STRING, text("x", MAX))), "cut off"),
    "text that is no UTF-8": (raw(field("a", STRING, text(b"\xc3("))), "UTF-8"),
    "text cut off": (raw(field("a", STRING, text("x", 99)), data=0), "cut off"),
    "unknown type": (raw(field("a", 13, b"12345678")), "type 13"),
    "type 2^32": (raw(field("a", 2**32 - 1, b"12345678")), "type 4294967295"),
    "array of 2^64 bytes": (raw(field("a", ARRAY, array(UINT8, MAX))), "cut off"),
    "array of 2^61 eights": (raw(field("a", ARRAY, array(UINT64, 2**61))), "cut off"),
    "array of 2^64 texts": (raw(field("a", ARRAY, array(STRING, MAX))), "cut off"),
    "array of arrays": (raw(field("a", ARRAY, array(ARRAY, 1, array(UINT8, 1)))), "type 9"),
    "array of nothing": (raw(field("a", ARRAY, array(77, 1))), "type 77"),
    "array cut off": (raw(field("a", ARRAY, array(UINT32, 9, b"1234")), data=0), "cut off"),
    "field twice": (raw(ARCH, ARCH), "twice"),
    "alignment 0": (raw(field("general.alignment", UINT32, number(0, 4))), "power of two"),
    "alignment 3": (raw(field("general.alignment", UINT32, number(3, 4))), "power of two"),
    "alignment 2^31": (raw(field("general.alignment", UINT32, number(2**31, 4))), "power of two"),
    "alignment text": (raw(field("general.alignment", STRING, text("32"))), "power of two"),
    "alignment array": (raw(field("general.alignment", ARRAY, array(UINT8, 2, b"ab"))), "power"),
    "alignment bool": (raw(field("general.alignment", 7, b"\x01")), "power of two"),
    "tensor without dimensions": (raw(tensors=(tensor(sizes=()),)), "0 dimensions"),
    "tensor of 5 dimensions": (raw(tensors=(tensor(sizes=(1,) * 5),)), "5 dimensions"),
    "tensor of 2^32 dimensions": (raw(tensors=(tensor(dimensions=2**32 - 1),)), "dimensions"),
    "empty tensor": (raw(tensors=(tensor(sizes=(32, 0)),)), "empty"),
    "tensor of 2^64 rows": (raw(tensors=(tensor(sizes=(32, MAX)),)), "cut off"),
    "sizes whose product wraps to 32": (raw(tensors=(tensor(sizes=(2**32, 2**32, 1)),)), "cut off"),
    "bytes that wrap to 0": (raw(tensors=(tensor(sizes=(2**62,)),)), "cut off"),
    "tensor of 1 TB": (raw(tensors=(tensor(sizes=(2**38,)),)), "cut off"),
    "unknown tensor type": (raw(tensors=(tensor(kind=999),)), "type 999"),
    "removed tensor type": (raw(tensors=(tensor(kind=4),)), "type 4"),
    "rows that do not fill blocks": (raw(tensors=(tensor(sizes=(33,), kind=Q4_0),)), "packs 32"),
    "offset 2^64": (raw(tensors=(tensor(offset=MAX - 31),)), "cut off"),
    "offset past the end": (raw(tensors=(tensor(offset=8192),)), "cut off"),
    "odd offset": (raw(tensors=(tensor(offset=7),)), "multiple of 32"),
    "data cut off": (raw(tensors=(tensor(sizes=(2048,)),), data=4096), "cut off"),
    "no data": (raw(tensors=(tensor(),), data=0), "cut off"),
    "tensors on one another": (raw(tensors=(tensor("a"), tensor("b", offset=96))), "lies over a"),
    "tensors in one place": (raw(tensors=(tensor("a"), tensor("b"))), "lies over"),
    "tensor twice": (raw(tensors=(tensor(), tensor(offset=128))), "twice"),
    "tensor name of 2^64 bytes": (raw(tensors=(text("x", MAX),)), "cut off"),
    "tensor name that is no UTF-8": (raw(tensors=(text(b"\xff"),)), "UTF-8"),
    "no fields at all": (raw(), "architecture is None"),
    "newlines in a name": (raw(field("a\nb\x1b[31m", UINT8, b"1")), "is no name"),
    "a long name": (raw(field("a" * 1000, UINT8, b"1")), "is no name"),
    "a tensor without a name": (raw(tensors=(tensor(""),)), "is no name"),
    "a header of 65 MB": (
        raw(field("a", ARRAY, array(UINT8, 65 * 2**20, bytes(65 * 2**20)))),
        "longer than 64 MB",
    ),
    "text of 65 MB": (raw(field("a", STRING, text(bytes(65 * 2**20)))), "longer than 64 MB"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_are_one_error(case: str, tmp_path: Path) -> None:
    content, message = HOSTILE[case]
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        GGUFSource(path)
    assert str(error.value).count(str(path)) == 1
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400 + len(str(path))


def test_neighbouring_tensors_are_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(raw(tensors=(tensor("b", offset=128), tensor("a")), data=31 + 256))
    assert sorted(read_header(path).tensors) == ["a", "b"]


@pytest.mark.timeout(20)
def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("nothing", "pipe", "."):
        with pytest.raises(UserError, match="no file"):
            GGUFSource(tmp_path / name)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("part", range(20))
def test_files_cut_off_anywhere(write_gguf_file: Any, tmp_path: Path, part: int) -> None:
    whole = write_gguf_file().read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in random.Random(part).sample(range(len(whole)), 5):
        cut.write_bytes(whole[:length])
        with pytest.raises(UserError):
            GGUFSource(cut)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(40))
def test_damaged_headers_never_crash(write_gguf_file: Any, tmp_path: Path, seed: int) -> None:
    # Some damage changes only a name, or a number to another possible one: those files open, and
    # then their tensors are the right ones.
    path = write_gguf_file()
    sound = GGUFSource(path)
    content = bytearray(path.read_bytes())
    end = min(info.start for info in read_header(path).tensors.values())
    chance = random.Random(seed)
    for _ in range(10):
        damaged = content.copy()
        for _ in range(chance.randint(1, 3)):
            value = chance.choice([0, 1, 127, 128, 255, chance.randrange(256)])
            damaged[chance.randrange(end)] = value
        broken = tmp_path / "broken.gguf"
        broken.write_bytes(damaged)
        try:
            model = checked(broken)
        except UserError:
            continue
        assert model.shapes == sound.shapes


def test_numbers_of_every_type(tmp_path: Path) -> None:
    numbers = {
        0: ("<B", 200), 1: ("<b", -100), 2: ("<H", 60_000), 3: ("<h", -30_000),
        4: ("<I", 2**32 - 1), 5: ("<i", -(2**31)), 6: ("<f", 0.5), 7: ("<?", True),
        10: ("<Q", MAX), 11: ("<q", -(2**63)), 12: ("<d", 0.1),
    }  # fmt: skip
    fields = [field(f"x{kind}", kind, struct.pack(*packed)) for kind, packed in numbers.items()]
    path = tmp_path / "x.gguf"
    path.write_bytes(raw(*fields))
    found = read_header(path).fields
    assert found == {f"x{kind}": value for kind, (_, value) in numbers.items()}
    assert found["x7"] is True
