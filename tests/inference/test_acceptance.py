"""Shares of accepted drafts, and intervals that come from the spread between groups."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from openmimo.inference import acceptance
from openmimo.inference.acceptance import measure_acceptance
from openmimo.inference.engine import Engine
from openmimo.inference.protocol import EngineStats, Request
from openmimo.inference.speculative import SpeculativeDecoder
from openmimo.model.mimo import MiMo


@pytest.fixture(scope="module")
def model(make_model: Callable[..., MiMo]) -> MiMo:
    return make_model(initializer_range=0.1)  # so flat that some drafts of random layers are right


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    return [
        Request(number, [1 + number, 2, 3 + number], 12, temperature=0.3, seed=number)
        for number in range(13)
    ]


def test_one_group_is_one_engine(model: MiMo, requests: list[Request]) -> None:
    engine = Engine(SpeculativeDecoder(model, 3), slots=len(requests), max_length=15, used_vocab=61)
    engine.run(requests)
    stats = engine.stats()
    found = measure_acceptance(model, requests, 61, groups=1)
    assert 0 < stats.acceptance[0] < 1
    assert found["acceptance"] == stats.acceptance
    assert found["conditional"] == stats.conditional_acceptance
    assert found["tokens_per_forward"] == stats.tokens_per_forward
    assert (found["prompts"], found["tokens"]) == (13, stats.generated_tokens)
    assert found["low"] == found["high"] == found["acceptance"]


def test_groups_change_the_interval_alone(model: MiMo, requests: list[Request]) -> None:
    one, eight = (measure_acceptance(model, requests, 61, groups) for groups in (1, 8))
    for name in ("acceptance", "conditional", "tokens_per_forward", "prompts", "tokens"):
        assert one[name] == eight[name]
    assert eight["low"][0] < eight["acceptance"][0] < eight["high"][0]
    for low, share, high in zip(eight["low"], eight["acceptance"], eight["high"], strict=True):
        assert 0 <= low <= share <= high <= 1


@pytest.mark.parametrize("groups", [1, 3, 8, 50])
def test_every_prompt_is_answered_once(
    requests: list[Request], monkeypatch: pytest.MonkeyPatch, groups: int
) -> None:
    seen: list[Any] = []

    def answer(_: object, part: list[Request], __: int) -> EngineStats:
        seen.append([request.id for request in part])
        return EngineStats(4, drafts_offered=[1], drafts_reached=[1], drafts_accepted=[1])

    monkeypatch.setattr(acceptance, "_answer", answer)
    measure_acceptance(None, requests, 61, groups)  # type: ignore[arg-type]
    assert sorted(id_ for part in seen for id_ in part) == [request.id for request in requests]
    assert len(seen) == min(groups, len(requests))
    assert max(map(len, seen)) - min(map(len, seen)) <= 1


def measured(
    monkeypatch: pytest.MonkeyPatch, offered: list[int], accepted: list[int]
) -> dict[str, Any]:
    """With eight groups of these counts."""
    groups = iter(
        EngineStats(1, drafts_offered=[o], drafts_reached=[o], drafts_accepted=[a])
        for o, a in zip(offered, accepted, strict=True)
    )
    monkeypatch.setattr(acceptance, "_answer", lambda *_: next(groups))
    requests = [Request(number, [1], 1) for number in range(8)]
    return measure_acceptance(None, requests, 61)  # type: ignore[arg-type]


def test_the_interval_is_that_of_a_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = [50, 60, 40, 55, 45, 52, 48, 51]
    accepted = [30, 33, 29, 28, 27, 31, 25, 33]
    found = measured(monkeypatch, offered, accepted)
    ratio = sum(accepted) / sum(offered)
    residuals = np.array(accepted) - ratio * np.array(offered)
    error = np.std(residuals, ddof=1) / math.sqrt(8) / np.mean(offered)
    assert found["acceptance"] == [ratio]
    assert found["high"][0] - ratio == pytest.approx(2.3646 * error, rel=1e-3)
    assert ratio - found["low"][0] == pytest.approx(2.3646 * error, rel=1e-3)


def test_groups_that_agree_leave_no_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch, [10, 20, 30, 40] * 2, [5, 10, 15, 20] * 2)
    assert found["low"] == found["acceptance"] == found["high"] == [0.5]


@pytest.mark.parametrize(("accepted", "bound", "value"), [(1, "low", 0.0), (19, "high", 1.0)])
def test_the_interval_stays_within_shares(
    monkeypatch: pytest.MonkeyPatch, accepted: int, bound: str, value: float
) -> None:
    end = 20 if accepted > 10 else 0
    found = measured(monkeypatch, [20] * 8, [*[end] * 7, 10])
    assert found[bound] == [value]
    assert found["low"] < found["acceptance"] < found["high"]


def test_no_drafts_are_no_acceptance(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch, [0] * 8, [0] * 8)
    assert found["acceptance"] == found["low"] == found["high"] == [0.0]
