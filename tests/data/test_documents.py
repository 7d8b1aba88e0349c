"""Documents survive their files, and damaged files are named with the line."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.data.documents import (
    SOURCES,
    Document,
    read_documents,
    read_records,
    write_documents,
)
from openmimo.errors import UserError

TEXTS = st.text(st.characters(codec="utf-8"))
GOOD = '{"text": "a", "source": "math", "domain": "", "origin": "o"}\n'


@given(
    st.lists(st.builds(Document, TEXTS, st.sampled_from(SOURCES), TEXTS, TEXTS)),
)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, documents: list) -> None:
    path = tmp_path_factory.mktemp("documents") / "d.jsonl"
    assert write_documents(path, documents) == len(documents)
    assert list(read_documents(path)) == documents


def test_only_newline_ends_a_line(tmp_path: Path) -> None:
    document = Document("a\u2028b\x85c\x0bd\r\ne", "general", "", "o")
    write_documents(tmp_path / "d.jsonl", [document, document])
    assert (tmp_path / "d.jsonl").read_bytes().count(b"\n") == 2
    assert list(read_documents(tmp_path / "d.jsonl")) == [document, document]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut', "not valid JSON"),
        (b'["text"]\n', "one JSON object"),
        (b'{"text": "\xff"}\n', "not UTF-8"),
        (b"[" * 100_000 + b"\n", "not valid JSON"),
        (b'{"text": "a", "source": "math", "domain": ""}\n', "lacks origin"),
        (GOOD.replace('"a"', "1").encode(), "text must be a string, not int"),
        (GOOD.replace('"a"', '"\\ud800"').encode(), "lone surrogate"),
        (GOOD.replace("math", "maths").encode(), "unknown source 'maths'"),
        (GOOD.replace('"text"', '"more": "x", "text"').encode(), "unknown field 'more'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(GOOD.encode() + b"\n" + line)
    with pytest.raises(UserError, match=message) as raised:
        list(read_documents(path))
    assert f"{path}:3" in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none\.jsonl"):
        list(read_documents(tmp_path / "none.jsonl"))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    good = Document("good", "code", "", "o")
    write_documents(path, [good])
    with pytest.raises(UserError, match=r"record 2 .* lone surrogate"):
        write_documents(path, [good, Document("\ud800", "code", "", "o")])
    assert [json.loads(line)["text"] for line in path.open()] == ["good"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("line", ['{"a": 1}', '{"prompt": 3}', '{"prompt": null}'])
def test_a_record_without_a_needed_text_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(f'{{"prompt": "x"}}\n{line}\n')
    with pytest.raises(UserError, match=r"records.jsonl:2: 'prompt' is missing or no text"):
        list(read_records(path, "prompt"))
    assert len(list(read_records(path))) == 2
