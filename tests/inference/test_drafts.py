"""Drafts change the speed alone, and come from MTP caches without stale entries."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from openmimo.errors import UserError
from openmimo.inference.decoder import Decoder, spare
from openmimo.inference.drafter import Drafter
from openmimo.inference.engine import Engine
from openmimo.inference.packed import PackedModel
from openmimo.inference.protocol import Request
from openmimo.inference.rows import QueuedRequest, Rows
from openmimo.inference.sampling import Settings, draw, log_probabilities
from openmimo.model.mimo import MiMo

from .engines import MAX_LENGTH, MakeModel, MakeRequests

Answers = list[tuple[list[int], str]]
CHANGES = [{}, {"mtp_hidden": "post_norm"}, {"mtp_mask_first": True}, {"num_key_value_heads": 4}]


def engine_for(model: MiMo, drafts: Any = 3, slots: int = 6, **options: Any) -> Engine:
    return Engine(model, drafts=drafts, slots=slots, max_length=MAX_LENGTH, **options)


def answers(engine: Engine, requests: Sequence[Request]) -> Answers:
    return [(c.token_ids.tolist(), c.finish_reason) for c in engine.run(requests)]


def drafter_of(engine: Engine) -> Drafter:
    drafter = engine._decoder.drafter
    assert drafter
    return drafter


@pytest.mark.parametrize("drafts", [1, 2, 3])
@pytest.mark.parametrize("changes", [*CHANGES, {"num_hidden_layers": 1, "head_dim": 12}])
def test_answers_are_the_same_with_and_without_drafts(
    make_model: MakeModel, mixed_requests: MakeRequests, drafts: int, changes: dict[str, Any]
) -> None:
    """Greedy and sampled alike, token for token."""
    model = make_model(seed=drafts, **changes)
    requests = mixed_requests(40, seed=drafts)
    plain = engine_for(model, 0).run(requests)
    fast = engine_for(model, drafts).run(requests)
    for a, b in zip(plain, fast, strict=True):
        assert a.token_ids.tolist() == b.token_ids.tolist()
        assert a.finish_reason == b.finish_reason
        np.testing.assert_allclose(a.log_probs, b.log_probs, atol=1e-4)


class Schedule:
    """Stands in for the policy: a given number of drafts at each step, over and over."""

    saved_seconds = 0.0

    def __init__(self, choices: Iterable[int]) -> None:
        self._choices = itertools.cycle(choices)
        self.spent = 0

    def choose(self, rows: int, backlog: Sequence[float]) -> int:
        return next(self._choices)

    def record(self, rows: int, drafts: int, seconds: float, accepted: Sequence[int]) -> None:
        pass

    def spend(self, seconds: float) -> None:
        self.spent += 1


def scheduled(model: MiMo, choices: Iterable[int], **options: Any) -> Engine:
    engine = engine_for(model, "auto", **options)
    engine._policy = Schedule(choices)  # type: ignore[assignment]
    return engine


def after_drafting(engine: Engine, then: Callable[[Rows, int, Settings, Tensor], None]) -> None:
    """Call `then` when the drafts of a step have been written."""
    drafter = drafter_of(engine)
    own = drafter.draft

    def draft(rows: Rows, drafts: int, settings: Settings, uniform: Tensor) -> None:
        own(rows, drafts, settings, uniform)
        then(rows, drafts, settings, uniform)

    drafter.draft = draft  # type: ignore[method-assign]


def force(
    engine: Engine, model: MiMo, requests: Sequence[Request], right: Callable[[int], bool]
) -> None:
    """Draft the true continuation where `right` says so of a token's number, else another one."""
    endless = [
        Request(
            r.id, r.prompt_ids, MAX_LENGTH - len(r.prompt_ids), r.temperature, r.top_p, r.seed,
            top_k=r.top_k, min_p=r.min_p,
        )
        for r in requests
    ]  # fmt: skip
    truth = {c.request_id: c.token_ids for c in engine_for(model, 0).run(endless)}

    def write(rows: Rows, drafts: int, settings: Settings, uniform: Tensor) -> None:
        for row, queued in enumerate(rows.queued):
            answer, known = truth[queued.request.id], int(rows.known[row])
            first = known - len(queued.prompt)
            for n in range(first, min(first + drafts, len(answer))):
                token = int(answer[n]) if right(n) else (int(answer[n]) + 1) % 61
                rows.tokens[row, known + n - first] = token

    after_drafting(engine, write)


class Check:
    """Compares every draft with what the MTP layers give without any cache."""

    def __init__(self, engine: Engine, model: MiMo) -> None:
        self.model, self.count = model, 0
        after_drafting(engine, self._check)

    @torch.no_grad()
    def _check(self, rows: Rows, drafts: int, settings: Settings, uniform: Tensor) -> None:
        for row, queued in enumerate(rows.queued):
            n = int(rows.known[row]) - 1
            if n == 0:
                continue  # nothing to draft from: anything will do
            ids = torch.from_numpy(rows.tokens[row, : n + 1 + drafts])[None]
            positions = torch.arange(n)[None]
            hidden = self.model.hidden(ids[:, :n], positions)
            alone = Settings.of([queued.request], self.model.config.vocab_size)
            for layer in range(drafts):
                ahead = ids[:, 1 + layer : 1 + layer + n]
                out = self.model.mtp_draft(layer, hidden, ahead, positions)[:, -1:]
                log_probs = log_probabilities(self.model.lm_head(out), alone)
                chance = uniform[row : row + 1, layer : layer + 1]
                token = draw(log_probs, alone, chance)[0].item()
                assert ids[0, n + 1 + layer] == token, (queued.request.id, n, layer)
                self.count += 1


PATTERNS: list[Callable[[int], bool]] = [
    lambda n: True,
    lambda n: False,
    lambda n: n % 2 == 0,
    lambda n: n % 5 < 3,
]


def test_forced_patterns_of_acceptance_change_nothing_but_the_speed(
    model: MiMo, mixed_requests: MakeRequests
) -> None:
    requests = mixed_requests(20)
    plain = answers(engine_for(model, 0), requests)
    stats = []
    for pattern, slots in zip(PATTERNS, (6, 1, 6, 5), strict=True):
        engine = engine_for(model, 3, slots)
        force(engine, model, requests, pattern)
        assert answers(engine, requests) == plain
        stats.append(engine.stats())
    for s in stats:
        assert s.drafts_reached[0] == s.drafts_offered[0]
        for draft in (1, 2):  # reached: the one before was accepted, and the answer goes on
            assert s.drafts_reached[draft] <= s.drafts_accepted[draft - 1]
            assert s.drafts_accepted[draft] <= s.drafts_reached[draft]
            assert s.drafts_offered[draft] <= s.drafts_offered[draft - 1]
    everything, nothing, every_second = stats[:3]
    assert everything.acceptance == everything.conditional_acceptance == [1.0] * 3
    assert everything.tokens_per_forward > 2  # stops and limits cut the last run of a request
    assert nothing.acceptance == [0.0] * 3
    assert nothing.tokens_per_forward == 1
    assert every_second.drafts_accepted[1:] == [0, 0]


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("prefill_tokens", [16_384, 5])
def test_drafts_come_from_caches_without_stale_entries(
    make_model: MakeModel, mixed_requests: MakeRequests, changes: dict[str, Any],
    prefill_tokens: int,
) -> None:  # fmt: skip
    """With few tokens a pass, prompts are read in pieces and rows catch up one by one."""
    model = make_model(seed=7, **changes)
    requests = mixed_requests(12, longest=30)
    for pattern in PATTERNS[2:]:
        engine = engine_for(model, 3, slots=4, prefill_tokens=prefill_tokens)
        check = Check(engine, model)
        force(engine, model, requests, pattern)
        engine.run(requests)
        assert check.count > 80


@settings(max_examples=10)
@given(st.data())
def test_drafts_are_right_after_any_number_of_plain_steps(
    model: MiMo, mixed_requests: MakeRequests, expected: Callable[..., list[int]],
    data: st.DataObject,
) -> None:  # fmt: skip
    """Arrivals, aborts, shared prefixes and holes; more or fewer drafts from step to step."""
    runs = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 14)), min_size=1, max_size=8)
    choices = [k for k, repeat in data.draw(runs) for _ in range(repeat)]
    hits = data.draw(st.lists(st.booleans(), min_size=1, max_size=6))
    requests = mixed_requests(9, seed=data.draw(st.integers(0, 3)), longest=34, stop_ids=())
    engine = scheduled(
        model, choices, slots=data.draw(st.integers(1, 5)),
        prefill_tokens=data.draw(st.sampled_from([1, 6, 50, 16_384])),
    )  # fmt: skip
    Check(engine, model)
    force(engine, model, requests, lambda n: hits[n % len(hits)])
    waiting, done = list(requests), {}
    while len(done) < len(requests):
        new = data.draw(st.integers(0 if engine.stats().active else 1, 3))
        engine.submit(waiting[:new])
        del waiting[:new]
        finished = engine.step()
        if data.draw(st.integers(0, 5)) == 0:
            finished += engine.abort([data.draw(st.integers(0, 8))])
        done.update((c.request_id, c) for c in finished)
    for request in requests:
        answer = done[request.id].token_ids.tolist()
        whole = expected(request)
        aborted = done[request.id].finish_reason == "aborted"
        assert answer == (whole[: len(answer)] if aborted else whole)


def test_rows_that_are_far_behind_catch_up_before_they_draft(
    model: MiMo, mixed_requests: MakeRequests
) -> None:
    requests = mixed_requests(6, longest=40, max_new_tokens=20, stop_ids=())
    for prefill_tokens in (3, 16_384):
        engine = scheduled(model, [0] * 12 + [3] * 3, prefill_tokens=prefill_tokens)
        check = Check(engine, model)
        engine.run(requests)
        assert check.count > 40
        assert engine._policy.spent > 0  # type: ignore[union-attr]


def test_drafts_after_new_weights_are_those_of_the_new_weights(
    make_model: MakeModel, mixed_requests: MakeRequests
) -> None:
    old, new = make_model(seed=1), make_model(seed=2)
    engine = engine_for(old, 3, slots=4, prefill_tokens=8)
    requests = mixed_requests(9, longest=30, max_new_tokens=12, stop_ids=())
    check = Check(engine, old)
    engine.submit(requests)
    while engine.stats().waiting > 3:
        engine.step()
    engine.update_weights(new)
    check.model, check.count = new, 0
    while engine.stats().active or engine.stats().waiting:
        engine.step()
    assert check.count > 50
    assert answers(engine, requests) == answers(engine_for(new, 0), requests)


def test_the_shortest_possible_lengths(model: MiMo) -> None:
    requests = [Request(i, [i], 1, temperature=i % 2, seed=i) for i in range(6)]
    plain = Engine(model, slots=4, max_length=2)
    fast = Engine(model, slots=4, max_length=2, drafts=3)
    assert answers(fast, requests) == answers(plain, requests)


def test_answers_that_fill_the_engine_to_the_last_token(
    model: MiMo, mixed_requests: MakeRequests
) -> None:
    requests = [
        Request(n, [n] * length, MAX_LENGTH - length, seed=n)
        for n, length in enumerate((1, 2, 9, 30, 60, 62, 63))
    ]
    plain = answers(engine_for(model, 0), requests)
    for prefill_tokens in (7, 16_384):
        engine = engine_for(model, 3, prefill_tokens=prefill_tokens)
        assert answers(engine, requests) == plain
        engine = scheduled(model, [3, 0, 0, 2, *[0] * 15], prefill_tokens=prefill_tokens)
        assert answers(engine, requests) == plain


@pytest.mark.parametrize("drafts", [-1, 4])
def test_more_drafts_than_layers_are_refused(model: MiMo, drafts: int) -> None:
    with pytest.raises(UserError, match=f"cannot draft {drafts} tokens a step"):
        engine_for(model, drafts)


@torch.inference_mode()
def sequence_probabilities(
    model: MiMo, prompt: Sequence[int], length: int, temperature: float
) -> NDArray[np.float64]:
    """Exact probability of every continuation of `length` tokens, [vocab ** length]."""
    vocab = model.config.vocab_size
    tails = torch.tensor(list(itertools.product(range(vocab), repeat=length)))
    ids = torch.cat([torch.tensor(prompt).expand(len(tails), -1), tails], dim=1)
    logits = model(ids)[:, len(prompt) - 1 : -1].double() / temperature
    picked = logits.log_softmax(-1).gather(2, tails[..., None])
    return picked.sum(dim=(1, 2)).exp().numpy()


@torch.inference_mode()
def sample_sequences(
    model: MiMo, prompts: Sequence[Sequence[int]], drafts: int, rounds: int, slots: int,
    temperature: float,
) -> tuple[NDArray[np.int64], float]:  # fmt: skip
    """Three tokens after each prompt, many times; returns [prompts, rounds * slots, 3].

    All rows begin anew together, which spares the engine's work for every single request. Also
    returns the share of steps that accepted a draft.
    """
    packed = PackedModel(model, 16, drafts)
    decoder = Decoder(packed, slots * len(prompts), 10, model.config.vocab_size, drafts, 16_384)
    rows = Rows(slots * len(prompts), 10, spare(drafts), model.config.vocab_size)
    queued = [
        QueuedRequest(Request(row, prompts[row // slots], 3, temperature))
        for row in range(slots * len(prompts))
    ]
    for row, q in enumerate(queued):
        rows.place(row, q)
    rows.start(queued)
    start = rows.known.copy()
    longest = int(start.max()) - 1
    at = np.tile(np.arange(longest), (rows.count, 1))
    every = np.arange(rows.count)
    decoder.prefill(slice(0, rows.count), rows.tokens[:, :longest], at)
    found, accepted, steps = [], 0, 0
    for number in range(rounds):
        rows.known[:] = start
        rows.seeds[:] = every + number * rows.count
        decoder.copy_rows(every, every, start - 1)
        while (rows.known < start + 3).any():
            emitted = decoder.decode(rows, drafts)
            first = rows.known == start
            accepted, steps = accepted + int((emitted.counts[first] > 1).sum()), steps + first.sum()
            rows.append(emitted)
        found.append(rows.tokens[every[:, None], start[:, None] + np.arange(3)])
    split = np.stack([tokens.reshape(len(prompts), slots, 3) for tokens in found], axis=1)
    return split.reshape(len(prompts), -1, 3), accepted / steps


@pytest.mark.slow
@pytest.mark.parametrize("drafts", [1, 3])
def test_the_sampled_distribution_is_exact(make_model: MakeModel, drafts: int) -> None:
    """All sequences of three tokens; two prompts in a batch, so acceptance differs in it."""
    model = make_model(
        seed=11, vocab_size=3, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.25,
    )  # fmt: skip
    prompts, temperature, samples = ([1, 2, 0, 2], [2]), 1.3, 80_000
    sequences, accepted = sample_sequences(
        model, prompts, drafts, rounds=40, slots=samples // 40, temperature=temperature
    )
    assert 0.1 < accepted < 0.95  # both branches are exercised
    exact = np.stack([sequence_probabilities(model, prompt, 3, temperature) for prompt in prompts])
    seen = np.stack([np.bincount(tokens @ [9, 3, 1], minlength=27) for tokens in sequences])
    assert (0.5 * np.abs(seen / samples - exact).sum(axis=1)).max() < 0.01

    def chi_square(of: NDArray[np.float64]) -> float:
        return float(((seen - samples * of) ** 2 / (samples * of)).sum())

    limit = 52 + 4 * np.sqrt(2 * 52)
    assert chi_square(exact) < limit
    # If a percent of the mass were in the wrong places, however spread, it would be seen.
    ends_in_1, begins_with_0 = np.arange(27) % 3 == 1, np.arange(27) < 9
    for part in (ends_in_1, begins_with_0, np.arange(27) % 2 == 0):
        mass = exact[:, part].sum(axis=1, keepdims=True)
        assert chi_square(exact * np.where(part, 1 + 0.01 / mass, 1 - 0.01 / (1 - mass))) > limit


def test_a_batch_samples_what_each_row_samples_alone(
    model: MiMo, mixed_requests: MakeRequests
) -> None:
    requests = mixed_requests(16, temperature=1.0)
    for drafts in (1, 3):
        together = answers(engine_for(model, drafts, slots=16), requests)
        assert answers(engine_for(model, drafts, slots=1), requests) == together


def test_ids_that_are_never_drafted_are_generated_all_the_same(
    model: MiMo, mixed_requests: MakeRequests
) -> None:
    requests = mixed_requests(20)
    plain = engine_for(model, drafts=0).run(requests)
    engine = engine_for(model, drafts=3, draft_vocab=10)
    fast = engine.run(requests)
    assert [c.token_ids.tolist() for c in fast] == [c.token_ids.tolist() for c in plain]
    assert max(c.token_ids.max() for c in fast) >= 10
    assert sum(engine.stats().drafts_accepted) > 0
