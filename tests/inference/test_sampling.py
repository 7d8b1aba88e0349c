"""Draws are a pure function of their arguments and follow the distribution that was asked for."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from openmimo.inference.protocol import Request
from openmimo.inference.sampling import (
    BLOCK,
    CANDIDATES,
    Settings,
    draw,
    kept_tokens,
    log_probabilities,
    pick,
    sample_seed,
    uniforms,
)

LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0, 0.0, 1.5, 0.2])
MANY = 2000
"""A vocabulary of which far more than CANDIDATES tokens may be kept."""


def settings_of(vocab: int, *changes: dict[str, Any]) -> Settings:
    return Settings.of([Request(i, [0], 1, **change) for i, change in enumerate(changes)], vocab)


def sample(
    logits: Tensor, settings: Settings, uniform: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    tokens, log_probs = draw(
        log_probabilities(logits, settings), settings, torch.from_numpy(uniform)
    )
    return tokens.numpy(), log_probs.numpy()


def expected_distribution(
    logits: Tensor,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
) -> NDArray[np.float64]:
    """Written anew in numpy, a token at a time."""
    logits = logits.double().numpy()
    if temperature == 0:
        return np.eye(len(logits))[logits.argmax()]
    p = np.exp(logits / temperature)
    p /= p.sum()
    kept, mass = np.zeros(len(p), bool), 0.0
    for rank, token in enumerate(np.argsort(-p, kind="stable")):
        if rank and (mass >= top_p or (top_k and rank >= top_k) or p[token] < min_p * p.max()):
            break
        kept[token] = True
        mass += p[token]
    return np.where(kept, p, 0) / p[kept].sum()


def splitmix64(x: int) -> int:
    """The finaliser in Python's unbounded integers, from the paper."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**20))
def test_uniforms_equal_the_hash_in_unbounded_integers(seed: int, position: int) -> None:
    gamma = 0x9E3779B97F4A7C15
    x = splitmix64((seed + gamma) % 2**64)
    x = splitmix64((x + position * gamma) % 2**64)
    x = splitmix64((x + gamma) % 2**64)
    [got] = uniforms(np.array([seed], np.uint64), np.array([position]))
    assert got == (x >> 11) * 2.0**-53


def test_uniforms_are_uniform_and_uncorrelated_over_seeds_and_positions() -> None:
    u = uniforms(np.arange(700, dtype=np.uint64)[:, None], np.arange(700)[None])
    assert 0 <= u.min() < u.max() < 1
    counts = np.histogram(u, bins=50, range=(0, 1))[0]
    expected = u.size / 50
    assert ((counts - expected) ** 2 / expected).sum() < 100  # chi-square, 49 degrees of freedom
    centred = u - 0.5
    for a, b in (
        (centred[:, 1:], centred[:, :-1]),
        (centred[1:], centred[:-1]),
        (centred[1:, 1:], centred[:-1, :-1]),
        (centred, centred.T),
    ):
        off_diagonal = ~np.eye(*a.shape, dtype=bool) if b is centred.T else np.ones(a.shape, bool)
        assert abs(np.corrcoef(a[off_diagonal], b[off_diagonal])[0, 1]) < 0.01
    assert np.unique(u).size == u.size


MIXED = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.5},
    {"temperature": 1.3, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 1.0, "top_k": 3},
    {"temperature": 0.0, "top_p": 0.4, "top_k": 2},
    {"temperature": 2.0, "min_p": 0.3},
    {"temperature": 0.5},
]


@pytest.mark.parametrize("vocab", [8, MANY])
def test_a_row_does_not_depend_on_its_batch(vocab: int) -> None:
    """With the large vocabulary some rows keep more tokens than are looked at first."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(len(MIXED), 5, vocab, generator=generator)
    uniform = uniforms(np.arange(len(MIXED), dtype=np.uint64)[:, None] * 7, np.arange(5) + 3)
    tokens, log_probs = sample(logits, settings_of(vocab, *MIXED), uniform)
    for row, change in enumerate(MIXED):
        for step in range(5):
            one = logits[row : row + 1, step : step + 1]
            alone = sample(one, settings_of(vocab, change), uniform[row : row + 1, step : step + 1])
            assert alone[0].item() == tokens[row, step]
            assert alone[1].item() == pytest.approx(log_probs[row, step], abs=1e-6)


def test_greedy_is_argmax_and_reports_log_probs_at_temperature_one() -> None:
    settings = settings_of(8, {"temperature": 0.0}, {"temperature": 0.0, "top_p": 0.1})
    tokens, log_probs = sample(LOGITS.roll(3).expand(2, 4, 8), settings, np.zeros((2, 4)))
    assert tokens.tolist() == [[3] * 4] * 2
    np.testing.assert_allclose(log_probs, LOGITS.log_softmax(0)[0].item(), atol=1e-6)


def test_log_probabilities_are_those_of_each_rows_temperature() -> None:
    logits = torch.randn(3, 2, 9, generator=torch.Generator().manual_seed(0))
    temperatures = [0.0, 0.6, 1.0]
    settings = settings_of(9, *({"temperature": t, "top_p": 0.3} for t in temperatures))
    got = log_probabilities(logits, settings)
    for row, temperature in enumerate((1.0, 0.6, 1.0)):
        expected = (logits[row].double() / temperature).log_softmax(-1)
        torch.testing.assert_close(got[row].double(), expected, rtol=0, atol=1e-6)
    unscaled = settings_of(9, {"temperature": 0.0}, {"temperature": 1.0})
    narrow = logits[:2].bfloat16()
    got = log_probabilities(narrow, unscaled)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, narrow.float().log_softmax(-1), rtol=0, atol=1e-6)


CUTS = [
    {},
    {"temperature": 0.6, "top_p": 0.95},
    {"temperature": 1.7, "top_p": 0.5},
    {"top_k": 3},
    {"top_k": 1},
    {"top_k": 100},
    {"min_p": 0.2},
    {"min_p": 0.99},
    {"top_p": 1e-6},
    {"top_p": 1e-60},  # 0 as a float32
    {"temperature": 1.5, "top_p": 0.8, "top_k": 5, "min_p": 0.1},
    {"temperature": 3.0, "top_p": 0.9, "top_k": 2, "min_p": 0.01},
]


@pytest.mark.parametrize("changes", [*([change] for change in CUTS), [*CUTS, {"temperature": 0.0}]])
def test_frequencies_follow_the_distribution_to_less_than_one_percent(
    changes: list[dict[str, Any]],
) -> None:
    steps, rows = 200_000, len(changes)
    uniform = uniforms(np.arange(rows, dtype=np.uint64)[:, None], np.arange(steps))
    tokens, log_probs = sample(LOGITS.expand(rows, steps, 8), settings_of(8, *changes), uniform)
    for row, change in enumerate(changes):
        exact = expected_distribution(LOGITS, **change)
        seen = np.bincount(tokens[row], minlength=8) / steps
        kept = exact > 0
        assert not seen[~kept].any()
        assert 0.5 * np.abs(seen - exact).sum() < 0.005

        def chi_square(of: NDArray[np.float64]) -> float:
            return float((steps * (seen - of)[kept] ** 2 / of[kept]).sum())  # noqa: B023

        assert chi_square(exact) < 30  # at most 7 degrees of freedom: once in 10,000
        if kept.sum() > 1:  # a percent too much for one token would have been seen
            first, second = np.argsort(-exact)[:2]
            exact[first] -= 0.01
            exact[second] += 0.01
            assert chi_square(exact) > 60
        temperature = change.get("temperature", 1.0) or 1.0
        tempered = (LOGITS.double() / temperature).log_softmax(0).numpy()
        np.testing.assert_allclose(log_probs[row], tempered[tokens[row]], atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"top_p": 0.02},
        {"top_p": 0.5},
        {"top_p": 0.999},
        {"top_k": CANDIDATES - 1},
        {"top_k": CANDIDATES},
        {"top_k": CANDIDATES + 1},
        {"top_k": 700, "top_p": 0.3},
        {"min_p": 0.9},
        {"min_p": 0.5, "top_k": 1900},
        {"temperature": 0.1, "top_p": 0.9},
    ],
)
def test_flat_distributions_are_cut_exactly(change: dict[str, Any]) -> None:
    """Evenly spaced numbers hit each token as often as its probability says, give or take one."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.linspace(0, 1.5, MANY)[torch.randperm(MANY, generator=generator)]
    steps = 2 * MANY
    # The second row is cut as well, but to few tokens.
    settings = settings_of(MANY, change, {"top_k": 5})
    uniform = (np.arange(steps) + 0.5) / steps
    tokens, _ = sample(logits.expand(2, steps, MANY), settings, np.stack([uniform, uniform]))
    for row, each in enumerate((change, {"top_k": 5})):
        exact = expected_distribution(logits, **each)
        seen = np.bincount(tokens[row], minlength=MANY)
        # Where the mass reaches top_p, float32 may decide otherwise about the last token.
        assert (seen[exact == 0] > 0).sum() <= (1 if "top_p" in each else 0)
        assert np.abs(seen - steps * exact).max() <= 2


def test_limits_apply_to_the_whole_distribution_and_the_likeliest_token_always_stays() -> None:
    p = torch.tensor([0.4, 0.4, 0.1, 0.1])
    none = {"top_p": 1.0, "top_k": 4, "min_p": 0.0}

    def kept(**limits: float) -> list[bool]:
        return kept_tokens(p, *(torch.tensor([(none | limits)[name]]) for name in none)).tolist()

    assert kept() == [True] * 4
    assert kept(top_p=0.01) == [True, False, False, False]
    assert kept(top_p=0.4) == [True, False, False, False]
    assert kept(top_p=0.5) == [True, True, False, False]
    assert kept(top_k=3) == [True, True, True, False]
    assert kept(min_p=0.25) == [True] * 4
    assert kept(min_p=0.26) == [True, True, False, False]
    # 0.5 of the whole distribution, not of what top_k leaves: that would be the first token alone.
    assert kept(top_p=0.5, top_k=2) == [True, True, False, False]


def test_a_limit_that_takes_nothing_away_draws_as_without() -> None:
    logits = torch.randn(1, 300, 30, generator=torch.Generator().manual_seed(1))
    uniform = uniforms(np.zeros((1, 1), np.uint64), np.arange(300)[None])
    plain = sample(logits, settings_of(30, {}), uniform)
    for change in ({"top_k": 30}, {"top_k": 31}, {"top_p": 1.0, "min_p": 0.0}):
        same = sample(logits, settings_of(30, change), uniform)
        assert np.array_equal(plain[0], same[0])


WEIGHT = st.one_of(st.just(0.0), st.floats(2.0**-100, 1, width=32))


@given(st.lists(WEIGHT, min_size=1, max_size=12).filter(any), st.floats(0, 1, exclude_max=True))
def test_pick_never_draws_a_weight_of_zero(weights: list[float], uniform: float) -> None:
    index = int(pick(torch.tensor([weights]), torch.tensor([uniform], dtype=torch.float64)))
    assert weights[index] > 0


@given(
    st.dictionaries(st.integers(0, BLOCK + 903), WEIGHT, min_size=1).filter(
        lambda weights: any(weights.values())
    ),
    st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 0.5, 1 - 2.0**-53])),
)
def test_pick_among_many_never_draws_a_weight_of_zero(
    places: dict[int, float], uniform: float
) -> None:
    weights = torch.zeros(1, BLOCK + 904)
    weights[0, list(places)] = torch.tensor(list(places.values()))
    index = int(pick(weights, torch.tensor([uniform], dtype=torch.float64)))
    assert weights[0, index] > 0


@pytest.mark.parametrize("size", [1, 50, BLOCK, BLOCK + 1, 20_000])
def test_pick_among_many_is_a_search_in_the_cumulative_sum(size: int) -> None:
    # Integers: their float64 sums are exact in any order. Half of them, and a whole stretch, are 0.
    rng = np.random.default_rng(0)
    weights = rng.integers(1, 1000, size) * (rng.random(size) < 0.5)
    weights[size // 3 : size // 2] = 0
    weights[size // 2] = 7
    uniform = rng.random(1000)
    cumulative = weights.cumsum()
    expected = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    row = torch.from_numpy(weights).float()
    for part in range(0, 1000, 500):  # rows and steps, as in a decode step
        some = torch.from_numpy(uniform[part : part + 500]).view(100, 5)
        got = pick(row.expand(100, 5, size), some)
        assert np.array_equal(got.flatten().numpy(), expected[part : part + 500])


def test_pick_on_the_very_boundaries_draws_no_weight_of_zero() -> None:
    """There rounding decides, of the sums as of the place in a block."""
    rng = np.random.default_rng(0)
    weights = rng.random(BLOCK + 904, np.float32) * (rng.random(BLOCK + 904) < 0.3)
    cumulative = weights.cumsum(dtype=np.float64)
    at = np.unique(cumulative)[:-1] / cumulative[-1]
    at = at[rng.integers(0, len(at), 600)]
    around = np.stack([at, np.nextafter(at, 0), np.nextafter(at, 1), at - 1e-15, at + 1e-15])
    row = torch.from_numpy(weights).expand(600, -1)
    for uniform in around:
        drawn = pick(row, torch.from_numpy(uniform)).numpy()
        assert (weights[drawn] > 0).all()


def test_pick_at_the_edges() -> None:
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
