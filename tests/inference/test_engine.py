import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openmimo.errors import UserError
from openmimo.inference.engine import Engine
from openmimo.inference.protocol import Request


def engine_for(model, slots=4, max_length=40, **options):
    return Engine(model, slots=slots, max_length=max_length, **options)


def mixed_requests(count, seed=0, vocab=61):
    rng = np.random.default_rng(seed)
    return [
        Request(
            id=i,
            prompt_ids=rng.integers(0, vocab, size=rng.integers(1, 12)).tolist(),
            max_new_tokens=int(rng.integers(1, 20)),
            temperature=float(rng.choice([0.0, 0.6, 1.0, 1.5])),
            top_p=float(rng.choice([0.5, 0.95, 1.0])),
            seed=int(rng.integers(0, 2**40)),
            stop_ids=tuple(rng.integers(0, vocab, size=rng.integers(0, 9)).tolist()),
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("slots", [1, 3, 32])
def test_completions_equal_generation_without_engine_whatever_the_slots(model, reference, slots):
    requests = mixed_requests(24)
    completions = engine_for(model, slots).run(requests)
    for request, completion in zip(requests, completions, strict=True):
        expected = reference(model, request)
        assert completion.token_ids.tolist() == expected
        assert completion.token_ids.dtype == np.int32
        stopped = expected[-1] in request.stop_ids
        assert completion.finish_reason == ("stop" if stopped else "length")


@settings(max_examples=15)
@given(st.data())
def test_arrival_times_and_aborts_change_no_one_elses_answer(model, reference, data):
    requests = {r.id: r for r in mixed_requests(10, seed=data.draw(st.integers(0, 5)))}
    engine = engine_for(model, slots=data.draw(st.integers(1, 5)))
    to_submit, done = list(requests), {}
    while len(done) < len(requests):
        batch = data.draw(st.integers(0 if engine.stats().active else 1, 3))
        engine.submit(requests[i] for i in to_submit[:batch])
        del to_submit[:batch]
        finished = engine.step()
        if data.draw(st.booleans()):
            finished += engine.abort([data.draw(st.sampled_from(list(requests)))])
        done.update((c.request_id, c) for c in finished)
    # A request that was aborted before its submission simply ran.
    assert set(done) == set(requests)
    for i, completion in done.items():
        expected = reference(model, requests[i])
        if completion.finish_reason == "aborted":
            expected = expected[: len(completion.token_ids)]
        assert completion.token_ids.tolist() == expected


def test_log_probs_are_those_of_a_full_forward_pass(model):
    request = Request("a", [5, 9, 2], max_new_tokens=15, temperature=1.0, seed=4)
    [completion] = engine_for(model).run([request])
    ids = torch.tensor([[5, 9, 2, *completion.token_ids.tolist()]])
    with torch.inference_mode():
        log_probs = model(ids).log_softmax(-1)[0, 2:-1].gather(1, ids[0, 3:, None])[:, 0]
    np.testing.assert_allclose(completion.log_probs, log_probs.numpy(), atol=1e-5)
    assert completion.log_probs.dtype == np.float32


def test_equal_prompts_are_prefilled_once_even_if_admitted_late(model, reference):
    prompt = list(range(10))
    requests = [Request(i, prompt, max_new_tokens=5 + i, seed=i) for i in range(8)]
    engine = engine_for(model, slots=3)
    completions = engine.run(requests)
    assert engine.stats().prefilled_tokens == 9
    for request, completion in zip(requests, completions, strict=True):
        assert completion.token_ids.tolist() == reference(model, request)


def test_a_small_prefill_budget_changes_nothing(model):
    requests = mixed_requests(12)
    whole = engine_for(model, slots=12).run(requests)
    pieces = engine_for(model, slots=12, prefill_tokens=7).run(requests)
    for a, b in zip(whole, pieces, strict=True):
        assert a.token_ids.tolist() == b.token_ids.tolist()


def test_dead_rows_of_the_head_are_never_sampled(make_model, reference):
    model = make_model(seed=3)
    with torch.no_grad():
        model.lm_head.weight[50:] *= 100  # would win nearly always
    requests = mixed_requests(20)
    completions = engine_for(model, used_vocab=50).run(requests)
    for request, completion in zip(requests, completions, strict=True):
        assert completion.token_ids.max() < 50
        assert completion.token_ids.tolist() == reference(model, request, 50)


@pytest.mark.parametrize("as_state_dict", [True, False])
def test_new_weights_see_nothing_of_the_old(make_model, reference, as_state_dict):
    old, new = make_model(seed=1), make_model(seed=2)
    requests = [Request(i, [i + 1, 2, 3][: i + 1], 12, temperature=0) for i in range(3)]
    engine = engine_for(old)
    engine.submit(requests)
    for _ in range(4):
        assert engine.step() == []
    first = [row.tolist() for row in engine._rows.tokens[:3]]
    engine.update_weights(new.state_dict() if as_state_dict else new)
    done = {}
    while engine.stats().active:
        done.update((c.request_id, c.token_ids.tolist()) for c in engine.step())
    for request, tokens in zip(requests, first, strict=True):
        prefix = tokens[: len(request.prompt_ids) + 4]
        rest = Request(request.id, prefix, 8, temperature=0)
        assert done[request.id] == prefix[-4:] + reference(new, rest)


def test_stats_add_up(model):
    requests = mixed_requests(9)
    engine = engine_for(model, slots=4)
    engine.submit(requests)
    assert (engine.stats().waiting, engine.stats().active) == (9, 0)
    completions = []
    while engine.stats().waiting or engine.stats().active:
        completions += engine.step()
    stats = engine.stats()
    assert stats.generated_tokens == sum(len(c.token_ids) for c in completions)
    assert stats.tokens_per_forward == 1
    assert 0.5 < stats.occupancy <= 1
    assert stats.acceptance == []


def test_an_idle_engine_steps_to_nothing(model):
    engine = engine_for(model)
    assert engine.step() == []
    assert engine.abort([1, 2]) == []
    assert engine.stats().occupancy == 0


def test_what_cannot_be_served_is_refused_and_nothing_is_queued(model):
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_ids": []}, "prompt is empty"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
    ],
)
def test_impossible_requests_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        Request(**{"id": 1, "prompt_ids": [1], "max_new_tokens": 1, **change})
