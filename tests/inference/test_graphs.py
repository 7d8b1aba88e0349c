"""Decoding in a few fixed shapes, on a GPU as CUDA graphs, changes no answer."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openmimo.inference import graphs
from openmimo.inference.engine import Engine
from openmimo.inference.graphs import rounded
from openmimo.inference.protocol import Request
from openmimo.model.mimo import MiMo

MakeModel = Callable[..., MiMo]
MakeRequests = Callable[..., list[Request]]
Expected = Callable[[Request], list[int]]

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")


@given(st.integers(1, 5000), st.sampled_from([1, 256]), st.integers(1, 5000))
def test_rounding_up_wastes_less_than_half(size: int, least: int, most: int) -> None:
    size = min(size, most)
    result = rounded(size, least, most)
    assert size <= result <= most
    assert result <= max(least, 2 * size - 1)
    assert len({rounded(n, least, most) for n in range(1, most + 1)}) <= 26


@pytest.mark.parametrize("drafts", [0, 1, 3, "auto"])
@pytest.mark.parametrize("slots", [1, 11])
def test_answers_are_the_same_in_fixed_shapes(
    model: MiMo,
    mixed_requests: MakeRequests,
    expected: Expected,
    monkeypatch: pytest.MonkeyPatch,
    drafts: Any,
    slots: int,
) -> None:
    """Requests come piece by piece, and prompts are read in the rows that padding touches."""
    monkeypatch.setattr(graphs, "SHORTEST", 8)  # so that several lengths occur
    monkeypatch.setattr(graphs, "MOST", 3)  # so that shapes are given up and made again
    requests = mixed_requests(60, longest=30)
    # Prompts take several steps to read.
    engine = Engine(
        model, slots=slots, max_length=64, drafts=drafts, prefill_tokens=5, fixed_shapes=True
    )
    answers: dict[Any, list[int]] = {}
    for start in range(0, len(requests), 3):
        engine.submit(requests[start : start + 3])
        answers |= {done.request_id: done.token_ids.tolist() for done in engine.step()}
    while engine.stats().active or engine.stats().waiting:
        answers |= {done.request_id: done.token_ids.tolist() for done in engine.step()}
    assert answers == {request.id: expected(request) for request in requests}


def test_new_weights_and_a_new_rope_base_are_seen(make_model: MakeModel) -> None:
    old, new = make_model(0), make_model(1, rope_theta=500.0)
    request = Request(0, (5, 9, 2), 12, temperature=0)
    fixed = Engine(old, slots=2, max_length=32, fixed_shapes=True)
    before = fixed.run([request])[0].token_ids
    fixed.update_weights(new)
    after = fixed.run([request])[0].token_ids
    plain = Engine(new, slots=2, max_length=32, fixed_shapes=False).run([request])[0].token_ids
    assert np.array_equal(after, plain)
    assert not np.array_equal(before, after)


@needs_cuda
@pytest.mark.parametrize("fixed_shapes", [True, False])
@pytest.mark.parametrize("drafts", [0, 3, "auto"])
def test_a_gpu_answers_as_a_cpu(
    model: MiMo,
    make_model: MakeModel,
    mixed_requests: MakeRequests,
    expected: Expected,
    drafts: Any,
    fixed_shapes: bool,
) -> None:
    requests = mixed_requests(40, longest=30)
    other = make_model(1).to("cuda")
    engine = Engine(other, slots=7, max_length=64, drafts=drafts, fixed_shapes=fixed_shapes)
    engine.run(requests[:9])
    engine.update_weights(model)  # after graphs were captured
    done = engine.run(requests)
    answers = [completion.token_ids.tolist() for completion in done]
    assert answers == [expected(request) for request in requests]


@needs_cuda
def test_bfloat16_on_a_gpu_is_near_float32(make_model: MakeModel) -> None:
    requests = [Request(n, (n + 1, 5, 7), 4, temperature=0) for n in range(32)]
    wide, narrow = make_model(0), make_model(0).to("cuda", torch.bfloat16)
    answers = [Engine(each, slots=32, max_length=16).run(requests) for each in (wide, narrow)]
    same = [a.token_ids[0] == b.token_ids[0] for a, b in zip(*answers, strict=True)]
    assert np.mean(same) > 0.8
    shift = [abs(a.log_probs[0] - b.log_probs[0]) for a, b in zip(*answers, strict=True)]
    assert np.median(shift) < 0.1
