"""Rows of JSON Lines, JSON and Parquet files, on this machine or in a data set on the hub."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from openmimo.errors import UserError
from openmimo.json_files import parse_object

Row = dict[str, Any]
Item = TypeVar("Item")

HUB = "hf://datasets/"
_HUB_FILE = re.compile(
    r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+?)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[\w.-]+|[\w.-]+))?/(?P<file>[^@]+)"
)
PARQUET_ROWS = 64
"""Rows of a Parquet file in memory at once; one with all its tests may take megabytes."""


def locate(name: str) -> list[Path]:
    """The files that a name stands for: a path, or `hf://datasets/OWNER/NAME[@REVISION]/FILE`.

    A hub FILE may have wildcards (`main/train-*.parquet`). A REVISION may be that of the Parquet
    copy that the hub makes of every set, `refs/convert/parquet`. Files of the hub land in its
    library's cache; HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE work as always.

    Raises:
        UserError: no such file, data set or revision, no access, or no connection.
    """
    if not name.startswith(HUB):
        if not Path(name).is_file():
            raise UserError(f"no file {name}")
        return [Path(name)]
    match = _HUB_FILE.fullmatch(name)
    if match is None:
        raise UserError(f"{name!r} names no file: write {HUB}OWNER/NAME/FILE, * matches any text")
    return _fetch(match["repo"], match["revision"], match["file"])


def _fetch(repo: str, revision: str | None, pattern: str) -> list[Path]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            repo, repo_type="dataset", revision=revision, allow_patterns=[pattern]
        )
    except LocalEntryNotFoundError as error:
        raise UserError(f"the hub cannot be reached, and {repo} is not in its cache") from error
    except (HfHubHTTPError, OSError) as error:
        first = (str(error).splitlines() or ["unknown"])[0]
        raise UserError(f"cannot download the data set {repo}: {first}") from error
    files = sorted(path for path in Path(folder).glob(pattern) if path.is_file())
    if not files:
        raise UserError(f"the data set {repo} has no file {pattern}")
    return files


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield (number from 1, row): lines of .jsonl, items of a .json list, rows of .parquet.

    The first two may be compressed (.gz). Only a .json list is in memory as a whole.

    Raises UserError, naming file and row, for what is damaged, no object, or of another kind.
    """
    suffix = path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix
    try:
        if suffix == ".parquet":
            yield from _parquet_rows(path)
        elif suffix == ".jsonl":
            # Not splitlines(): JSON strings may hold U+2028 and its like, where that would cut.
            with _open(path) as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield number, _object(line, f"{path}:{number}")
        elif suffix == ".json":
            for number, item in enumerate(_list(path), start=1):
                if not isinstance(item, dict):
                    raise UserError(f"{path}: item {number} is no object")
                yield number, item
        else:
            raise UserError(f"{path}: only .jsonl, .json (also .gz) and .parquet can be read")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """`size` of the items at a time, fewer the last time."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def digest(path: Path) -> str:
    """A hash of a file's content, to notice that it has changed."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _object(line: bytes, where: str) -> Row:
    try:
        return parse_object(line)
    except ValueError as error:
        raise UserError(f"{where}: {error}; is the file cut short?") from error


def _list(path: Path) -> list[Any]:
    try:
        with _open(path) as file:
            items = json.loads(file.read().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error})") from error
    if not isinstance(items, list):
        raise UserError(f"{path} holds no list of problems")
    return items


def _parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    parquet = import_parquet()
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except ValueError as error:  # pyarrow's own errors are of this kind
        raise UserError(f"cannot read {path}: {error}") from error


def import_parquet() -> Any:
    """pyarrow.parquet. Raises UserError, saying how to get it, where it is missing."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError("Parquet needs pyarrow: pip install openmimo[curate]") from None
    return pyarrow.parquet
