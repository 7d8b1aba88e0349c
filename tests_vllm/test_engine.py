"""The adapter in process: what vLLM answers, scores and counts is what the native engine does.

One engine serves all tests but for its end, as each takes up to a minute to start. It drafts with
the MTP layer, which is the harder case: without drafts all goes through the first half of the code.
"""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from benchmarks.vllm_mtp import Greedy, answer_as_vllm_does, partings
from openmimo.errors import UserError
from openmimo.inference import vllm_client
from openmimo.inference.protocol import Completion, InferenceEngine, Request
from openmimo.inference.shared_weights import write_chunks
from openmimo.inference.vllm_engine import VllmEngine
from openmimo.interop.exporting import Model, export_model
from openmimo.model.checkpoint import load_model, write_model
from openmimo.model.layout import EMBEDDING, HEAD
from openmimo.model.mimo import MiMo

from .conftest import LENGTH, Native

pytestmark = pytest.mark.timeout(900)

CLOSE = 5e-4
"""How far apart two engines' log-probs may be by rounding in float32."""
UNUSED = 64
SAMPLED: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.6, "top_p": 0.9},
    {"temperature": 1.3, "top_k": 4, "top_p": 0.95},
]


@pytest.fixture(scope="module")
def padded(native: Native) -> Native:
    """The model with rows that the tokenizer does not use; their logits are 0, so not unlikely."""
    return replace(native, model=pad(native.model))


def pad(model: MiMo) -> MiMo:
    rows = model.config.vocab_size
    wide = MiMo(model.config.model_copy(update={"vocab_size": rows + UNUSED}))
    state = dict(model.state_dict())
    for name in (EMBEDDING, HEAD):
        state[name] = torch.nn.functional.pad(state[name], (0, 0, 0, UNUSED))
    wide.load_state_dict(state)
    return wide.eval()


@pytest.fixture(scope="module")
def engine(padded: Native, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    folder = tmp_path_factory.mktemp("padded")
    (folder / "own").mkdir()
    write_model(padded.model, folder / "own", torch.float32)
    export_model(Model.from_folder(folder / "own"), folder / "vllm", "vllm")
    with VllmEngine(
        folder / "vllm",
        slots=32,
        max_length=padded.model.config.max_position_embeddings,
        used_vocab=padded.tokenizer.vocab_size,
        drafts=1,
        cache_bytes=2**27,
        timeout=300,
        more={"distributed_executor_backend": "uni", "gpu_memory_utilization": 0.1},
    ) as made:
        yield made


@pytest.fixture(scope="module")
def other(run: Path) -> MiMo:
    """The model before SFT: everything in it differs, and its MTP layer guesses well, too."""
    return pad(load_model(run / "stages" / "pretrain" / "model", dtype=torch.float32))


def complete(engine: InferenceEngine, requests: Sequence[Request]) -> list[Completion]:
    engine.submit(requests)
    done: dict[Any, Completion] = {}
    while len(done) < len(requests):
        done |= {completion.request_id: completion for completion in engine.step()}
    assert engine.step() == []
    return [done[request.id] for request in requests]


def exhaust(engine: InferenceEngine) -> None:
    while True:
        engine.step()


def ask(padded: Native, count: int = 100, **settings: Any) -> list[Request]:
    defaults: dict[str, Any] = {"temperature": 0, "stop_ids": padded.stop_ids}
    return [
        Request(f"q{n}", prompt, LENGTH, seed=n, **(defaults | settings))
        for n, prompt in enumerate(padded.prompts[:count])
    ]


def scores(model: MiMo, prompt: Sequence[int], answer: Sequence[int], used: int) -> torch.Tensor:
    """The model's logits at each token of an answer, float32 [n, used]."""
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *answer]]))[0, len(prompt) - 1 : -1, :used]
    return logits.float()


def check_scores(model: MiMo, request: Request, done: Completion, used: int) -> None:
    logits = scores(model, request.prompt_ids, done.token_ids.tolist(), used)
    log_probs = (logits / (request.temperature or 1)).log_softmax(dim=-1)
    ids = torch.from_numpy(done.token_ids).long()
    own = log_probs.gather(1, ids[:, None])[:, 0].numpy()
    np.testing.assert_allclose(done.log_probs, own, atol=CLOSE)
    best = log_probs.topk(request.alternatives, dim=-1).values.numpy()
    np.testing.assert_allclose(done.top_log_probs, best, atol=CLOSE)
    at = log_probs.gather(1, torch.from_numpy(done.top_ids).long()).numpy()
    np.testing.assert_allclose(done.top_log_probs, at, atol=CLOSE)


def check_greedy(padded: Native, model: MiMo, ids: list[list[int]]) -> None:
    """Token for token what `model` says, but for ties."""
    ours = []
    for prompt, answer in zip(padded.prompts, ids, strict=False):
        logits = scores(model, prompt, answer, padded.tokenizer.vocab_size)
        ours.append(logits.argmax(dim=-1).tolist())
    # `ours` says what should follow each prefix, so the first difference is where they part.
    found = partings(model, padded.prompts[: len(ids)], Greedy(ours, 0, 0), Greedy(ids, 0, 0))
    assert [parting for parting in found if not parting.tied] == []
    assert len(found) <= len(ids) // 20


def acceptance(engine: VllmEngine, padded: Native) -> tuple[list[list[int]], float]:
    """Greedy answers, and the share of drafts accepted meanwhile."""
    before = engine.stats()
    ids = [done.token_ids.tolist() for done in complete(engine, ask(padded))]
    after = engine.stats()
    drafts = after.drafts_offered[0] - before.drafts_offered[0]
    return ids, (after.drafts_accepted[0] - before.drafts_accepted[0]) / drafts


def test_greedy_answers_and_counters_are_the_native_ones(
    engine: VllmEngine, padded: Native
) -> None:
    requests = ask(padded, alternatives=2)
    done = complete(engine, requests)
    ids = [completion.token_ids.tolist() for completion in done]
    check_greedy(padded, padded.model, ids)
    for request, completion in zip(requests[:20], done, strict=False):
        check_scores(padded.model, request, completion, padded.tokenizer.vocab_size)
        last = completion.token_ids[-1]
        assert completion.finish_reason == ("stop" if last in padded.stop_ids else "length")
    stats = engine.stats()
    alike = answer_as_vllm_does(padded.model, padded.tokenizer, padded.prompts, padded.greedy)
    assert stats.generated_tokens == sum(map(len, ids))
    assert stats.acceptance[0] == pytest.approx(alike.acceptance, abs=0.02)
    assert stats.prefilled_tokens + stats.shared_tokens == sum(map(len, padded.prompts))
    assert (stats.slots, stats.active, stats.waiting) == (32, 0, 0)
    assert 1.2 < stats.tokens_per_forward < 2


@pytest.mark.parametrize("settings", SAMPLED)
def test_samples_have_the_distribution_and_log_probs_of_the_native_engine(
    engine: VllmEngine, padded: Native, settings: dict[str, Any]
) -> None:
    used, length = padded.tokenizer.vocab_size, 6
    prompts = padded.prompts[:8]
    requests = [
        Request(n, prompts[n % 8], length, seed=n, alternatives=3, **settings) for n in range(480)
    ]
    done = complete(engine, requests)
    for request, completion in zip(requests[:60], done, strict=False):
        check_scores(padded.model, request, completion, used)
    # How surprising the tokens are at each position, against what the exact distribution expects.
    surprise, expected, variance = np.zeros(length), np.zeros(length), np.zeros(length)
    for request, completion in zip(requests, done, strict=True):
        ids = completion.token_ids.tolist()
        exact = cut(scores(padded.model, request.prompt_ids, ids, used), request)
        log = exact.clamp_min(1e-30).log()
        surprise += log.gather(1, torch.tensor(ids)[:, None])[:, 0].numpy()
        expected += (mean := (exact * log).sum(dim=-1)).numpy()
        variance += ((exact * log**2).sum(dim=-1) - mean**2).numpy()
    assert (np.abs(surprise - expected) < 4 * np.sqrt(variance) + 0.05).all()
    assert engine.stats().drafts_accepted[0] > 100  # some of these tokens were drafts


def cut(logits: torch.Tensor, request: Request) -> torch.Tensor:
    """The distribution that a token is drawn from, [n, V]; the definitions, spelled out."""
    probabilities, order = (logits / request.temperature).softmax(dim=-1).sort(descending=True)
    if request.top_k:
        probabilities[:, request.top_k :] = 0
        probabilities /= probabilities.sum(dim=-1, keepdim=True)
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities[before >= request.top_p] = 0
    probabilities /= probabilities.sum(dim=-1, keepdim=True)
    return torch.zeros_like(probabilities).scatter(1, order, probabilities)


def test_a_seed_gives_one_answer_whatever_runs_beside_it(
    engine: VllmEngine, padded: Native
) -> None:
    requests = ask(padded, 12, temperature=1.0)
    together = complete(engine, requests)
    alone = [complete(engine, [request])[0] for request in requests[:3]]
    for one, other in zip(together, alone, strict=False):
        assert one.token_ids.tolist() == other.token_ids.tolist()
    again = complete(engine, [replace(request, seed=99) for request in requests])
    answers = [[done.token_ids.tolist() for done in each] for each in (together, again)]
    assert answers[0] != answers[1]


def test_prompts_are_scored(engine: VllmEngine, padded: Native) -> None:
    requests = ask(padded, 6, score_prompt=True, alternatives=2)
    plain = complete(engine, ask(padded, 6))  # so that a prefix cache could get in the way
    for request, done, same in zip(requests, complete(engine, requests), plain, strict=True):
        assert done.token_ids.tolist() == same.token_ids.tolist()
        assert done.prompt is not None
        assert done.prompt.token_ids.tolist() == list(request.prompt_ids)
        assert np.isnan(done.prompt.log_probs[0])
        assert (done.prompt.top_ids[0] == -1).all()
        ids = list(request.prompt_ids)
        logits = scores(padded.model, ids[:1], ids[1:], padded.tokenizer.vocab_size)
        log_probs = logits.log_softmax(dim=-1)
        own = log_probs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()
        np.testing.assert_allclose(done.prompt.log_probs[1:], own, atol=CLOSE)
        best = log_probs.topk(2, dim=-1).values.numpy()
        np.testing.assert_allclose(done.prompt.top_log_probs[1:], best, atol=CLOSE)


def test_what_is_generated_can_be_read_and_aborted(engine: VllmEngine, padded: Native) -> None:
    requests = [Request(n, padded.prompts[n], 150, temperature=0) for n in range(4)]
    whole = complete(engine, requests)
    engine.submit(requests)
    while len(engine.generated(0).token_ids) < 5:
        assert engine.step() == []
    seen = engine.generated(0).token_ids.tolist()
    assert engine.generated(0, start=3).token_ids.tolist()[:2] == seen[3:5]
    assert engine.stats().active >= 1
    gone = engine.abort([0, 2, "unknown"])
    assert {done.request_id for done in gone} == {0, 2}
    assert {done.finish_reason for done in gone} == {"aborted"}
    for done in gone:
        ids = done.token_ids.tolist()
        assert ids == whole[int(done.request_id)].token_ids.tolist()[: len(ids)]
    rest: list[Completion] = []
    while len(rest) < 2:
        rest += engine.step()
    assert engine.step() == []
    for done in rest:
        assert done.token_ids.tolist() == whole[int(done.request_id)].token_ids.tolist()
        assert done.finish_reason == "length"
    assert len(engine.generated(0).token_ids) == 0
    # An aborted id may come again.
    assert complete(engine, requests[:1])[0].token_ids.tolist() == whole[0].token_ids.tolist()


def test_new_weights_reach_every_part(
    engine: VllmEngine, padded: Native, other: MiMo, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Chunks that cut through a layer's tensors, which vLLM loads together.
    small = partial(write_chunks, chunk_bytes=20_000)
    monkeypatch.setattr(vllm_client, "write_chunks", small)
    first, accepted = acceptance(engine, padded)
    engine.update_weights(other)
    ids, share = acceptance(engine, padded)
    assert ids != first
    check_greedy(padded, other, ids)
    for request, done in zip(
        ask(padded, 10, alternatives=2),
        complete(engine, ask(padded, 10, alternatives=2)),
        strict=True,
    ):
        check_scores(other, request, done, padded.tokenizer.vocab_size)
    greedy = Greedy(ids, 0, 0)
    alike = answer_as_vllm_does(other, padded.tokenizer, padded.prompts, greedy)
    assert share == pytest.approx(alike.acceptance, abs=0.02)

    # Another MTP layer changes no answer, and costs most drafts.
    state = dict(other.state_dict())
    name = "model.mtp_layers.0.input_proj.weight"
    engine.update_weights(state | {name: torch.roll(state[name], 7, dims=1)})
    same, fewer = acceptance(engine, padded)
    assert same == ids
    assert fewer < share - 0.2

    engine.update_weights(padded.model.state_dict())
    assert acceptance(engine, padded) == (first, pytest.approx(accepted, abs=1e-3))


def test_new_weights_while_requests_run(engine: VllmEngine, padded: Native, other: MiMo) -> None:
    requests = [Request(n, padded.prompts[n], 150, temperature=0) for n in range(3)]
    engine.submit(requests)
    while not all(len(engine.generated(n).token_ids) > 20 for n in range(3)):
        engine.step()
    engine.update_weights(other)
    kept = [engine.generated(n).token_ids.tolist() for n in range(3)]
    done: list[Completion] = []
    while len(done) < 3:
        done += engine.step()
    changed = 0
    for completion in done:
        n, ids = int(completion.request_id), completion.token_ids.tolist()
        assert len(kept[n]) < 150
        assert ids[: len(kept[n])] == kept[n]
        check_prefix(padded.model, padded, n, ids, 0, len(kept[n]))
        check_prefix(other, padded, n, ids, len(kept[n]), len(ids))
        changed += scores(padded.model, padded.prompts[n], ids, 1024).argmax(-1).tolist() != ids
    assert changed, "both models say the same, so nothing was seen"
    engine.update_weights(padded.model)


def check_prefix(model: MiMo, padded: Native, n: int, ids: list[int], start: int, end: int) -> None:
    """Tokens start..end-1 of an answer are `model`'s likeliest ones, up to rounding."""
    logits = scores(model, padded.prompts[n], ids, padded.tokenizer.vocab_size)[start:end]
    own = logits.gather(1, torch.tensor(ids[start:end])[:, None])[:, 0]
    assert (logits.max(dim=-1).values - own).max() < 1e-3


def test_unused_rows_are_never_sampled(engine: VllmEngine, padded: Native) -> None:
    used = padded.tokenizer.vocab_size
    state = dict(padded.model.state_dict())
    head = state["lm_head.weight"].clone()
    head[used:] = 3 * head[:UNUSED]  # likelier than any used one
    engine.update_weights(state | {"lm_head.weight": head})
    try:
        ids, share = acceptance(engine, padded)
        for done in complete(engine, ask(padded, 40, temperature=1.0, alternatives=3)):
            assert done.token_ids.max() < used
            assert done.top_ids.max() < used
    finally:
        engine.update_weights(padded.model)
    check_greedy(padded, padded.model, ids)
    assert share > 0.5  # the drafts were no unused ids either


def test_weights_that_do_not_fit_change_nothing(engine: VllmEngine, padded: Native) -> None:
    state = dict(padded.model.state_dict())
    lacking = {name: value for name, value in state.items() if "layers.1.mlp.up_proj" not in name}
    with pytest.raises(UserError, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight"):
        engine.update_weights(lacking)
    name = "model.layers.1.mlp.down_proj.weight"
    with pytest.raises(UserError, match=r"down_proj\.weight is \(64, 3\)"):
        engine.update_weights(state | {name: state[name][:, :3]})
    ids = [done.token_ids.tolist() for done in complete(engine, ask(padded, 5))]
    check_greedy(padded, padded.model, ids)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 10_000}, "max_length"),
        ({"prompt_ids": [5, 100_000]}, "token id outside"),
        ({"temperature": 0.001}, "vLLM would take 0.01"),
        ({"min_p": 0.1}, "min_p together with drafts"),
        ({"top_k": 5}, "top_k without top_p"),
        ({"score_prompt": True, "temperature": 0.5}, "prompts at temperature 1"),
    ],
)
def test_what_vllm_does_otherwise_is_refused(
    engine: VllmEngine, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        engine.submit([Request(0, [1], 2), replace(Request(1, [1], 2), **settings)])
    assert engine.step() == []  # all or none


def test_an_id_twice_is_refused(engine: VllmEngine) -> None:
    with pytest.raises(ValueError, match="already in flight"):
        engine.submit([Request(0, [1], 2), Request(0, [1], 2)])
    assert engine.step() == []


def test_a_killed_engine_is_an_error_and_no_hang(engine: VllmEngine, padded: Native) -> None:
    # Keep it last: it ends the engine of this file.
    engine.submit([Request(n, padded.prompts[n], 150, temperature=0) for n in range(3)])
    engine.step()
    began = time.monotonic()
    for child in psutil.Process().children(recursive=True):
        if "EngineCore" in child.name() or "EngineCore" in " ".join(child.cmdline()):
            os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"vLLM has failed: .*start a new one"):
        exhaust(engine)
    with pytest.raises(UserError, match="vLLM has failed"):
        engine.submit([Request(9, [1], 2)])
    with pytest.raises(UserError, match="vLLM has failed"):
        engine.stats()
    engine.close()
    assert time.monotonic() - began < 60
