"""Where problems come from: which files, in which format, and what they are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from openmimo.curation.rows import digest, locate, read_rows
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
    """All rows as problems, with `source` and `origin`, and the rows that are none.

    fields: names of the format `problems`, where a file has others.

    Raises:
        UserError: a file cannot be read, or not one row of it has the form of its format.
    """
    kept: list[Problem] = []
    dropped: list[Drop] = []
    for source in sources:
        names = fields if source.format == "problems" else {}
        for path, _ in source.files:
            usable, first = 0, ""
            for number, row in read_rows(path):
                place = {"source": source.name, "origin": f"{path.name}:{number}"}
                try:
                    kept.append(to_problem(row, source.format, names) | place)
                    usable += 1
                except NotAProblem as reason:
                    first = first or f"{reason.reason}, {reason.detail}"
                    prompt = question_of(row) or ""
                    dropped.append(Drop(place | {"prompt": prompt}, reason.reason, reason.detail))
            if not usable:
                raise UserError(
                    f"{path} has no problem of the format {source.format} ({first or 'no rows'}): "
                    f"name another one of {', '.join(FORMATS)}, or the columns with --fields"
                )
    # Files of one name in two sources are told apart by the source.
    origins = {(problem["origin"], problem["source"]) for problem in kept}
    if len({origin for origin, _ in origins}) < len(origins):
        for problem in kept:
            problem["origin"] = f"{problem['source']}#{problem['origin'].rpartition(':')[2]}"
    return kept, dropped


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
