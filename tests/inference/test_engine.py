"""The engine answers what a full pass a token gives, whatever else it is doing meanwhile."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from openmimo.errors import UserError
from openmimo.inference.decoder import spare
from openmimo.inference.protocol import Completion, Request, RequestId
from openmimo.model.mimo import MiMo

from .engines import (
    MAX_LENGTH,
    Expected,
    MakeModel,
    MakeRequests,
    engine_for,
    finish,
    log_probs_of,
)


@pytest.mark.parametrize("slots", [1, 3, 32])
@pytest.mark.parametrize("drafts", [0, "auto"])
def test_completions_equal_generation_without_engine_whatever_the_slots(
    model: MiMo, mixed_requests: MakeRequests, expected: Expected, slots: int, drafts: Any
) -> None:
    requests = mixed_requests(30)
    completions = engine_for(model, slots, drafts=drafts).run(requests)
    for request, completion in zip(requests, completions, strict=True):
        answer = expected(request)
        assert completion.request_id == request.id
        assert completion.token_ids.tolist() == answer
        assert completion.token_ids.dtype == np.int32
        stopped = answer[-1] in request.stop_ids
        assert completion.finish_reason == ("stop" if stopped else "length")
        assert completion.prompt is None
        assert completion.top_ids.size == 0


@settings(max_examples=15)
@given(st.data())
def test_arrivals_and_aborts_at_any_step_change_no_one_elses_answer(
    model: MiMo, mixed_requests: MakeRequests, expected: Expected, data: st.DataObject
) -> None:
    """Requests that wait, are being read, lead others or follow, decode, or come once more."""
    # Few kinds of request, so that many share a prompt.
    pool = mixed_requests(10, seed=data.draw(st.integers(0, 2)), longest=30)
    pool = [r for r in pool for _ in range(3)]
    engine = engine_for(
        model, slots=data.draw(st.integers(1, 6)), drafts=data.draw(st.sampled_from([0, 2])),
        prefill_tokens=data.draw(st.sampled_from([1, 7, 16, 16_384])),
    )  # fmt: skip
    in_flight: dict[RequestId, Request] = {}
    for _ in range(data.draw(st.integers(5, 25))):
        for _ in range(data.draw(st.integers(0, 4))):
            new = data.draw(st.sampled_from(pool))
            name = f"{new.id}/{data.draw(st.integers(0, 3))}"
            if name not in in_flight:
                in_flight[name] = new
                engine.submit([Request(**{**vars(new), "id": name})])
        finished = engine.step() if data.draw(st.integers(0, 4)) else []
        if in_flight and data.draw(st.integers(0, 2)) == 0:
            gone = data.draw(st.lists(st.sampled_from([*in_flight, "no such id"]), max_size=3))
            aborted = engine.abort(gone)
            names = Counter(c.request_id for c in [*aborted, *finished])
            assert all(names[i] == 1 for i in gone if i in in_flight)
            assert all(c.finish_reason == "aborted" for c in aborted)
            finished += aborted
        check_answers(finished, in_flight, expected)
        stats = engine.stats()
        assert stats.waiting + stats.active == len(in_flight)
    check_answers(finish(engine).values(), in_flight, expected)
    assert not in_flight


def check_answers(
    completions: Any, in_flight: dict[RequestId, Request], expected: Expected
) -> None:
    for completion in completions:
        answer = expected(in_flight.pop(completion.request_id))
        if completion.finish_reason == "aborted":
            answer = answer[: len(completion.token_ids)]
        assert completion.token_ids.tolist() == answer


@pytest.mark.slow
def test_a_long_soak(model: MiMo, mixed_requests: MakeRequests, expected: Expected) -> None:
    rng = np.random.default_rng(0)
    pool = [r for seed in range(3, 8) for r in mixed_requests(30, seed=seed, longest=40)]
    engine = engine_for(model, slots=7, drafts="auto", prefill_tokens=24)
    in_flight: dict[RequestId, Request] = {}
    answered = 0
    for number in range(800):
        while len(in_flight) < 12 and rng.random() < 0.6:
            new = pool[rng.integers(len(pool))]
            name = f"{number}/{len(in_flight)}"
            in_flight[name] = new
            engine.submit([Request(**{**vars(new), "id": name})])
        finished = engine.step()
        if in_flight and rng.random() < 0.05:
            finished += engine.abort([list(in_flight)[rng.integers(len(in_flight))]])
        answered += len(finished)
        check_answers(finished, in_flight, expected)
    check_answers(finish(engine).values(), in_flight, expected)
    assert answered > 300
    assert engine.stats().shared_tokens > 1000


def test_generated_tells_what_there_is_so_far(model: MiMo, expected: Expected) -> None:
    requests = [
        Request(n, (n, 2, 3), 12, seed=n, alternatives=2 * (n % 2), stop_ids=()) for n in range(5)
    ]
    engine = engine_for(model, slots=4, drafts=3)
    engine.submit(requests)
    seen: dict[RequestId, list[int]] = {r.id: [] for r in requests}
    done: dict[RequestId, Completion] = {}
    for _ in range(100):
        for request in requests:
            if request.id in done:
                continue
            heard = seen[request.id]
            new = engine.generated(request.id, len(heard))
            everything = engine.generated(request.id)
            heard += new.token_ids.tolist()
            assert everything.token_ids.tolist() == heard == expected(request)[: len(heard)]
            assert len(everything.log_probs) == len(heard)
            assert len(new.log_probs) == len(new.token_ids)
            if request.alternatives and heard:
                assert everything.top_ids.shape == (len(heard), 2)
                assert new.top_log_probs.shape == (len(new.token_ids), 2)
        done.update((c.request_id, c) for c in engine.step())
    assert set(done) == set(seen)
    assert any(seen.values())


@pytest.mark.parametrize("drafts", [1, 3, "auto"])
def test_collected_hidden_states_are_those_of_a_full_pass(
    model: MiMo, mixed_requests: MakeRequests, drafts: Any
) -> None:
    collected: dict[RequestId, tuple[list[int], Tensor]] = {}

    def collect(request: Request, tokens: NDArray[np.int64], hidden: Tensor) -> None:
        collected[request.id] = tokens.tolist(), hidden

    requests = mixed_requests(14, longest=30)
    engine = engine_for(model, drafts=drafts, collect=collect, prefill_tokens=10)
    for request, completion in zip(requests, engine.run(requests), strict=True):
        tokens, hidden = collected[request.id]
        assert tokens == [*request.prompt_ids, *completion.token_ids.tolist()]
        ids = torch.tensor([tokens[:-1]])
        with torch.inference_mode():
            exact = model.hidden(ids, torch.arange(len(tokens) - 1)[None])[0]
        torch.testing.assert_close(hidden, exact, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="allow the engine drafts"):
        engine_for(model, collect=collect)


def test_dead_rows_of_the_head_are_never_sampled(
    make_model: MakeModel, mixed_requests: MakeRequests, reference: Any
) -> None:
    model = make_model(seed=3)
    with torch.no_grad():
        model.lm_head.weight[50:] *= 100  # would win nearly always
    requests = mixed_requests(20)
    completions = engine_for(model, used_vocab=50).run(requests)
    for request, completion in zip(requests, completions, strict=True):
        assert completion.token_ids.max() < 50
        assert completion.token_ids.tolist() == reference(model, request, 50)


@pytest.mark.parametrize("as_state_dict", [True, False])
@pytest.mark.parametrize("drafts", [0, 2])
@pytest.mark.parametrize("prefill_tokens", [3, 16_384])
def test_new_weights_see_nothing_of_the_old(
    make_model: MakeModel, reference: Any, as_state_dict: bool, drafts: int, prefill_tokens: int
) -> None:
    """Of active requests, of those that are being read, and of those that were finished."""
    old, new = make_model(seed=1), make_model(seed=2)
    engine = engine_for(old, slots=6, drafts=drafts, prefill_tokens=prefill_tokens)
    engine.run([Request(f"past {n}", [9] * 25, 5, temperature=0) for n in range(6)])
    requests = [Request(i, [i + 1, 2, 3][: i + 1], 20, temperature=0) for i in range(3)]
    engine.submit(requests)
    for _ in range(4):
        assert engine.step() == []
    late = [
        Request("late", [9] * 28, 6, temperature=0, seed=5, score_prompt=prefill_tokens == 3),
        Request("follower", [9] * 28, 6, seed=6),
    ]
    engine.submit(late)
    if prefill_tokens == 3:  # still being read
        engine.step()
        engine.step()
    so_far = {r.id: engine.generated(r.id).token_ids.tolist() for r in requests}
    assert min(map(len, so_far.values())) >= 4
    engine.update_weights(new.state_dict() if as_state_dict else new)
    shared = engine.stats().shared_tokens
    done = finish(engine)
    for request in requests:
        have = so_far[request.id]
        prefix = [*request.prompt_ids, *have]
        rest = Request(request.id, prefix, 20 - len(have), temperature=0)
        assert done[request.id].token_ids.tolist() == have + reference(new, rest)
    for request in late:
        assert done[request.id].token_ids.tolist() == reference(new, request)
    assert (done["late"].cached_tokens, done["follower"].cached_tokens) == (0, 27)
    if prefill_tokens == 3:
        scores = done["late"].prompt
        assert scores is not None
        exact = log_probs_of(new, [9] * 28)[:, 9]
        np.testing.assert_allclose(scores.log_probs[1:], exact, atol=1e-4)
    if prefill_tokens != 3:
        assert engine.stats().shared_tokens - shared == 27  # the follower's, not the past request's
    again = Request("past", [9] * 25, 5, temperature=0)
    assert engine.run([again])[0].token_ids.tolist() == reference(new, again)


def test_stats_add_up(model: MiMo, mixed_requests: MakeRequests) -> None:
    requests = mixed_requests(9, longest=30)
    engine = engine_for(model, slots=4)
    engine.submit(requests)
    assert (engine.stats().waiting, engine.stats().active) == (9, 0)
    completions = finish(engine).values()
    stats = engine.stats()
    assert stats.generated_tokens == sum(len(c.token_ids) for c in completions)
    assert stats.prefilled_tokens + stats.shared_tokens == sum(
        len(r.prompt_ids) - 1 for r in requests
    )
    assert stats.row_steps == stats.generated_tokens
    assert stats.tokens_per_forward == 1
    assert 0.5 < stats.occupancy <= 1
    assert stats.acceptance == []
    assert stats.saved_seconds == 0


@pytest.mark.parametrize("drafts", [0, 2])
def test_the_memory_of_the_caches_is_told(model: MiMo, drafts: int) -> None:
    config, length = model.config, MAX_LENGTH + spare(drafts)
    entry = 2 * config.num_key_value_heads * config.head_dim
    entries = (config.num_hidden_layers + drafts) * entry + (config.hidden_size if drafts else 0)
    stats = engine_for(model, slots=5, drafts=drafts).stats()
    assert stats.cache_bytes == 5 * length * entries * 4


def test_auto_tells_what_it_does(model: MiMo, mixed_requests: MakeRequests) -> None:
    engine = engine_for(model, drafts="auto")
    drafting = []
    engine.submit(mixed_requests(12, max_new_tokens=30, stop_ids=()))
    while engine.stats().active or engine.stats().waiting:
        engine.step()
        drafting.append(engine.stats().drafting)
    assert min(drafting) == 0 < max(drafting) <= 3
    stats = engine.stats()
    assert stats.saved_seconds != 0
    assert stats.drafts_offered[0] > 0
    assert engine_for(model, drafts=3).stats().drafts_offered == [0, 0, 0]


def test_an_idle_engine_steps_to_nothing(model: MiMo) -> None:
    engine = engine_for(model)
    assert engine.step() == []
    assert engine.abort([1, 2]) == []
    assert engine.stats().occupancy == 0
    assert engine.generated("nobody").token_ids.size == 0


def test_what_cannot_be_served_is_refused_and_nothing_is_queued(model: MiMo) -> None:
    engine = engine_for(model, max_length=10)
    good = Request("good", [1, 2], 8)
    with pytest.raises(UserError, match="make 11, but the engine's max_length is 10"):
        engine.submit([good, Request("long", [1, 2], 9)])
    with pytest.raises(UserError, match="token id outside 0"):
        engine.submit([good, Request("odd", [61], 1)])
    with pytest.raises(ValueError, match="already in flight"):
        engine.submit([good, good])
    assert engine.stats().waiting == 0
    engine.submit([good])
    with pytest.raises(ValueError, match="already in flight"):
        engine.submit([good])
    with pytest.raises(ValueError, match="busy"):
        engine.run([Request("other", [1], 1)])
    with pytest.raises(UserError, match="slots"):
        engine_for(model, slots=0)
    with pytest.raises(UserError, match="61 rows"):
        engine_for(model, used_vocab=62)
    with pytest.raises(UserError, match="prefill_tokens is 0"):
        engine_for(model, prefill_tokens=0)
    with pytest.raises(UserError, match="only 7 tokens can be drawn"):
        engine_for(model, used_vocab=7).submit([Request("many", [1], 1, alternatives=8)])
    with pytest.raises(UserError, match="no memory for the caches"):
        engine_for(model, slots=10**6, max_length=10**6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_ids": []}, "prompt is empty"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": 1e-6}, "temperature is 1e-06; use 0"),
        ({"stop_ids": [2**31]}, "no token id"),
        ({"stop_ids": [-1]}, "no token id"),
        ({"stop_ids": range(129)}, "129 stop tokens"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"min_p": 1.0}, "min_p is 1.0"),
        ({"min_p": float("nan")}, "min_p is nan"),
        ({"alternatives": 21}, "21 alternatives"),
    ],
)
def test_impossible_requests_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Request(**{"id": 1, "prompt_ids": [1], "max_new_tokens": 1, **change})
