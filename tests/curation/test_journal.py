"""Journals survive kills, at any byte."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.curation.journal import Journal, content_key, problem_key
from openmimo.data.documents import cut_torn_line
from openmimo.errors import UserError


@given(
    lines=st.lists(st.binary(max_size=9).filter(lambda line: b"\n" not in line)),
    torn=st.binary(max_size=200_000).filter(lambda line: b"\n" not in line),
)
def test_only_what_follows_the_last_line_break_goes(
    lines: list[bytes], torn: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("torn") / "file"
    whole = b"".join(line + b"\n" for line in lines)
    path.write_bytes(whole + torn)
    cut_torn_line(path)
    assert path.read_bytes() == whole
    before = path.stat().st_mtime_ns
    cut_torn_line(path)
    assert path.stat().st_mtime_ns == before, "a whole file is not touched"


def test_lines_longer_than_a_block(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for torn in (65535, 65536, 65537, 200_000):
        path.write_bytes(b"{}\n" + b"x" * torn)
        cut_torn_line(path)
        assert path.read_bytes() == b"{}\n"


def test_a_journal_cut_at_any_byte_has_the_whole_lines_before_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path, "value") as journal:
        for number in range(4):
            journal.add(f"k{number}", value=number, more="é" * number)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        whole = content[:length].count(b"\n")
        with Journal(path, "value") as journal:
            found = [journal.get(f"k{number}") for number in range(4)]
            assert found == [(n,) if n < whole else None for n in range(4)]
            journal.add("new", value=9)
        with Journal(path, "value") as journal:
            assert journal.get("new") == (9,)


def test_the_later_answer_counts(tmp_path: Path) -> None:
    for value in (1, 2):
        with Journal(tmp_path / "folder" / "journal", "value") as journal:
            journal.add("k", value=value)
            assert journal.get("k") == (value,)
    with Journal(tmp_path / "folder" / "journal", "value") as journal:
        assert journal.get("k") == (2,)


@pytest.mark.parametrize("line", ["[1]\n{}\n", '{"key": "k"}\n{}\n', "{\n{}\n"])
def test_another_broken_line_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "journal").write_text(line)
    with pytest.raises(UserError, match="journal:1"):
        Journal(tmp_path / "journal", "value")


def test_keys_are_of_the_content() -> None:
    problem = {"id": "p", "prompt": "?", "answer": "1", "golden": None}
    fields = ("prompt", "answer", "golden")
    key = problem_key(problem, fields)
    assert problem_key({"answer": "1", "prompt": "?", "source": "s"}, fields) == key
    assert problem_key(problem | {"answer": "2"}, fields) != key
    assert content_key("ab", "c") != content_key("a", "bc")
