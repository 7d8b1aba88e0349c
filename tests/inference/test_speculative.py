import itertools

import numpy as np
import pytest
import torch

from openmimo.errors import UserError
from openmimo.inference.engine import Engine, PlainDecoder
from openmimo.inference.protocol import Request
from openmimo.inference.sampling import Settings
from openmimo.inference.speculative import SpeculativeDecoder, accept_drafts


def engine_for(decoder, slots=6, max_length=40, **options):
    return Engine(decoder, slots=slots, max_length=max_length, **options)


def requests_for(count, temperature=0.0, seed=0, vocab=61, top_p=1.0):
    rng = np.random.default_rng(seed)
    return [
        Request(
            id=i,
            prompt_ids=rng.integers(0, vocab, size=rng.integers(1, 14)).tolist(),
            max_new_tokens=int(rng.integers(1, 25)),
            temperature=temperature,
            top_p=top_p,
            seed=i,
            stop_ids=(3, 4) if i % 3 == 0 else (),
        )
        for i in range(count)
    ]


def answers(engine, requests):
    return [(c.token_ids.tolist(), c.finish_reason) for c in engine.run(requests)]


class Oracle(SpeculativeDecoder):
    """Drafts known continuations, right (all accepted) or wrong (none) at given positions."""

    def __init__(self, model, drafts, answer_of, right):
        super().__init__(model, drafts)
        self.answer_of, self.right = answer_of, right

    def draft(self, rows, longest):
        _, q = super().draft(rows, longest)
        drafted = torch.zeros(q.shape[:2], dtype=torch.int64)
        for row, queued in enumerate(rows.queued):
            done = int(rows.known[row]) - len(queued.prompt)
            for i in range(self.drafts):
                answer = self.answer_of[queued.request.id]
                token = answer[done + i] if done + i < len(answer) else 0
                drafted[row, i] = token if self.right(done + i) else (token + 1) % q.shape[-1]
        return drafted, torch.zeros_like(q).scatter_(-1, drafted[..., None], 1.0)


def answers_without_end(model, requests):
    """Greedy continuations that run past stop tokens and limits, for an oracle to draft from."""
    long = [Request(r.id, r.prompt_ids, 40 - len(r.prompt_ids), temperature=0.0) for r in requests]
    completions = engine_for(PlainDecoder(model)).run(long)
    return {c.request_id: c.token_ids.tolist() for c in completions}


@pytest.mark.parametrize("drafts", [1, 2, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mtp_hidden": "post_norm"},
        {"mtp_mask_first": True},
        {"num_key_value_heads": 4, "num_hidden_layers": 1},
    ],
)
def test_greedy_output_is_the_same_with_and_without_drafts(make_model, drafts, changes):
    model = make_model(seed=drafts, **changes)
    requests = requests_for(40, seed=drafts)
    plain = answers(engine_for(PlainDecoder(model)), requests)
    assert answers(engine_for(SpeculativeDecoder(model, drafts)), requests) == plain


def test_forced_patterns_of_acceptance_change_nothing_but_the_speed(model):
    requests = requests_for(20)
    expected = answers(engine_for(PlainDecoder(model)), requests)
    answer_of = answers_without_end(model, requests)
    patterns = [lambda t: True, lambda t: False, lambda t: t % 2 == 0, lambda t: t % 5 < 3]
    speeds = []
    for right in patterns:
        for slots in (1, 6):
            engine = engine_for(Oracle(model, 3, answer_of, right), slots)
            assert answers(engine, requests) == expected
        speeds.append(engine.stats())
    for stats in speeds:
        assert stats.drafts_reached[0] == stats.drafts_offered[0]
        for draft in (1, 2):  # reached: the one before was accepted, and the answer goes on
            assert stats.drafts_reached[draft] <= stats.drafts_accepted[draft - 1]
            assert stats.drafts_accepted[draft] <= stats.drafts_reached[draft]
            assert stats.drafts_offered[draft] <= stats.drafts_offered[draft - 1]
    everything, nothing = speeds[0], speeds[1]
    assert min(everything.acceptance[0], everything.conditional_acceptance[1]) > 0.8
    assert nothing.acceptance == [0.0, 0.0, 0.0]
    assert nothing.tokens_per_forward == 1
    assert everything.tokens_per_forward > 2.2  # stops and limits cut the last run of a request


class Checked(Oracle):
    """Compares every greedy draft with the MTP layers run without any cache."""

    checks = 0

    def draft(self, rows, longest):
        known = rows.known.tolist()
        own, _ = SpeculativeDecoder.draft(self, rows, longest)
        for row in range(rows.count):
            n = known[row] - 1
            if n == 0:
                continue  # nothing to draft from: anything will do
            ids = torch.cat([rows.tokens[row, : n + 1], own[row]])[None]
            positions = torch.arange(n)[None]
            hidden = self.model.hidden(ids[:, :n], positions)
            for layer in range(self.drafts):
                shifted = ids[:, 1 + layer : 1 + layer + n]
                out = self.model.mtp_draft(layer, hidden, shifted, positions)
                logits = self.model.lm_head(out[0, -1])
                # What was drafted is the best token; a tie may go either way.
                assert logits[own[row, layer]] > logits.max() - 1e-4
                self.checks += 1
        return super().draft(rows, longest)


@pytest.mark.parametrize("changes", [{}, {"mtp_hidden": "post_norm"}, {"mtp_mask_first": True}])
def test_drafts_come_from_a_cache_without_stale_entries(make_model, changes):
    model = make_model(seed=7, **changes)
    requests = requests_for(12)
    answer_of = answers_without_end(model, requests)
    for pattern in (lambda t: t % 7 != 0, lambda t: True, lambda t: t % 2 == 0):
        decoder = Checked(model, 3, answer_of, pattern)
        engine_for(decoder, slots=4).run(requests)
        assert decoder.checks > 100


def test_good_drafts_are_found_because_state_is_kept_right(make_model):
    """A model that continues x with x+1 for ever: trunk by its embedding, MTP layers by theirs."""
    vocab = 12
    model = make_model(vocab_size=vocab, hidden_size=16, num_hidden_layers=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()  # every block becomes the identity
        model.model.embed_tokens.weight.zero_()
        model.model.embed_tokens.weight[:, :vocab] = 4 * torch.eye(vocab)
        model.lm_head.weight.zero_()
        model.lm_head.weight[:, :vocab] = 4 * torch.roll(torch.eye(vocab), 1, dims=0)
        for layer in model.mtp_layers:
            layer.input_proj.weight.zero_()
            layer.input_proj.weight[:, 16:] = torch.eye(16)  # pass the token half through
    requests = [Request(i, [i, i + 1], 30, temperature=0.0) for i in range(4)]
    engine = engine_for(SpeculativeDecoder(model, 3))
    for request, completion in zip(requests, engine.run(requests), strict=True):
        first = request.prompt_ids[-1] + 1
        assert completion.token_ids.tolist() == [(first + j) % vocab for j in range(30)]
    assert engine.stats().steps == 8  # 30 tokens, 4 a step
    assert engine.stats().acceptance == engine.stats().conditional_acceptance == [1.0, 1.0, 1.0]
    # The last step has room for two: its third draft is no part of the answer.
    assert engine.stats().drafts_offered == engine.stats().drafts_accepted == [32, 32, 28]
    drafted = sum(engine.stats().drafts_accepted)
    assert drafted + 4 * 7 == engine.stats().generated_tokens, "the rest came from the trunk"


@torch.inference_mode()
def sequence_probabilities(model, prompt, length, temperature):
    """Exact probability of every continuation of `length` tokens."""
    vocab = model.config.vocab_size
    table = np.zeros([vocab] * length)
    for tail in itertools.product(range(vocab), repeat=length):
        ids = torch.tensor([[*prompt, *tail]])
        log_probs = (model(ids)[0, len(prompt) - 1 : -1].double() / temperature).log_softmax(-1)
        table[tail] = log_probs.gather(1, torch.tensor(tail)[:, None]).sum().exp()
    return table


@pytest.mark.parametrize("drafts", [1, 2, 3])
def test_sampled_distribution_is_exact(make_model, drafts):
    """Three tokens, exhaustively; a batch of two prompts, so acceptance differs between rows."""
    model = make_model(seed=11, vocab_size=6, initializer_range=0.25)
    samples, prompts, temperature = 10_000, ([1, 2, 0, 5], [3]), 1.3
    requests = [
        Request(f"{p}/{i}", prompt, 3, temperature=temperature, seed=2 * i + p)
        for i in range(samples)
        for p, prompt in enumerate(prompts)
    ]
    engine = engine_for(SpeculativeDecoder(model, drafts), slots=2000, max_length=8)
    seen = np.zeros((2, 6, 6, 6))
    for request, completion in zip(requests, engine.run(requests), strict=True):
        seen[(int(request.id[0]), *completion.token_ids.tolist())] += 1 / samples
    accepted = engine.stats().acceptance
    assert 0.1 < accepted[0] < 0.95  # both branches are exercised
    for p, prompt in enumerate(prompts):
        exact = sequence_probabilities(model, prompt, 3, temperature)
        distance = 0.5 * np.abs(seen[p] - exact).sum()
        # The expected distance of an exact sampler, and some room.
        noise = 0.5 * np.sqrt(2 * exact * (1 - exact) / (np.pi * samples)).sum()
        assert distance < 1.25 * noise


def test_top_p_never_lets_an_excluded_token_through(make_model):
    model = make_model(seed=5, vocab_size=8)
    requests = requests_for(300, temperature=1.5, top_p=0.6, vocab=8)
    plain = engine_for(PlainDecoder(model), slots=300).run(requests)
    fast = engine_for(SpeculativeDecoder(model, 3), slots=300).run(requests)
    for completions in (plain, fast):
        for request, c in zip(requests, completions, strict=True):
            ids = torch.tensor([[*request.prompt_ids, *c.token_ids.tolist()]])
            with torch.inference_mode():
                p = (model(ids)[0, len(request.prompt_ids) - 1 : -1] / 1.5).softmax(-1)
            chosen = p.gather(1, ids[0, len(request.prompt_ids) :, None])
            mass_above = (p * (p > chosen)).sum(-1)
            assert mass_above.max() < 0.6
            np.testing.assert_allclose(c.log_probs, chosen[:, 0].log(), atol=1e-4)
    first = [np.bincount([c.token_ids[0] for c in cs], minlength=8) for cs in (plain, fast)]
    assert 0.5 * np.abs(first[0] - first[1]).sum() / 300 < 0.15


@pytest.mark.parametrize("drafts", [1, 3])
def test_a_batch_samples_what_each_row_samples_alone(model, drafts):
    requests = requests_for(16, temperature=1.0, top_p=0.9)
    together = answers(engine_for(SpeculativeDecoder(model, drafts), slots=16), requests)
    alone = answers(engine_for(SpeculativeDecoder(model, drafts), slots=1), requests)
    assert together == alone


def test_rejection_sampling_reproduces_any_target_from_any_draft():
    rows, k, vocab = 60_000, 2, 4
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(k + 1, vocab, generator=generator).softmax(-1)
    draft = torch.rand(k, vocab, generator=generator).mul(3).softmax(-1)
    drafted = torch.multinomial(draft, rows, replacement=True, generator=generator).T
    settings = Settings(torch.ones(rows), torch.ones(rows), torch.arange(rows))
    tokens, accepted = accept_drafts(
        target.expand(rows, -1, -1), draft.expand(rows, -1, -1), drafted, settings,
        torch.full((rows,), 7),
    )  # fmt: skip
    count = accepted.sum(1)
    for j in range(k + 1):
        seen = np.bincount(tokens[count >= j, j].numpy(), minlength=vocab)
        distance = 0.5 * np.abs(seen / seen.sum() - target[j].numpy()).sum()
        assert distance < 0.015
    overlap = torch.minimum(target[:k], draft).sum(-1)
    assert accepted[:, 0].double().mean() == pytest.approx(overlap[0].item(), abs=0.01)


def test_identical_distributions_are_always_accepted():
    p = torch.full((500, 3, 5), 0.2)
    drafted = torch.randint(0, 5, (500, 2), generator=torch.Generator().manual_seed(0))
    settings = Settings(torch.ones(500), torch.ones(500), torch.arange(500))
    tokens, accepted = accept_drafts(p, p[:, :2], drafted, settings, torch.zeros(500).long())
    assert accepted.all()
    assert torch.equal(tokens[:, :2], drafted)


def test_new_weights_and_shared_prompts(make_model):
    old, new = make_model(seed=1), make_model(seed=2)
    requests = [Request(i, [5, 6, 7][: 1 + i % 3], 20, temperature=0.0) for i in range(9)]
    engine = engine_for(SpeculativeDecoder(old, 3), slots=4)
    engine.submit(requests[:2])
    engine.step()
    engine.abort([0, 1])
    engine.update_weights(new)
    assert answers(engine, requests) == answers(engine_for(PlainDecoder(new)), requests)


def test_the_shortest_possible_lengths(model):
    requests = [Request(i, [i], 1, temperature=0.0) for i in range(5)]
    engine = engine_for(SpeculativeDecoder(model, 3), max_length=2)
    assert answers(engine, requests) == answers(engine_for(PlainDecoder(model)), requests)


@pytest.mark.parametrize("drafts", [0, 4])
def test_more_drafts_than_layers_are_refused(model, drafts):
    with pytest.raises(UserError, match=f"cannot draft {drafts} tokens a step"):
        SpeculativeDecoder(model, drafts)
