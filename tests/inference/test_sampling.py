import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openmimo.inference.sampling import (
    ACCEPT,
    DRAFT,
    SAMPLE,
    Settings,
    nucleus,
    pick,
    sample,
    sample_seed,
    sampled_from,
    tempered,
    uniforms,
)

LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0, 0.0, 1.5, 0.2])


def settings(rows: int, temperature: float = 1.0, top_p: float = 1.0, seed: int = 0) -> Settings:
    """Rows with consecutive seeds."""
    return Settings(
        torch.full((rows,), temperature), torch.full((rows,), top_p), torch.arange(rows) + seed
    )


def splitmix64(x: int) -> int:
    """The finaliser in Python's unbounded integers, from the paper."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**20), st.sampled_from([0, 1, 2]))
def test_uniforms_equal_the_hash_in_unbounded_integers(seed, position, stream):
    gamma = 0x9E3779B97F4A7C15
    x = splitmix64((seed + gamma) % 2**64)
    x = splitmix64((x + position * gamma) % 2**64)
    x = splitmix64((x + (stream + 1) * gamma) % 2**64)
    got = uniforms(torch.tensor([seed]), torch.tensor([position]), stream)
    assert got.item() == (x >> 11) * 2.0**-53


def test_uniforms_are_uniform_and_uncorrelated_over_seeds_positions_and_streams():
    seeds, positions = torch.arange(400)[:, None], torch.arange(400)[None]
    u = torch.stack([uniforms(seeds, positions, s) for s in (SAMPLE, DRAFT, ACCEPT)]).numpy()
    assert u.min() >= 0
    assert u.max() < 1
    counts = np.histogram(u, bins=50, range=(0, 1))[0]
    expected = u.size / 50
    assert ((counts - expected) ** 2 / expected).sum() < 100  # chi-square, 49 degrees of freedom
    centred = u - 0.5
    for a, b in [
        (centred[:, 1:], centred[:, :-1]),
        (centred[:, :, 1:], centred[:, :, :-1]),
        (centred[1:], centred[:-1]),
    ]:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.01
    assert np.unique(u).size == u.size


def test_a_row_does_not_depend_on_its_batch():
    logits = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    mixed = Settings(
        torch.tensor([0.0, 1.0, 0.7, 1.3, 1.0, 0.0]),
        torch.tensor([1.0, 1.0, 0.5, 0.9, 0.1, 0.4]),
        torch.arange(6) * 7,
    )
    positions = torch.arange(6) + 3
    tokens, log_probs = sample(logits, mixed, positions)
    for row in range(6):
        one = slice(row, row + 1)
        alone = Settings(mixed.temperature[one], mixed.top_p[one], mixed.seeds[one])
        token, log_prob = sample(logits[one], alone, positions[one])
        assert token.item() == tokens[row].item()
        assert log_prob.item() == pytest.approx(log_probs[row].item(), abs=1e-6)


def test_greedy_is_argmax_and_reports_log_probs_at_temperature_one():
    tokens, log_probs = sample(LOGITS.expand(5, 8), settings(5, temperature=0.0), torch.arange(5))
    assert tokens.tolist() == [0] * 5
    assert log_probs[0].item() == pytest.approx(LOGITS.log_softmax(0)[0].item(), abs=1e-6)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 0.95), (1.7, 0.5)])
def test_frequencies_follow_the_distribution(temperature, top_p):
    rows = 40_000
    tokens, log_probs = sample(
        LOGITS.expand(rows, 8), settings(rows, temperature, top_p), torch.full((rows,), 9)
    )
    # Independent of the module: nucleus by hand in numpy.
    p = np.exp(LOGITS.double().numpy() / temperature)
    p /= p.sum()
    order = np.argsort(-p)
    kept = order[: int(np.searchsorted(p[order].cumsum(), top_p)) + 1]
    expected = np.zeros(8)
    expected[kept] = p[kept] / p[kept].sum()
    seen = np.bincount(tokens.numpy(), minlength=8) / rows
    assert 0.5 * np.abs(seen - expected).sum() < 0.01
    assert set(np.flatnonzero(seen)) <= set(kept)
    np.testing.assert_allclose(log_probs.numpy(), np.log(p[tokens.numpy()]), atol=1e-5)


def test_plain_settings_change_nothing():
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(1))
    positions = torch.arange(50)
    plain = Settings(torch.ones(50), torch.ones(50), torch.arange(50), plain=True)
    for a, b in zip(
        sample(logits, plain, positions), sample(logits, settings(50), positions), strict=True
    ):
        assert torch.equal(a, b)


def test_nucleus_keeps_the_top_token_even_below_its_mass_and_breaks_ties_by_index():
    p = torch.tensor([[0.1, 0.4, 0.4, 0.1]])
    assert nucleus(p, torch.tensor([[0.01]])).tolist() == [[0.0, 1.0, 0.0, 0.0]]
    assert nucleus(p, torch.tensor([[0.5]])).tolist() == [[0.0, 0.5, 0.5, 0.0]]


def test_distributions_keep_extra_dimensions():
    logits = torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(2))
    mixed = Settings(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 0.8, 1.0]), torch.arange(3))
    together = sampled_from(tempered(logits, mixed), mixed)
    for row in range(3):
        for column in range(4):
            one = slice(row, row + 1)
            alone = Settings(mixed.temperature[one], mixed.top_p[one], mixed.seeds[one])
            single = sampled_from(tempered(logits[one, column], alone), alone)
            torch.testing.assert_close(together[row, column], single[0])


@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=12).filter(lambda w: sum(w) > 0),
    st.floats(0, 1, exclude_max=True),
)
def test_pick_never_draws_a_weight_of_zero(weights, uniform):
    index = int(pick(torch.tensor([weights]), torch.tensor([uniform], dtype=torch.float64)))
    assert weights[index] > 0


def test_pick_at_the_edges():
    weights = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    almost_one = 1 - 2.0**-53
    for uniform, index in [(0.0, 1), (0.4999, 1), (0.5, 2), (almost_one, 2)]:
        assert pick(weights, torch.tensor([uniform], dtype=torch.float64)).item() == index


def test_sample_seeds_are_fixed_and_apart() -> None:
    seeds = {sample_seed(0, draw, n) for draw in range(50) for n in range(8)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**62 for seed in seeds)
    assert sample_seed(1, 23) != sample_seed(12, 3)
    # Recorded: a run must resume with the same samples on any machine and version.
    assert sample_seed(0, 1, 2) == 1831018602496094148
