"""Curated problems as a Parquet file, a row a problem with where it came from."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from openmimo.curation.formats import Problem
from openmimo.curation.rows import import_parquet

TEXTS = ("id", "domain", "tier", "prompt", "answer", "entry_point", "golden", "source", "origin")
JSON = ("tests", "levels", "level_scores", "pass_rates")
"""Columns that hold JSON: tests are of several kinds, and Parquet wants one type a column."""
NUMBERS = {
    "strong_pass_rate": "float64",
    "strong_answers": "int64",
    "own_pass_rate": "float64",
    "own_answers": "int64",
}


def write_parquet(path: Path, problems: Sequence[Problem]) -> None:
    """Write all columns, null where a problem has no value; the file appears whole or not at all.

    `mimo curate` reads it again, as a source of the format `problems`.
    """
    parquet = import_parquet()
    import pyarrow

    columns = {name: pyarrow.array([p.get(name) for p in problems], "string") for name in TEXTS}
    for name in JSON:
        values = [None if p.get(name) is None else json.dumps(p[name]) for p in problems]
        columns[name] = pyarrow.array(values, "string")
    for name, kind in NUMBERS.items():
        columns[name] = pyarrow.array([p.get(name) for p in problems], kind)
    unfinished = path.with_name(path.name + ".tmp")
    parquet.write_table(pyarrow.table(columns), unfinished, compression="zstd")
    os.replace(unfinished, path)
