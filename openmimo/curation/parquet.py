"""Curated problems as a Parquet file, a row a problem with where it came from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from openmimo.curation.formats import Problem
from openmimo.data.rows import import_parquet

TEXTS = ("id", "domain", "tier", "prompt", "answer", "entry_point", "golden", "source", "origin")
JSON = ("tests", "levels", "level_scores", "pass_rates")
"""Columns that hold JSON: tests are of several kinds, and Parquet wants one type a column."""
NUMBERS = {
    "strong_pass_rate": "float64",
    "strong_answers": "int64",
    "own_pass_rate": "float64",
    "own_answers": "int64",
}


ROWS = 4096
"""Of a row group, or fewer: see CHARACTERS."""
CHARACTERS = 2**24
"""Of a row group's questions and tests; they and not the number of rows are what fills memory."""


def write_parquet(path: Path, problems: Iterable[Problem]) -> None:
    """Write all columns, null where a problem has no value; the file appears whole or not at all.

    A row group is in memory at a time. `mimo curate` reads the file again, as a source of the
    format `problems`, and so does `mimo rl` (the setting rl.problems).
    """
    parquet = import_parquet()
    import pyarrow

    kinds = dict.fromkeys((*TEXTS, *JSON), "string") | NUMBERS
    schema = pyarrow.schema(list(kinds.items()))
    unfinished = path.with_name(path.name + ".tmp")
    with parquet.ParquetWriter(unfinished, schema, compression="zstd") as writer:
        for group in _groups(problems):
            writer.write_table(pyarrow.Table.from_pylist(group, schema))
    os.replace(unfinished, path)


def _groups(problems: Iterable[Problem]) -> Iterator[list[dict[str, Any]]]:
    """Rows of the file, a row group at a time."""
    group: list[dict[str, Any]] = []
    characters = 0
    for problem in problems:
        texts = {name: json.dumps(problem[name]) for name in JSON if problem.get(name) is not None}
        group.append(problem | texts)
        characters += len(problem["prompt"]) + sum(map(len, texts.values()))
        if len(group) == ROWS or characters >= CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group
