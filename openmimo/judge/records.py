"""Tests as JSON records: how problem files and the command line write them.

    {"stdin": "1 2\\n", "stdout": "3\\n"}
    {"args": [1, 2], "expected": 3, "entry_point": "add"}
    {"code": "assert add(1, 2) == 3", "setup": "", "names": ["add"]}

Each may have a "rule": a name, or {"name": ..., "absolute": ..., "relative": ...} (see `Rule`).
"""

from collections.abc import Mapping
from typing import Any

from openmimo.errors import UserError
from openmimo.judge.cases import AssertTest, CallTest, StdioTest, Test
from openmimo.judge.compare import FLOATS, TOKENS, Rule

_KEYS = (
    {"stdin", "stdout", "rule"}, {"args", "expected", "entry_point", "rule"},
    {"code", "setup", "names"},
)  # fmt: skip


def parse_test(record: Mapping[str, Any], entry_point: str | None = None) -> Test:
    """One record as a test; `entry_point` is for call tests that name none. UserError for others.

    Keys that belong to no test (a name, a comment) are ignored where the kind is clear.
    """
    if "checker" in record:
        raise UserError("a test's checker cannot be given here: use a Kattis or CMS package")
    if "stdin" in record and "stdout" in record:
        return StdioTest(_text(record, "stdin"), _text(record, "stdout"), _rule(record, TOKENS))
    if "args" in record and "expected" in record:
        name = record.get("entry_point", entry_point)
        if not isinstance(name, str) or not isinstance(record["args"], list):
            raise UserError(f"a call test needs an entry_point and a list of args: {record}")
        return CallTest(name, record["args"], record["expected"], _rule(record, FLOATS))
    if "code" in record:
        setup = _text(record, "setup") if "setup" in record else ""
        names = record.get("names", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"a test's names must be a list of texts, not {names!r}")
        return AssertTest(_text(record, "code"), setup, tuple(names))
    known = "; ".join(", ".join(sorted(keys)) for keys in _KEYS)
    raise UserError(f"no test: {sorted(record)}; the keys of tests are {known}")


def _text(record: Mapping[str, Any], key: str) -> str:
    if not isinstance(record[key], str):
        raise UserError(f"a test's {key} must be text, not {record[key]!r}")
    return str(record[key])


def _rule(record: Mapping[str, Any], default: Rule) -> Rule:
    rule = record.get("rule")
    if rule is None or isinstance(rule, Rule):
        return rule or default
    try:
        return Rule(**({"name": rule} if isinstance(rule, str) else rule))
    except TypeError as error:
        raise UserError(f"a comparison rule that cannot be read: {rule!r} ({error})") from error
