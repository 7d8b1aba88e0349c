"""Where problems come from: which files, in which format, and what they are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from openmimo.curation.formats import (
    FORMATS,
    NotAProblem,
    Problem,
    assertions,
    question_of,
    to_problem,
)
from openmimo.curation.gates import Drop, Sifted
from openmimo.data.rows import Row, digest, locate, read_rows
from openmimo.errors import UserError


@dataclass(frozen=True)
class Source:
    """One problem set.

    name: as the user wrote it; every row's provenance.
    format: a key of FORMATS.
    files: with the hash of each one's content.
    """

    name: str
    format: str
    files: tuple[tuple[Path, str], ...]

    @property
    def key(self) -> list[str]:
        """Changes with whatever the problems depend on; their rows hold the name."""
        return [self.name, self.format, *(content for _, content in self.files)]


def open_source(text: str) -> Source:
    """A source as the command line spells it: [FORMAT:]FILE, the format `problems` by default.

    Raises:
        UserError: an unknown format, or no such file.
    """
    name, colon, rest = text.partition(":")
    given = bool(colon) and not rest.startswith("//") and not Path(text).exists()
    if given and name not in FORMATS:
        raise UserError(f"unknown format {name!r} of {text}: known are {', '.join(FORMATS)}")
    files = locate(rest if given else text)
    return Source(text, name if given else "problems", tuple((f, digest(f)) for f in files))


def read_sources(sources: Sequence[Source], fields: Mapping[str, str]) -> Sifted:
    """All rows as problems, with `source` and `origin` (file and row), and the rows that are none.

    fields: names of the format `problems`, where a file has others.

    Raises:
        UserError: a file cannot be read, or not one row of it has the form of its format.
    """
    called = _short_names(path for source in sources for path, _ in source.files)
    for source in sources:
        for path, _ in source.files:
            usable, first = 0, ""
            for number, row in read_rows(path):
                found = _problem(source, row, fields, f"{called[path]}:{number}")
                yield found
                if isinstance(found, Drop):
                    first = first or f"{found.reason}, {found.detail}"
                else:
                    usable += 1
            if not usable:
                raise UserError(
                    f"{path} has no problem of the format {source.format} ({first or 'no rows'}): "
                    f"name another one of {', '.join(FORMATS)}, or the columns with --fields"
                )


def _problem(source: Source, row: Row, fields: Mapping[str, str], origin: str) -> Problem | Drop:
    place = {"source": source.name, "origin": origin}
    try:
        return to_problem(row, source.format, fields if source.format == "problems" else {}) | place
    except NotAProblem as why:
        return Drop(place | {"prompt": question_of(row) or ""}, why.reason, why.detail)


def _short_names(paths: Iterable[Path]) -> dict[Path, str]:
    """Files by name, with as many of their folders as tell them apart."""
    distinct = list(dict.fromkeys(paths))
    for length in range(1, 1 + max((len(path.parts) for path in distinct), default=0)):
        names = {path: "/".join(path.parts[-length:]) for path in distinct}
        if len(set(names.values())) == len(distinct):
            return names
    return {path: str(path) for path in distinct}


def read_items(sources: Sequence[Source]) -> dict[str, str]:
    """The questions of evaluation sets, by file and row, and each assertion in them.

    Raises:
        UserError: a set without a question.
    """
    items: dict[str, str] = {}
    for source in sources:
        questions = {
            f"{path.name}:{number}": question
            for path, _ in source.files
            for number, row in read_rows(path)
            if (question := question_of(row))
        }
        if not questions:
            raise UserError(f"{source.name} has no question (prompt, problem, question or text)")
        for place, question in questions.items():
            items[f"{source.name} {place}"] = question
            for number, line in enumerate(assertions(question), start=1):
                items[f"{source.name} {place} assertion {number}"] = line
    return items
