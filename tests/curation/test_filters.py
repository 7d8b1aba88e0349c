"""Filters of the user's own: asked once, and a model as the documentation shows it."""

import json
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from openmimo.curation.filters import Filter, load_filter
from openmimo.curation.journal import Journal
from openmimo.errors import UserError


def test_a_filter_is_asked_once_about_each_question(tmp_path: Path) -> None:
    """Also after it died half way, and among other questions; a changed one is asked again."""
    asked: list[str] = []
    dies_at = "c"

    def judgement(questions: Sequence[str]) -> list[str | None]:
        if dies_at in questions:
            raise UserError("out of memory")
        asked.extend(questions)
        return ["bad" if question == "a" else None for question in questions]

    def ask(questions: list[str], version: str = "1") -> Sequence[str | None]:
        with Journal(tmp_path / "journal", "reason") as journal:
            return Filter("m:f", version, judgement).remembering(journal)(questions)

    assert ask(["a", "b"]) == ["bad", None]
    with pytest.raises(UserError):
        ask(["b", "c"])
    dies_at = ""
    assert ask(["c", "b", "a"]) == [None, None, "bad"]
    assert asked == ["a", "b", "c"]
    assert ask(["a"], version="2") == ["bad"]
    assert asked == ["a", "b", "c", "a"]


def test_a_changed_filter_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    versions = []
    for text in ("", "# better\n"):
        (tmp_path / "changing.py").write_text(f"{text}def f(questions):\n    return questions\n")
        monkeypatch.delitem(sys.modules, "changing", raising=False)
        versions.append(load_filter("changing:f").version)
    assert versions[0] != versions[1]


class Chat(BaseHTTPRequestHandler):
    """A model that knows a proof when it sees one, behind OpenAI's API."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][0]["content"].split("\n\n")[1]
        text = "Yes." if "establish" in question else "No."
        choice = {"index": 0, "message": {"role": "assistant", "content": text},
                  "finish_reason": "stop"}  # fmt: skip
        reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "judge",
                 "choices": [choice]}  # fmt: skip
        content = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def model() -> Iterator[int]:
    """The port of a model."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_the_model_of_the_documentation(
    model: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs/curation.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "own_model.py").write_text(program.replace(":8000", f":{model}"))
    monkeypatch.syspath_prepend(str(tmp_path))
    found = load_filter("own_model:filter")
    with Journal(tmp_path / "journal", "reason") as journal:
        reasons = found.remembering(journal)(["What is 1?", "Please establish that 1 = 1."])
    assert reasons == [None, "not verifiable"]
