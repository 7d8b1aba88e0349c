"""Documents of the pre-training corpus, and the JSON Lines files that hold them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openmimo.errors import REDO, UserError

SOURCES = ("general", "math", "code", "synthetic")
"""The sources a mixture can weigh."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text of the corpus.

    text: the text itself, UTF-8 encodable.
    source: one of SOURCES; what the mixture weighs.
    domain: what the text is about, as `tagging` names it; empty before tagging.
    origin: where the text came from, such as "sympy:sympy/core/add.py:Add".
    """

    text: str
    source: str
    domain: str
    origin: str


def read_records(path: Path, *texts: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) for each line of a JSON Lines file.

    texts: names that every object must have, with text as their values.

    Lines end at b"\\n" only: JSON strings may hold U+2028 and its like, at which `str.splitlines`
    would cut. Blank lines are passed over. Raises UserError, naming file and line, for a line that
    is not UTF-8, not JSON, not an object or without one of `texts`, and for a file that cannot be
    read.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _parse(line, f"{path}:{number}", texts)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _parse(line: bytes, where: str, texts: Sequence[str]) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 (byte {error.start} of the line)") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error}); is the file cut short?") from error
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected one JSON object a line, got {type(record).__name__}")
    for name in texts:
        if not isinstance(record.get(name), str):
            raise UserError(f"{where}: {name!r} is missing or no text; {REDO}")
    return record


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Write objects as JSON Lines and return their number.

    The file appears whole or not at all. Raises UserError for a text that UTF-8 cannot hold (a
    lone surrogate) and for a file that cannot be written.
    """
    unfinished = path.with_name(path.name + ".tmp")
    count = 0
    try:
        with unfinished.open("wb") as file:
            for record in records:
                line = json.dumps(record, ensure_ascii=False)
                file.write(line.encode("utf-8") + b"\n")
                count += 1
        os.replace(unfinished, path)
    except UnicodeEncodeError as error:
        raise UserError(
            f"record {count + 1} for {path} holds a lone surrogate, which UTF-8 cannot"
        ) from error
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def cut_torn_line(path: Path) -> None:
    """Remove what stands behind a file's last line break, as a killed process leaves it."""
    with path.open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        newline = -1
        while end and newline < 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            end = start + newline + 1 if newline >= 0 else start
        if end < size:
            file.truncate(end)


def read_documents(path: Path) -> Iterator[Document]:
    """Yield the documents of a JSON Lines file in order.

    Raises UserError, naming file and line, for whatever `read_records` refuses and for a record
    with a missing, unknown or mistyped field.
    """
    for number, record in read_records(path):
        yield _document(record, f"{path}:{number}")


def _document(record: dict[str, Any], where: str) -> Document:
    fields = Document.__dataclass_fields__
    if missing := [name for name in fields if name not in record]:
        raise UserError(f"{where}: the document lacks {', '.join(missing)}")
    if unknown := sorted(set(record) - set(fields)):
        raise UserError(f"{where}: unknown field {unknown[0]!r}; known: {', '.join(fields)}")
    for name, value in record.items():
        if not isinstance(value, str):
            raise UserError(f"{where}: {name} must be a string, not {type(value).__name__}")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(f"{where}: {name} holds a lone surrogate") from error
    if record["source"] not in SOURCES:
        raise UserError(
            f"{where}: unknown source {record['source']!r}; known: {', '.join(SOURCES)}"
        )
    return Document(**record)


def write_documents(path: Path, documents: Iterable[Document]) -> int:
    """Write documents as JSON Lines and return their number; errors as `write_records`."""
    return write_records(path, (asdict(document) for document in documents))
