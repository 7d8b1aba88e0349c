"""Prompts: read in pieces, shared, scored; and the alternatives to each token."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from openmimo.inference.protocol import Request
from openmimo.model.mimo import MiMo

from .engines import (
    Expected,
    MakeModel,
    MakeRequests,
    engine_for,
    finish,
    log_probs_of,
)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("drafts", [0, 3])
def test_log_probs_and_alternatives_are_those_of_a_full_pass(
    model: MiMo, temperature: float, drafts: int
) -> None:
    """Of the distribution before it is cut; each request gets as many alternatives as it wants."""
    requests = [
        Request(n, [5, 9, 2, n], 15, temperature, top_p=0.9, seed=n, alternatives=n)
        for n in (0, 3, 20)
    ]
    engine = engine_for(model, drafts=drafts)
    for request, completion in zip(requests, engine.run(requests), strict=True):
        answer, wanted = completion.token_ids, request.alternatives
        exact = log_probs_of(model, [*request.prompt_ids, *answer.tolist()], temperature)[3:]
        chosen = exact.gather(1, torch.from_numpy(answer).long()[:, None])[:, 0]
        np.testing.assert_allclose(completion.log_probs, chosen, atol=1e-4)
        assert completion.log_probs.dtype == completion.top_log_probs.dtype == np.float32
        if wanted:
            assert completion.top_ids.dtype == np.int32
            check_alternatives(completion.top_ids, completion.top_log_probs, exact, wanted)
        else:
            assert completion.top_ids.size == completion.top_log_probs.size == 0


def check_alternatives(
    ids: NDArray[np.int32], log_probs: NDArray[np.float32], exact: Tensor, wanted: int
) -> None:
    best = exact.topk(wanted, dim=-1)
    assert ids.tolist() == best.indices.tolist()
    np.testing.assert_allclose(log_probs, best.values, atol=1e-4)


@pytest.mark.parametrize("prefill_tokens", [1, 7, 16_384])
def test_prompt_scores_are_those_of_a_full_pass(model: MiMo, prefill_tokens: int) -> None:
    rng = np.random.default_rng(0)
    kinds = [(20, 1.0, 0), (1, 1.0, 2), (9, 0.0, 3), (31, 0.6, 0)]  # length, temperature, wanted
    requests = [
        Request(
            n, rng.integers(0, 61, length).tolist(), 3, temperature, seed=n, alternatives=wanted,
            score_prompt=True,
        )
        for n, (length, temperature, wanted) in enumerate(kinds)
    ]  # fmt: skip
    requests.append(Request(4, [5, 6, 7], 3, alternatives=4))
    # Equal prompts, and one that is in a cache already: each is scored all the same.
    requests += [Request(**{**vars(requests[0]), "id": n, "alternatives": n - 5}) for n in (5, 6)]
    engine = engine_for(model, slots=3, prefill_tokens=prefill_tokens)
    engine.run([Request("before", requests[0].prompt_ids, 2)])
    for request, completion in zip(requests, engine.run(requests), strict=True):
        scored = completion.prompt
        if not request.score_prompt:
            assert scored is None
            continue
        assert scored is not None
        assert scored.token_ids.tolist() == list(request.prompt_ids)
        assert (scored.token_ids.dtype, scored.log_probs.dtype) == (np.int32, np.float32)
        assert np.isnan(scored.log_probs[0])
        assert scored.top_ids.shape == (len(request.prompt_ids), request.alternatives)
        assert (scored.top_ids[0] == -1).all()
        assert np.isnan(scored.top_log_probs[0]).all()
        exact = log_probs_of(model, request.prompt_ids, request.temperature)
        chosen = exact.gather(1, torch.tensor(request.prompt_ids)[1:, None])[:, 0]
        np.testing.assert_allclose(scored.log_probs[1:], chosen, atol=1e-4)
        check_alternatives(
            scored.top_ids[1:], scored.top_log_probs[1:], exact, request.alternatives
        )


def test_a_prompt_longer_than_is_scored_at_a_time(make_model: MakeModel) -> None:
    model = make_model(max_position_embeddings=1024)
    ids = np.random.default_rng(1).integers(0, 61, 600).tolist()
    engine = engine_for(model, max_length=610)
    [completion] = engine.run([Request(0, ids, 1, score_prompt=True)])
    assert completion.prompt is not None
    exact = log_probs_of(model, ids).gather(1, torch.tensor(ids)[1:, None])[:, 0]
    np.testing.assert_allclose(completion.prompt.log_probs[1:], exact, atol=1e-4)


def test_a_prompt_token_that_is_never_drawn_has_probability_zero(model: MiMo) -> None:
    [completion] = engine_for(model, used_vocab=50).run(
        [Request(0, [1, 55, 2], 1, score_prompt=True)]
    )
    assert completion.prompt is not None
    assert completion.prompt.log_probs[1] == -np.inf
    ids = torch.tensor([[1, 55, 2]])
    with torch.inference_mode():
        exact = model(ids)[0, 1, :50].log_softmax(-1)[2]
    assert completion.prompt.log_probs[2] == pytest.approx(exact.item(), abs=1e-4)


def test_an_abort_while_a_prompt_is_scored_returns_no_scores(model: MiMo) -> None:
    engine = engine_for(model, prefill_tokens=4)
    engine.submit([Request(0, [1] * 20, 5, score_prompt=True, alternatives=2)])
    assert engine.step() == []
    assert engine.generated(0).token_ids.tolist() == []
    [aborted] = engine.abort([0])
    assert aborted.prompt is None
    assert aborted.token_ids.size == 0
    # The next one with this id has nothing of it.
    [completion] = engine.run([Request(0, [1] * 3, 5, score_prompt=True, alternatives=2)])
    assert completion.prompt is not None
    assert len(completion.prompt.token_ids) == 3


def test_equal_prompts_are_prefilled_once_even_if_admitted_late(
    model: MiMo, expected: Expected
) -> None:
    prompt = tuple(range(10))
    requests = [Request(i, prompt, max_new_tokens=5 + i, seed=i) for i in range(8)]
    engine = engine_for(model, slots=3)
    completions = engine.run(requests)
    assert engine.stats().prefilled_tokens == 9
    assert engine.stats().shared_tokens == 7 * 9
    assert [completion.cached_tokens for completion in completions] == [0, *[9] * 7]
    for request, completion in zip(requests, completions, strict=True):
        assert completion.token_ids.tolist() == expected(request)


@pytest.mark.parametrize("drafts", [0, 3])
@pytest.mark.parametrize("while_active", [True, False])
def test_a_longer_prompt_is_read_from_where_it_differs(
    model: MiMo, expected: Expected, drafts: int, while_active: bool
) -> None:
    """The next turn of a conversation, from rows in use and from those that are not any more."""
    engine = engine_for(model, drafts=drafts)
    first = Request("first", tuple(range(20)), 18, seed=1)
    engine.submit([first])
    if while_active:
        while len(engine.generated("first").token_ids) < 8:
            engine.step()
        answer = engine.generated("first").token_ids.tolist()
    else:
        answer = finish(engine)["first"].token_ids.tolist()
    known = [*first.prompt_ids, *answer]
    assert engine.stats().prefilled_tokens == 19
    requests = [
        Request("all", (*known, 7, 8), 6, seed=2),  # the last token known is in no cache yet
        Request("part", (*known[:22], (known[22] + 1) % 61, 3, 4), 6, seed=3),
        Request("little", (*known[:9], (known[9] + 1) % 61, 3, 4), 6, seed=4),
    ]
    shares = [len(known) - 1, 22, 0]
    for request, shared in zip(requests, shares, strict=True):
        before = engine.stats()
        engine.submit([request])
        completion = finish(engine)[request.id] if not while_active else None
        while completion is None:
            completion = next((c for c in engine.step() if c.request_id == request.id), None)
        after = engine.stats()
        assert completion.token_ids.tolist() == expected(request)
        assert after.shared_tokens - before.shared_tokens == completion.cached_tokens == shared
        assert (
            after.prefilled_tokens - before.prefilled_tokens == len(request.prompt_ids) - 1 - shared
        )
        if while_active:
            while_active = bool(engine.generated("first").token_ids.size)


@pytest.mark.parametrize("moved", [True, False])
def test_the_half_of_a_prompt_that_was_aborted_is_not_taken_for_the_whole(
    model: MiMo, expected: Expected, moved: bool
) -> None:
    """It was read into a row that another request has left, or moved there when that ended."""
    engine = engine_for(model, prefill_tokens=1)
    engine.submit([Request("first", (1,), 30, seed=1)])
    if not moved:
        finish(engine)
    for _ in range(15):
        engine.step()
    prompt = tuple(range(45))
    engine.submit([Request("half", prompt, 5)])
    for _ in range(16):
        engine.step()
    assert not engine.generated("first").token_ids.size
    assert 0 < engine.stats().prefilled_tokens < 20
    engine.abort(["half"])
    again = Request("whole", prompt, 12, seed=2)
    assert engine.run([again])[0].token_ids.tolist() == expected(again)


@pytest.mark.parametrize("prefill_tokens", [1, 7, 16])
@pytest.mark.parametrize("drafts", [0, 3])
def test_prompts_read_in_pieces_change_nothing(
    model: MiMo, mixed_requests: MakeRequests, expected: Expected, prefill_tokens: int, drafts: int
) -> None:
    requests = mixed_requests(24, longest=40)
    engine = engine_for(model, slots=5, prefill_tokens=prefill_tokens, drafts=drafts)
    for request, completion in zip(requests, engine.run(requests), strict=True):
        assert completion.token_ids.tolist() == expected(request)


def test_a_long_prompt_does_not_hold_up_others(model: MiMo) -> None:
    engine = engine_for(model, prefill_tokens=5)
    engine.submit([Request("short", [1], 30, seed=1)])
    engine.step()
    engine.submit([Request("long", range(41), 3)])
    for step in range(1, 8):
        engine.step()
        assert len(engine.generated("short").token_ids) == step + 1
        assert engine.generated("long").token_ids.size == 0
        assert engine.stats().prefilled_tokens == 5 * step
        assert engine.stats().active == 2
    engine.step()
    assert len(engine.generated("long").token_ids) == 1


def test_the_batch_of_prompts_stays_within_the_budget(
    model: MiMo, monkeypatch: pytest.MonkeyPatch, mixed_requests: MakeRequests
) -> None:
    engine = engine_for(model, slots=8, prefill_tokens=32, drafts=2)
    sizes = []
    prefill = engine._decoder.prefill

    def watched(rows: slice, tokens: Any, positions: Any) -> Tensor:
        sizes.append(tokens.size)
        return prefill(rows, tokens, positions)

    monkeypatch.setattr(engine._decoder, "prefill", watched)
    engine.submit(mixed_requests(30, longest=40))
    for _ in range(12):
        engine.step()
    assert engine.stats().active > 3
    engine.update_weights(model)
    finish(engine)
    assert max(sizes) <= 32


def test_a_short_prompt_does_not_wait_for_the_long_one_behind_it(model: MiMo) -> None:
    engine = engine_for(model, prefill_tokens=16)
    engine.submit([Request("short", (1, 2, 3), 9), Request("long", (4,) * 41, 3)])
    engine.step()
    assert engine.generated("short").token_ids.size == 1


@pytest.mark.parametrize("drafts", [0, 3])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_samples_of_a_short_prompt(
    model: MiMo, expected: Expected, drafts: int, length: int
) -> None:
    requests = [Request(n, (5, 6, 7)[:length], 8, seed=n) for n in range(9)]
    for request, completion in zip(
        requests, engine_for(model, drafts=drafts).run(requests), strict=True
    ):
        assert completion.token_ids.tolist() == expected(request)
