"""Realised shares stay as close to the weights as whole documents allow."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.data.mixture import MixtureOrder
from openmimo.errors import UserError

WEIGHTS = st.dictionaries(
    st.sampled_from("abcdef"), st.integers(0, 100).map(lambda w: w / 100), min_size=1
).filter(lambda weights: any(weights.values()))


@given(WEIGHTS, st.integers(1, 50), st.randoms(use_true_random=False))
def test_shares_hold_at_every_step(weights: dict, longest: int, rng: random.Random) -> None:
    order = MixtureOrder(weights)
    whole = sum(weights.values())
    sources = sum(weight > 0 for weight in weights.values())
    tokens: dict[str, int] = {}
    for _ in range(200):
        source = order.next_source(tokens)
        assert weights[source] > 0
        tokens[source] = tokens.get(source, 0) + rng.randint(1, longest)
        total = sum(tokens.values())
        for name, weight in weights.items():
            over = tokens.get(name, 0) - weight / whole * total
            assert -(sources - 1) * longest - 1e-6 <= over <= longest + 1e-6


def test_the_mimo_mixture_is_met_within_one_document() -> None:
    weights = {"general": 0.27, "math": 0.35, "code": 0.28, "synthetic": 0.1}
    order, rng = MixtureOrder(weights), random.Random(0)
    tokens = dict.fromkeys(weights, 0)
    for _ in range(5000):
        tokens[order.next_source(tokens)] += rng.randint(50, 2000)
        total = sum(tokens.values())
        assert all(abs(tokens[s] - w * total) <= 2000 for s, w in weights.items())
    assert all(tokens[s] / total == pytest.approx(w, abs=0.001) for s, w in weights.items())


def test_the_order_is_exact_far_out() -> None:
    """Beyond 2**53 tokens, where floats would no longer see a document."""
    order = MixtureOrder({"a": 0.1, "b": 0.9})
    tokens = {"a": 10**18, "b": 9 * 10**18}
    assert order.next_source(tokens) == "a"
    tokens["a"] += 1
    assert order.next_source(tokens) == "b"


@pytest.mark.parametrize(
    "weights", [{}, {"a": 0.0}, {"a": -1.0}, {"a": float("nan")}, {"a": float("inf")}]
)
def test_bad_weights_are_refused(weights: dict) -> None:
    with pytest.raises(UserError):
        MixtureOrder(weights)


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(UserError, match="no weight for 'math'; it has code"):
        MixtureOrder({"code": 1}).next_source({"math": 3})
