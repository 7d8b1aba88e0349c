"""Shards give back what was written, in an order fixed for ever, or name the damaged file."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.data.shards import Corpus, ShardReader, epoch_order, write_shard
from openmimo.errors import UserError

DOCUMENTS = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10]]


@given(
    st.sampled_from([300, 2**16, 2**16 + 1, 151_680]).flatmap(
        lambda vocab: st.tuples(
            st.just(vocab),
            st.lists(st.lists(st.integers(0, vocab - 1), min_size=1), min_size=1, max_size=8),
        )
    )
)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, case: tuple) -> None:
    vocab, documents = case
    folder = tmp_path_factory.mktemp("shards")
    meta = write_shard(folder, "math", documents, vocab)
    reader = ShardReader(folder, "math", seed=1)
    assert [reader.stored(i).tolist() for i in range(len(reader))] == documents
    assert reader.meta == meta
    assert meta.dtype == ("uint16" if vocab <= 2**16 else "uint32")
    assert (folder / "math.bin").stat().st_size == meta.tokens * np.dtype(meta.dtype).itemsize


def test_each_epoch_reads_every_document_once_in_its_own_order(tmp_path: Path) -> None:
    documents = [[i] for i in range(50)]
    write_shard(tmp_path, "code", documents, 64)
    reader = ShardReader(tmp_path, "code", seed=7)
    epochs = [[int(reader.document(50 * e + i)[0]) for i in range(50)] for e in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    # A fresh reader that starts in the middle, or jumps about, sees the same.
    fresh = Corpus(tmp_path, ["code"], seed=7)
    for position in (149, 0, 75, 76, 3):
        assert fresh.document("code", position)[0] == epochs[position // 50][position % 50]
    other = ShardReader(tmp_path, "code", seed=8)
    assert [int(other.document(i)[0]) for i in range(50)] != epochs[0]


def test_the_order_is_fixed() -> None:
    """A change here would make every half-finished run read other data after an update."""
    assert epoch_order(8, seed=1, source="math", epoch=0).tolist() == [7, 2, 5, 0, 4, 3, 6, 1]
    assert epoch_order(8, seed=1, source="code", epoch=0).tolist() == [2, 0, 1, 6, 5, 7, 4, 3]


def test_documents_cannot_be_written_to(tmp_path: Path) -> None:
    write_shard(tmp_path, "math", DOCUMENTS, 300)
    with pytest.raises(ValueError, match="read-only"):
        ShardReader(tmp_path, "math", 0).document(0)[0] = 1


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], "has no documents"),
        ([[1], []], "document 1 of source 'math' is empty"),
        ([[300]], "outside 0 .. 299"),
        ([[-1]], "outside 0 .. 299"),
        ([[1.5]], "outside 0 .. 299"),
        ([[[1, 2]]], "one row"),
    ],
)
def test_bad_documents_are_refused_and_nothing_readable_is_left(
    tmp_path: Path, documents: list, message: str
) -> None:
    write_shard(tmp_path, "math", DOCUMENTS, 300)
    with pytest.raises(UserError, match=message):
        write_shard(tmp_path, "math", documents, 300)
    with pytest.raises(UserError, match=r"math\.json is missing"):
        ShardReader(tmp_path, "math", 0)


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write shards of 'math' in .*file"):
        write_shard(tmp_path / "file", "math", DOCUMENTS, 300)


def damage(folder: Path, name: str, how: str) -> None:
    path = folder / name
    data = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(data[:-1])
    elif how == "longer":
        path.write_bytes(data + b"\0")
    elif how == "flipped":
        data[8 if name.endswith("idx") else 3] ^= 1
        path.write_bytes(data)
    elif how == "gone":
        path.unlink()
    else:
        path.write_bytes(b"")


@pytest.mark.parametrize("name", ["math.bin", "math.idx"])
@pytest.mark.parametrize("how", ["cut", "longer", "flipped", "gone", "empty"])
def test_damage_is_found_and_named(tmp_path: Path, name: str, how: str) -> None:
    write_shard(tmp_path, "math", DOCUMENTS, 300)
    damage(tmp_path, name, how)
    with pytest.raises(UserError) as raised:
        ShardReader(tmp_path, "math", 0)
    assert name in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"source": 1}',
        *(
            json.dumps(
                {
                    "format": 1,
                    "source": "math",
                    "dtype": "uint16",
                    "documents": 4,
                    "tokens": 10,
                    "fingerprint": "",
                }
                | change
            )
            for change in (
                {"format": 2},
                {"source": "code"},
                {"dtype": "int8"},
                {"documents": 0},
                {"tokens": "10"},
                {"more": 1},
            )
        ),
    ],
)
def test_a_bad_description_is_named(tmp_path: Path, text: str) -> None:
    write_shard(tmp_path, "math", DOCUMENTS, 300)
    (tmp_path / "math.json").write_text(text)
    with pytest.raises(UserError, match=r"math\.json"):
        ShardReader(tmp_path, "math", 0)


def test_without_verification_a_damaged_index_is_still_refused(tmp_path: Path) -> None:
    write_shard(tmp_path, "math", DOCUMENTS, 300)
    offsets = np.fromfile(tmp_path / "math.idx", dtype="<u8")
    offsets[1] = 10**9
    offsets.tofile(tmp_path / "math.idx")
    reader = ShardReader(tmp_path, "math", 0, verify=False)
    for number in (0, 1):
        with pytest.raises(UserError, match=r"\.idx of 'math' is damaged"):
            reader.stored(number)


def test_positions_outside_are_refused(tmp_path: Path) -> None:
    write_shard(tmp_path, "math", DOCUMENTS, 300)
    reader = ShardReader(tmp_path, "math", 0)
    for call in (lambda: reader.document(-1), lambda: reader.stored(4), lambda: reader.stored(-1)):
        with pytest.raises(IndexError):
            call()
