"""Models by name, from a server on this machine that speaks the hub's protocol."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
from torch import Tensor

from openmimo.errors import UserError
from openmimo.interop.hub import download, is_hub_name
from openmimo.interop.importing import Options, import_model
from openmimo.model.checkpoint import load_model

from .conftest import FAMILIES, make_foreign

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Repositories `tiny/llama` (public) and `tiny/gated`; remembers what was fetched."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.fetched: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self.describe("/".join(parts[2:4]), parts[4:])
        elif len(parts) < 5:
            self.refuse(404, "EntryNotFound")
        else:
            self.send_file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), body)

    def describe(self, repo: str, rest: list[str]) -> None:
        if repo == "tiny/gated":
            return self.refuse(403, "GatedRepo")
        if repo != "tiny/llama":
            return self.refuse(404, "RepoNotFound")
        if rest and rest[1] not in ("main", SHA):
            return self.refuse(404, "RevisionNotFound")
        files = sorted(path for path in self.server.folder.rglob("*") if path.is_file())
        names = [str(path.relative_to(self.server.folder)) for path in files]
        if rest and rest[0] == "tree":
            content: Any = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": etag(path)}
                for name, path in zip(names, files, strict=True)
            ]
        else:
            content = {"id": repo, "sha": SHA, "siblings": [{"rfilename": name} for name in names]}
        self.reply(json.dumps(content).encode(), {"Content-Type": "application/json"})

    def send_file(self, repo: str, revision: str, name: str, body: bool) -> None:
        path = self.server.folder / name
        if repo != "tiny/llama":
            return self.refuse(404, "RepoNotFound")
        if revision not in ("main", SHA):
            return self.refuse(404, "RevisionNotFound")
        if not path.is_file():
            return self.refuse(404, "EntryNotFound")
        content = path.read_bytes()
        if body:
            self.server.fetched.append(name)
        headers = {"ETag": f'"{etag(path)}"', "X-Repo-Commit": SHA}
        self.reply(content, headers, body)

    def refuse(self, code: int, reason: str) -> None:
        self.reply(b"{}", {"X-Error-Code": reason, "X-Error-Message": reason}, code=code)

    def reply(
        self, content: bytes, headers: dict[str, str], body: bool = True, code: int = 200
    ) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body and self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    constants = pytest.importorskip("huggingface_hub.constants")
    folder = tmp_path / "served"
    make_foreign(folder, **FAMILIES["llama"])
    (folder / "LICENSE").write_text("theirs")
    (folder / "pytorch_model.bin").write_text("a pickle")
    (folder / "modeling_evil.py").write_text("code")
    server = Hub(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    # What HF_ENDPOINT, HF_HUB_CACHE and HF_HUB_OFFLINE set at the library's import.
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield server
    server.shutdown()
    server.server_close()


def test_a_model_by_name(hub: Hub, tmp_path: Path, long_ids: Tensor) -> None:
    report = import_model("tiny/llama", tmp_path / "ours", Options())
    import_model(str(hub.folder), tmp_path / "local", Options())
    with torch.no_grad():
        a, b = (load_model(tmp_path / name)(long_ids) for name in ("ours", "local"))
    assert torch.equal(a, b)
    assert report.name == "tiny/llama"
    assert (tmp_path / "ours" / "LICENSE").exists()


def test_neither_pickles_nor_code_are_fetched(hub: Hub) -> None:
    folder = download("tiny/llama")
    assert set(hub.fetched) >= {"config.json", "model.safetensors", "LICENSE"}
    assert not {name for name in hub.fetched if name.endswith((".bin", ".py"))}
    assert (folder / "model.safetensors").exists()


def test_what_is_there_is_not_fetched_again(hub: Hub) -> None:
    download("tiny/llama")
    hub.fetched.clear()
    download(f"tiny/llama@{SHA}")
    assert hub.fetched == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny/missing", "no model tiny/missing on the hub"),
        ("tiny/llama@v9", "tiny/llama has no revision 'v9'"),
        ("tiny/gated", "gated"),
        ("tiny/llama/other.gguf", "tiny/llama has no file other.gguf"),
    ],
)
def test_refusals_are_one_line(hub: Hub, tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        import_model(name, tmp_path / "ours", Options())
    assert "\n" not in str(raised.value)


def test_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="hub cannot be reached"):
        download("tiny/llama")


@pytest.mark.parametrize("name", ["a/b", "Qwen/Qwen2.5-0.5B@main", "a/b/c-q4.gguf@refs/pr/1"])
def test_names(name: str) -> None:
    assert is_hub_name(name)


@pytest.mark.parametrize(
    "name", ["a", "/a/b", "../b", "a/../b.gguf", "a/b/c", "a//b", "a/b\n", "~/a"]
)
def test_paths_are_no_names(name: str) -> None:
    assert not is_hub_name(name)
