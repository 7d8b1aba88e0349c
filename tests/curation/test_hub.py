"""Data sets by name, from a server on this machine that speaks the hub's protocol."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import constants

from openmimo.curation.sources import open_source, read_sources
from openmimo.errors import UserError

from .conftest import math, split, write_jsonl

SHA = "0123456789abcdef0123456789abcdef01234567"
COPY_SHA = SHA[::-1]
REPO = "datasets/tiny/sums"


class Handler(BaseHTTPRequestHandler):
    server: Any

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.asked.append(path)
        files = {p.relative_to(self.server.folder).as_posix(): p.read_bytes()
                 for p in self.server.folder.rglob("*.*")}  # fmt: skip
        # The hub's own copy of the set as Parquet is a branch, with a commit of its own.
        copied = "refs/convert/parquet" in path or COPY_SHA in path
        sha = COPY_SHA if copied else SHA
        files = {name: files[name] for name in files if name.endswith(".parquet") == copied}
        if path.startswith(f"api/{REPO}/revision/v9"):
            self.reply(b"{}", {"X-Error-Code": "RevisionNotFound"}, 404)
        elif path.startswith(f"api/{REPO}/tree"):
            listing = [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in files.items()
            ]
            self.reply(json.dumps(listing).encode())
        elif path.startswith(f"api/{REPO}"):
            names = [{"rfilename": name} for name in files]
            self.reply(json.dumps({"id": "tiny/sums", "sha": sha, "siblings": names}).encode())
        elif path.startswith(f"{REPO}/resolve/{sha}/"):
            content = files[path.removeprefix(f"{REPO}/resolve/{sha}/")]
            tag = hashlib.sha1(content).hexdigest()
            self.reply(content, {"ETag": f'"{tag}"', "X-Repo-Commit": sha})
        else:
            self.reply(b"{}", {"X-Error-Code": "RepoNotFound"}, 404)

    def reply(self, content: bytes, headers: dict[str, str] | None = None, code: int = 200) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A hub with the data set tiny/sums; `asked` holds the paths of all requests."""
    folder = tmp_path / "served" / "main"
    folder.mkdir(parents=True)
    for number in (0, 1):
        write_jsonl(folder / f"train-{number}.jsonl", [math(f"What is {number} + 1?", number + 1)])
    write_jsonl(folder / "test-0.jsonl", [math("What is 5 + 1?", 6)])
    (folder / "sums.py").write_text("code")
    train = tmp_path / "served" / "default" / "train"
    train.mkdir(parents=True)
    rows = pyarrow.Table.from_pylist([math("What is 7 + 1?", "8")])
    pyarrow.parquet.write_table(rows, train / "0000.parquet")
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.folder, server.asked = True, tmp_path / "served", []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    # What HF_ENDPOINT, HF_HUB_CACHE and HF_HUB_OFFLINE set at the library's import.
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield server
    server.shutdown()
    server.server_close()


def test_a_set_by_name_and_pattern(hub: Any) -> None:
    source = open_source("hf://datasets/tiny/sums/main/train-*.jsonl")
    kept, dropped = split(read_sources([source], {}))
    assert [problem["answer"] for problem in kept] == ["1", "2"]
    assert [problem["origin"] for problem in kept] == ["train-0.jsonl:1", "train-1.jsonl:1"]
    assert kept[0]["source"] == "hf://datasets/tiny/sums/main/train-*.jsonl"
    assert not dropped
    fetched = [path.rsplit("/", 1)[-1] for path in hub.asked if "/resolve/" in path]
    assert set(fetched) == {"train-0.jsonl", "train-1.jsonl"}, "nothing else, and no code"


def test_a_format_and_a_revision(hub: Any) -> None:
    source = open_source(f"problems:hf://datasets/tiny/sums@{SHA}/main/test-0.jsonl")
    assert split(read_sources([source], {}))[0][0]["answer"] == "6"


def test_the_hubs_own_parquet_copy(hub: Any) -> None:
    name = "hf://datasets/tiny/sums@refs/convert/parquet/default/train/*.parquet"
    kept, _ = split(read_sources([open_source(name)], {}))
    assert [(each["answer"], each["origin"]) for each in kept] == [("8", "0000.parquet:1")]
    asked = [path for path in hub.asked if path.startswith("api/")]
    assert "refs/convert/parquet" in asked[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny/none/a.jsonl", "cannot download the data set tiny/none: "),
        ("tiny/sums@v9/main/test-0.jsonl", "cannot download the data set tiny/sums: "),
        ("tiny/sums/other.jsonl", "the data set tiny/sums has no file other.jsonl"),
    ],
)
def test_refusals_are_one_line(hub: Any, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        open_source(f"hf://datasets/{name}")
    assert "\n" not in str(raised.value)


def test_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="the hub cannot be reached"):
        open_source("hf://datasets/tiny/sums/main/test-0.jsonl")
