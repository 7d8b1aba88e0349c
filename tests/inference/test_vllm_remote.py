"""The adapter for a vLLM server, against a small server that says what a real one would say.

`tests_vllm/` has the real one; it does not refuse or break when it is told to.
"""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from openmimo.errors import UserError
from openmimo.inference.protocol import Completion, Request, RequestId
from openmimo.inference.vllm_remote import RemoteVllm
from openmimo.model.checkpoint import write_model
from openmimo.model.mimo import MiMo

DRAFTS = 'vllm:spec_decode_num_accepted_tokens_per_pos_total{{position="{}"}} 0\n'


class Server(ThreadingHTTPServer):
    """drafts: tokens it drafts a step; replies: of prompts by their first token, (status, text)."""

    daemon_threads = True

    def __init__(self, model: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.drafts = model, 1
        self.replies: dict[int, tuple[int, str]] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/metrics":
            drafts = self.server.drafts
            self._send(200, "vllm:spec_decode_num_drafts_total 0\n" if drafts else "")
            self.wfile.write("".join(DRAFTS.format(i) for i in range(drafts)).encode())
        else:
            entry = {"id": "m", "root": str(self.server.model), "max_model_len": 64}
            self._send(200, json.dumps({"data": [entry]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/completions":
            self._send(200, "{}")
            return
        count, heat = body["max_tokens"], body["temperature"]
        usual = (
            200,
            "".join(event(7 + n, heat, "length" if n + 1 == count else None) for n in range(count)),
        )
        self._send(*self.server.replies.get(body["prompt"][0], usual))

    def _send(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())


def event(token: int, temperature: float, reason: str | None = None) -> str:
    logprob = -0.5 / temperature
    logprobs = {
        "token_logprobs": [logprob],
        "top_logprobs": [{f"token_id:{token}": logprob}],
    }
    choice = {"token_ids": [token], "logprobs": logprobs, "finish_reason": reason}
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


def fault(status: int, why: str) -> str:
    return json.dumps({"error": {"message": why, "code": status}})


@pytest.fixture
def server(tmp_path: Path, model: MiMo) -> Iterator[Server]:
    write_model(model, tmp_path, torch.float32)
    with Server(tmp_path) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


Connect = Callable[[], RemoteVllm]


@pytest.fixture
def connect(server: Server) -> Connect:
    return lambda: RemoteVllm(server.url, slots=4, timeout=20)


def answers(engine: RemoteVllm, *first: int) -> dict[RequestId, Completion]:
    """Of requests whose prompts begin with these tokens, which are also their ids."""
    engine.submit([Request(token, [token, 1], 2) for token in first])
    done: dict[RequestId, Completion] = {}
    while len(done) < len(first):
        done.update((completion.request_id, completion) for completion in engine.step())
    return done


@pytest.mark.parametrize("drafts", [0, 1])
def test_drafts_are_counted(server: Server, connect: Connect, drafts: int) -> None:
    server.drafts = drafts
    with connect() as engine:
        assert len(engine.stats().drafts_offered) == drafts


@pytest.mark.parametrize("drafts", [2, 3])
def test_a_server_that_runs_one_layer_on_its_own_output_is_refused(
    server: Server, connect: Connect, drafts: int
) -> None:
    server.drafts = drafts
    with pytest.raises(UserError, match=f"drafts {drafts} tokens a step .*num_speculative_tokens"):
        connect()


@pytest.mark.parametrize(
    ("reply", "tokens"),
    [
        ((400, fault(400, "prompt too odd")), []),
        ((422, "prompt too odd"), []),
        ((200, f"data: {fault(400, 'prompt too odd')}\n\n"), []),
        ((200, event(7, 1.0) + f"data: {fault(400, 'prompt too odd')}\n\n"), [7]),
    ],
)
def test_what_is_refused_ends_alone_and_with_the_reason(
    server: Server, connect: Connect, reply: tuple[int, str], tokens: list[int]
) -> None:
    with connect() as engine:
        server.replies[5] = reply
        done = answers(engine, 3, 5, 4)
        failed = done[5]
        assert failed.finish_reason == "failed"
        assert failed.error is not None
        assert "request 5" in failed.error
        assert "prompt too odd" in failed.error
        assert failed.token_ids.tolist() == tokens
        for good in (done[3], done[4], answers(engine, 6)[6]):
            assert (good.finish_reason, good.error) == ("length", None)
            assert good.token_ids.tolist() == [7, 8]


@pytest.mark.parametrize(
    "reply",
    [
        (401, fault(401, "the end")),
        (404, fault(404, "the end")),
        (500, fault(500, "the end")),
        (503, "the end"),
        (200, event(7, 1.0) + f"data: {fault(500, 'the end')}\n\n"),
    ],
)
def test_what_any_request_would_meet_ends_the_engine(
    server: Server, connect: Connect, reply: tuple[int, str]
) -> None:
    with connect() as engine:
        server.replies[5] = reply
        with pytest.raises(UserError, match="the end"):
            answers(engine, 5)
        with pytest.raises(UserError, match="the end"):
            engine.submit([Request(1, [1], 1)])


def test_a_broken_off_answer_ends_the_engine(server: Server, connect: Connect) -> None:
    with connect() as engine:
        server.replies[5] = 200, event(7, 1.0)
        with pytest.raises(UserError, match="broke off"):
            answers(engine, 5)
