"""Tests as files: problem packages, folders of inputs and outputs, JSON records."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openmimo.errors import UserError
from openmimo.judge.cases import Limits, StdioTest, Test
from openmimo.judge.compare import TOKENS, Rule
from openmimo.judge.packages import Package, read_package
from openmimo.judge.records import parse_test

_ANSWERS = (".out", ".ans", ".a")


def read_suite(path: Path, rule: Rule | None = None, entry_point: str | None = None) -> Package:
    """Tests from a file or folder. UserError if there are none.

    A Kattis package (folder) or a CMS task (folder or zip); a folder of `*.in` beside `*.out` or
    `*.ans`; one such input file; JSON records (see `records.py`): a list, an object with a list
    `tests`, or one record a line. `rule` is for tests that bring none of their own.
    """
    if not path.exists():
        raise UserError(f"no tests at {path}")
    if path.suffix in (".json", ".jsonl"):
        return _package(path, _read_records(path, rule, entry_point))
    if path.suffix == ".in":
        return _package(path, {path.stem: _read_pair(path, rule)})
    inputs = sorted(path.glob("*.in")) if path.is_dir() else []
    if inputs:
        return _package(path, {file.stem: _read_pair(file, rule) for file in inputs})
    return read_package(path)


def _package(path: Path, tests: Mapping[str, Test]) -> Package:
    if not tests:
        raise UserError(f"no tests in {path}")
    return Package(path.stem, tuple(tests.values()), tuple(tests), Limits())


def _read_pair(file: Path, rule: Rule | None) -> StdioTest:
    answers = [file.with_suffix(suffix) for suffix in _ANSWERS]
    answer = next((each for each in answers if each.is_file()), None)
    if answer is None:
        raise UserError(f"{file} has no answer beside it: {' or '.join(a.name for a in answers)}")
    return StdioTest(file.read_bytes(), answer.read_bytes(), rule or TOKENS)


def _read_records(path: Path, rule: Rule | None, entry_point: str | None) -> dict[str, Test]:
    tests = {}
    for number, record in enumerate(_records(path), 1):
        if not isinstance(record, dict):
            raise UserError(f"{path}: record {number} is no JSON object")
        if rule is not None and "code" not in record:
            record = {"rule": rule, **record}
        try:
            tests[str(record.get("name", number))] = parse_test(record, entry_point)
        except UserError as error:
            raise UserError(f"{path}, record {number}: {error}") from error
    return tests


def _records(path: Path) -> list[Any]:
    data = path.read_bytes()
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in data.split(b"\n") if line.strip()]
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    if isinstance(content, dict):
        content = content.get("tests", [content])
    if not isinstance(content, list):
        raise UserError(f"{path} holds no list of tests")
    return content
