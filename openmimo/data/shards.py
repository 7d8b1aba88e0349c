"""Tokenised documents on disk, and the order in which they are read.

A source is three files in one folder:

- `<source>.bin`: the token ids of all documents end to end, little-endian uint16 or uint32.
- `<source>.idx`: where each document starts, in tokens, and one more entry for the end; uint64.
- `<source>.json`: counts, the data type and a fingerprint of the other two. It is written last, so
  a folder that has it has the whole source.

The order of an epoch is a pure function of (seed, source, epoch).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from openmimo.errors import UserError

FORMAT = 1

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


@dataclass(frozen=True)
class ShardMeta:
    """What `<source>.json` holds. fingerprint: SHA-256 (hex) of the .bin file, then the .idx."""

    format: int
    source: str
    dtype: str
    documents: int
    tokens: int
    fingerprint: str


def write_shard(
    folder: Path,
    source: str,
    documents: Iterable[Sequence[int] | npt.NDArray[Any]],
    vocab_size: int,
) -> ShardMeta:
    """Write one source's documents, given as token ids, and return its description.

    ids are stored in 2 bytes where the vocabulary allows. Documents are consumed one by one. Raises
    UserError if there are none, one is empty or holds an id outside [0, vocab_size), or the disk
    refuses; then no description is left, so nothing reads the unfinished source.
    """
    dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
    digest = sha256()
    offsets = [0]
    path = folder / f"{source}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with (folder / f"{source}.bin").open("wb") as file:
            for number, document in enumerate(documents):
                ids = np.asarray(document)
                _check_ids(ids, vocab_size, f"document {number} of source {source!r}")
                data = ids.astype(dtype).tobytes()
                file.write(data)
                digest.update(data)
                offsets.append(offsets[-1] + len(ids))
        if len(offsets) == 1:
            raise UserError(f"source {source!r} has no documents; nothing could be read from it")
        index = np.asarray(offsets, dtype="<u8").tobytes()
        digest.update(index)
        (folder / f"{source}.idx").write_bytes(index)
        meta = ShardMeta(
            FORMAT, source, dtype.name, len(offsets) - 1, offsets[-1], digest.hexdigest()
        )
        unfinished = path.with_name(path.name + ".tmp")
        unfinished.write_text(json.dumps(asdict(meta), indent=2) + "\n", encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        raise UserError(f"cannot write shards of {source!r} in {folder}: {error}") from error
    return meta


def _check_ids(ids: npt.NDArray[Any], vocab_size: int, where: str) -> None:
    if ids.ndim != 1 or not len(ids):
        raise UserError(f"{where} is empty or not one row of token ids (shape {ids.shape})")
    if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= vocab_size:
        raise UserError(f"{where} holds a token id outside 0 .. {vocab_size - 1}")


def epoch_order(documents: int, seed: int, source: str, epoch: int) -> npt.NDArray[np.int64]:
    """Return the order of one epoch: a permutation of range(documents), int64.

    It sorts the raw output of a Philox generator whose key is a digest of the arguments. NumPy
    guarantees that raw output for ever; its `permutation` may change between releases.
    """
    name = f"{seed}/{epoch}/{source}".encode()
    key = int.from_bytes(blake2b(name, digest_size=16).digest(), "little")
    draws = np.random.Philox(key=key).random_raw(documents)
    return np.argsort(draws, kind="stable")


class ShardReader:
    """Random access to one source, memory-mapped.

    verify: also compare the fingerprint, which reads the source once (about 1 GB a second).
    Raises UserError, naming the file, where one is missing, damaged or of the wrong size.
    """

    def __init__(self, folder: Path, source: str, seed: int, verify: bool = True) -> None:
        self.meta = read_meta(folder, source)
        self._seed = seed
        bin_path, idx_path = folder / f"{source}.bin", folder / f"{source}.idx"
        dtype = np.dtype(self.meta.dtype).newbyteorder("<")
        self._tokens = _map(bin_path, dtype, self.meta.tokens)
        self._offsets = _map(idx_path, np.dtype("<u8"), self.meta.documents + 1)
        if self._offsets[0] != 0 or self._offsets[-1] != self.meta.tokens:
            raise UserError(f"{idx_path} does not fit {bin_path}; write the shards again")
        self._paths = bin_path, idx_path
        if verify:
            self.verify()
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def verify(self) -> None:
        """Compare the fingerprint; raises UserError if the files have changed."""
        digest = sha256(self._tokens.data)
        digest.update(self._offsets.data)
        if digest.hexdigest() != self.meta.fingerprint:
            bin_path, idx_path = self._paths
            raise UserError(
                f"{bin_path} or {idx_path} changed since it was written (fingerprint differs); "
                "write the shards again"
            )

    @property
    def bytes(self) -> int:
        """Size of the tokens on disk."""
        return self._tokens.nbytes

    def __len__(self) -> int:
        """Documents in one epoch."""
        return self.meta.documents

    def stored(self, number: int) -> Tokens:
        """Return the document written as `number`: its token ids, a read-only view."""
        if not 0 <= number < len(self):
            raise IndexError(f"{self.meta.source} has documents 0 .. {len(self) - 1}, not {number}")
        start, end = self._offsets[number], self._offsets[number + 1]
        if not start < end <= len(self._tokens):
            raise UserError(f"the .idx of {self.meta.source!r} is damaged at document {number}")
        return self._tokens[start:end]

    def document(self, position: int) -> Tokens:
        """Return the document at a position that counts on over the epochs, from 0."""
        return self.stored(self.number(position))

    def length(self, number: int) -> int:
        """Tokens of the document written as `number`; none of them is read."""
        return int(self._offsets[number + 1]) - int(self._offsets[number])

    def number(self, position: int) -> int:
        """Which stored document is at a position, as in `document`."""
        if position < 0:
            raise IndexError(f"positions start at 0, got {position}")
        epoch, place = divmod(position, len(self))
        if epoch != self._epoch:
            self._order = epoch_order(len(self), self._seed, self.meta.source, epoch)
            self._epoch = epoch
        return int(self._order[place])


class Corpus:
    """Several sources of one folder; arguments and errors as `ShardReader`."""

    def __init__(
        self, folder: Path, sources: Sequence[str], seed: int, verify: bool = True
    ) -> None:
        self.readers = {s: ShardReader(folder, s, seed, verify) for s in sources}

    def document(self, source: str, position: int) -> Tokens:
        """Return one document's token ids; position counts on over epochs."""
        return self.readers[source].document(position)


def read_meta(folder: Path, source: str) -> ShardMeta:
    """Read and check `<source>.json`; raises UserError naming the file."""
    path = folder / f"{source}.json"
    try:
        record = json.loads(path.read_bytes())
        meta = ShardMeta(**record)
        sound = (
            meta.format == FORMAT
            and meta.dtype in ("uint16", "uint32")
            and (meta.source == source and 0 < meta.documents <= meta.tokens)
        )
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: source {source!r} is not tokenised yet") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); write the shards again") from error
    if not sound:
        raise UserError(f"{path} does not describe a shard of {source!r} in format {FORMAT}")
    return meta


def _map(path: Path, dtype: np.dtype[Any], length: int) -> npt.NDArray[Any]:
    """Map a file as a read-only array of exactly `length` entries."""
    try:
        size = path.stat().st_size
        if size != length * dtype.itemsize:
            raise UserError(
                f"{path} holds {size} bytes instead of {length * dtype.itemsize}; "
                "it was cut short or changed, write the shards again"
            )
        return np.memmap(path, dtype=dtype, mode="r", shape=(length,))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
