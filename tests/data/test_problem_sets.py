"""Which problems a run uses for what."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.config.schema import DataConfig
from openmimo.data import problem_sets
from openmimo.data.problem_sets import draw_distinct, draw_sets, split_evenly
from openmimo.data.problems.problem import Problem
from openmimo.errors import UserError

DATA = DataConfig(heldout_problems=48, rl_problems=30, sft_queries=20)


@given(st.integers(0, 10_000), st.integers(1, 20))
def test_split_evenly(total: int, parts: int) -> None:
    shares = split_evenly(total, parts)
    assert len(shares) == parts
    assert sum(shares) == total
    assert sorted(shares, reverse=True) == shares
    assert shares[0] - shares[-1] <= 1


def small_family(rng: random.Random, tier: str) -> Problem:
    return Problem("math", "small", tier, f"{tier} problem {rng.randrange(3)}")


def test_distinct_problems_until_a_family_is_used_up() -> None:
    seen: set[str] = set()
    first = draw_distinct(small_family, "train", 2, seen, random.Random(0))
    last = draw_distinct(small_family, "train", 1, seen, random.Random(0))
    assert len({problem.id for problem in first + last}) == len(seen) == 3
    with pytest.raises(UserError, match=r"small \(train tier\) are used up, 1 more were needed"):
        draw_distinct(small_family, "train", 1, seen, random.Random(0))


def test_the_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problem_sets, "HARD_CODE_PROBLEMS", 10)
    sets, index = draw_sets(DATA, seed=1)

    assert Counter((p.domain, p.tier) for p in sets.heldout) == {
        ("math", "train"): 12,
        ("math", "hard"): 12,
        ("code", "train"): 12,
        ("code", "hard"): 12,
    }
    assert set(Counter(p.family for p in sets.heldout if p.domain == "math").values()) == {8}
    assert Counter((p.domain, p.tier) for p in sets.rl) == {
        ("math", "train"): 15,
        ("code", "train"): 15,
        ("code", "hard"): 10,
    }
    assert Counter((p.domain, p.tier) for p in sets.queries) == {
        ("math", "train"): 10,
        ("code", "train"): 10,
    }
    everything = [*sets.heldout, *sets.rl, *sets.queries]
    assert len({problem.id for problem in everything}) == len(everything)
    assert not any(index.hits(problem.prompt) for problem in sets.rl)
    assert all(problem.id in index.hits(problem.prompt) for problem in sets.heldout)


def test_sets_follow_from_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problem_sets, "HARD_CODE_PROBLEMS", 3)
    one, same, other = (draw_sets(DATA, seed)[0] for seed in (1, 1, 2))
    for name in ("heldout", "rl", "queries"):
        records = [[p.record() for p in getattr(sets, name)] for sets in (one, same, other)]
        assert records[0] == records[1] != records[2]


def test_more_rl_problems_do_not_change_the_heldout_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problem_sets, "HARD_CODE_PROBLEMS", 0)
    larger = DATA.model_copy(update={"rl_problems": 60, "sft_queries": 50})
    few, many = (draw_sets(data, seed=1)[0] for data in (DATA, larger))
    assert [p.id for p in few.heldout] == [p.id for p in many.heldout]
