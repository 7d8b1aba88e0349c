"""Rows of the known sets, files of all kinds, and sources by name."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from openmimo.curation import parquet
from openmimo.curation.formats import NotAProblem, to_problem
from openmimo.curation.sources import open_source, read_items, read_sources
from openmimo.data.rows import read_rows
from openmimo.errors import UserError


def test_gsm8k():
    row = {"question": "How many?", "answer": "It is 3 < 4.\n#### 1,234"}
    assert to_problem(row, "gsm8k", {})["answer"] == "1234"


def test_math_takes_the_answer_or_the_last_box():
    row = {"problem": "?x", "solution": "$\\boxed{1}$, no: $\\boxed{\\frac{1}{2}}$."}
    assert to_problem(row, "math", {})["answer"] == "\\frac{1}{2}"
    assert to_problem(row | {"answer": 27.0}, "math", {})["answer"] == "27"
    assert to_problem(row | {"answer": 0.5}, "math", {})["answer"] == "0.5"


def test_mbpp():
    row = {
        "text": "Add one.", "code": "def f(x):\r\n    return x + 1", "test_setup_code": "y = 1",
        "test_list": ["assert f(1) == 2", "assert f(y) == 2"], "task_id": 1,
    }  # fmt: skip
    problem = to_problem(row, "mbpp", {})
    assert problem["prompt"] == "Add one.\nassert f(1) == 2"
    assert problem["tests"][1] == {"code": "assert f(y) == 2", "setup": "y = 1"}
    assert problem["golden"].startswith("def f")


def test_code_contests_in_both_forms():
    cases = {"input": ["1\n", "2\n"], "output": ["1\n", "4\n"]}
    row = {
        "description": "Square.",
        "public_tests": {"input": ["1\n"], "output": ["1\n"]},
        "private_tests": cases,
        "solutions": {"language": [2, 3], "solution": ["int main", "print(1)"]},
    }
    problem = to_problem(row, "code_contests", {})
    assert problem["tests"] == [
        {"stdin": "1\n", "stdout": "1\n"},
        {"stdin": "2\n", "stdout": "4\n"},
    ]
    assert problem["golden"] == "print(1)"
    other = {"problem": "Square.", "tests": {"inputs": ["1\n"], "outputs": ["1\n"]}}
    assert to_problem(other, "code_contests", {})["id"] == problem["id"]


def test_other_names_of_our_own_fields():
    row = {"q": "How many?", "label": 3, "prompt": "not this"}
    problem = to_problem(row, "problems", {"prompt": "q", "answer": "label"})
    assert (problem["prompt"], problem["answer"]) == ("How many?", "3")


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("gsm8k", {"question": "How many?", "answer": "three"}, "no answer"),
        ("gsm8k", {"question": "How many?"}, "another form"),
        ("math", {"problem": "How many?", "solution": "\\boxed{1"}, "no answer"),
        ("math", {"problem": " \n", "answer": "1"}, "no question"),
        ("mbpp", {"text": "Add.", "test_list": []}, "no tests"),
        ("mbpp", {"text": "Add.", "test_list": "assert 1"}, "another form"),
        ("code_contests", {"problem": "Add.", "tests": {"inputs": ["1"]}}, "tests without output"),
        ("problems", {"prompt": "Add.", "answer": None}, "no answer"),
        ("problems", {"prompt": "Add.", "tests": "[1"}, "another form"),
        ("problems", {"prompt": "Add.", "answer": "\ud800"}, "no JSON value"),
        ("problems", {"prompt": "Add.", "tests": [{"args": [float("nan")]}]}, "no JSON value"),
    ],
)
def test_rows_that_are_no_problem(name, row, reason):
    with pytest.raises(NotAProblem) as caught:
        to_problem(row, name, {})
    assert caught.value.reason == reason


ROWS = [{"prompt": "one\u2028line", "answer": "1"}, {"prompt": "two", "answer": "2"}]


def test_the_same_rows_from_every_kind_of_file(tmp_path):
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert [row for _, row in read_rows(path)] == ROWS, path.name
        assert [number for number, _ in read_rows(path)] == [1, 2]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"a": 1}\n[2]\n'),
        ("a.jsonl", b"\xff\n"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 500)[:20]),
        ("a.jsonl.gz", b"plain"),
        ("a.json", b'{"a": []}'),
        ("a.json", b"[1]"),
        ("a.json", b"[" * 100_000),
    ],
)
def test_damaged_files_are_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json"):
        list(read_rows(tmp_path / name))


def test_files_of_one_name_are_told_apart(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.json").write_text(json.dumps([{"prompt": folder, "answer": "1"}]))
    sources = [open_source(f"problems:{tmp_path / folder / 'a.json'}") for folder in ("x", "y")]
    kept = list(read_sources(sources, {}))
    assert [problem["origin"] for problem in kept] == ["x/a.json:1", "y/a.json:1"]


def test_items_have_the_questions_assertions_too(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"prompt": 'Add.\n  assert f(1) == 2\n"""'}]))
    items = read_items([open_source(str(tmp_path / "a.json"))])
    assert list(items.values()) == ['Add.\n  assert f(1) == 2\n"""', "assert f(1) == 2"]
    assert all("a.json:1" in name for name in items)


@pytest.mark.parametrize(("limit", "value", "groups"), [("ROWS", 3, 4), ("CHARACTERS", 50, 5)])
def test_parquet_is_written_by_row_groups(limit, value, groups, monkeypatch, tmp_path):
    """Of so many rows, or of so much text in their tests: here 42 characters a row."""
    monkeypatch.setattr(parquet, limit, value)
    tests = [{"stdin": "12345", "stdout": "6"}]
    rows = [{"id": f"{n}", "prompt": "?", "tests": tests, "levels": [[0]]} for n in range(10)]
    parquet.write_parquet(tmp_path / "a.parquet", iter(rows))
    with pyarrow.parquet.ParquetFile(tmp_path / "a.parquet") as file:
        assert file.num_row_groups == groups
        assert [row["id"] for row in file.read().to_pylist()] == [row["id"] for row in rows]
    assert [json.loads(row["tests"]) for _, row in read_rows(tmp_path / "a.parquet")] == [
        tests
    ] * 10
