"""What a gate leaves in its folder: kept.jsonl and dropped.jsonl, written and read row by row."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from openmimo.curation.formats import Problem
from openmimo.curation.gates import Drop, Sifted
from openmimo.data.documents import read_records

KEPT, DROPPED = "kept.jsonl", "dropped.jsonl"


@dataclass(frozen=True)
class Problems:
    """The problems of a file, read anew each time they are iterated over."""

    path: Path

    def __iter__(self) -> Iterator[Problem]:
        return (record for _, record in read_records(self.path))


@dataclass
class Counts:
    """How many problems a gate kept and dropped; `undecided` is a part of the latter."""

    kept: int = 0
    dropped: int = 0
    undecided: int = 0


def write_sifted(folder: Path, sifted: Sifted) -> Counts:
    """Write what a gate keeps and drops, as it comes; both files appear whole or not at all."""
    counts = Counts()
    names = (KEPT, DROPPED)
    with ExitStack() as files:
        kept, dropped = (files.enter_context((folder / f"{n}.tmp").open("wb")) for n in names)
        for each in sifted:
            if isinstance(each, Drop):
                counts.dropped += 1
                counts.undecided += each.undecided
            else:
                counts.kept += 1
            record, file = (each.record(), dropped) if isinstance(each, Drop) else (each, kept)
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    for name in names:
        os.replace(folder / f"{name}.tmp", folder / name)
    return counts
