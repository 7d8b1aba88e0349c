"""The adapter for a server: `vllm serve`, started as docs/vllm.md says, once for all tests."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from benchmarks.vllm_mtp import Greedy, answer_as_vllm_does
from openmimo.errors import UserError
from openmimo.inference.protocol import Completion, Request
from openmimo.inference.vllm_common import join_tokens
from openmimo.inference.vllm_remote import RemoteVllm
from openmimo.model.checkpoint import load_model

from .conftest import Export, Native
from .servers import DRAFTS, KEY, Server, free_port, serve
from .test_engine import acceptance, ask, check_greedy, check_scores, complete, exhaust

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def server(export: Export, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    with serve(export("vllm"), log, free_port(), *DRAFTS) as server:
        yield server


@pytest.fixture(scope="module")
def engine(server: Server, native: Native) -> Iterator[RemoteVllm]:
    used = native.tokenizer.vocab_size
    with RemoteVllm(server.url, slots=32, api_key=KEY, used_vocab=used, timeout=120) as made:
        yield made


def test_greedy_answers_and_counters_are_the_native_ones(
    engine: RemoteVllm, native: Native
) -> None:
    ids, share = acceptance(engine, native)
    check_greedy(native, native.model, ids)
    assert share == pytest.approx(native.greedy.acceptance, abs=0.05)
    assert engine.stats().generated_tokens == sum(map(len, ids))


def test_scores_are_the_native_ones(engine: RemoteVllm, native: Native) -> None:
    used = native.tokenizer.vocab_size
    for settings in ({"temperature": 1.0}, {"temperature": 0.6, "top_p": 0.9}):
        requests = ask(native, 10, alternatives=3, **settings)
        for request, done in zip(requests, complete(engine, requests), strict=True):
            check_scores(native.model, request, done, used)
    (request,) = ask(native, 1, score_prompt=True, alternatives=2)
    (done,) = complete(engine, [request])
    check_scores(native.model, request, done, used)
    assert done.prompt is not None
    rest = join_tokens([done.prompt], 1)
    scored = Completion(
        0, rest.token_ids, rest.log_probs, "length", rest.top_ids, rest.top_log_probs
    )
    first = Request(0, request.prompt_ids[:1], 1, temperature=0, alternatives=2)
    check_scores(native.model, first, scored, used)
    assert np.isnan(done.prompt.log_probs[0])


def test_streaming_and_abort_by_disconnecting(
    engine: RemoteVllm, server: Server, native: Native
) -> None:
    requests = [Request(n, native.prompts[n], 400, temperature=0) for n in range(3)]
    engine.submit(requests)
    while len(engine.generated(0).token_ids) < 5:
        assert engine.step() == []
    (gone,) = engine.abort([0])
    assert 5 <= len(gone.token_ids) < 400
    assert gone.finish_reason == "aborted"
    engine.abort([1, 2])
    deadline = time.monotonic() + 20
    while running(server.url):
        assert time.monotonic() < deadline, "the server did not notice"
        time.sleep(0.1)


def running(url: str) -> float:
    text = httpx.get(f"{url}/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("vllm:num_requests_running{")]
    return float(lines[0].rsplit(" ", 1)[1])


def test_new_weights_without_a_file(engine: RemoteVllm, native: Native, run: Path) -> None:
    first, accepted = acceptance(engine, native)
    other = load_model(run / "stages" / "pretrain" / "model", dtype=torch.float32)
    engine.update_weights(other)
    ids, share = acceptance(engine, native)
    assert ids != first
    check_greedy(native, other, ids)
    alike = answer_as_vllm_does(other, native.tokenizer, native.prompts, Greedy(ids, 0, 0))
    assert share == pytest.approx(alike.acceptance, abs=0.02)
    engine.update_weights(native.model)
    assert acceptance(engine, native) == (first, pytest.approx(accepted, abs=1e-3))


def test_another_key_and_no_server_are_user_errors(server: Server) -> None:
    with pytest.raises(UserError, match="another API key"):
        RemoteVllm(server.url, slots=1, api_key="wrong", timeout=20)
    with pytest.raises(UserError, match=r"http://127.0.0.1:1 has failed: .*connect"):
        RemoteVllm("http://127.0.0.1:1", slots=1, timeout=20)


def test_a_killed_server_is_an_error_and_no_hang(
    engine: RemoteVllm, server: Server, native: Native
) -> None:
    # Keep it last: it ends the server of this file.
    engine.submit([Request(n, native.prompts[n], 400, temperature=0) for n in range(3)])
    engine.step()
    server.kill()
    with pytest.raises(UserError, match=r"the vLLM server http.* has failed"):
        exhaust(engine)
