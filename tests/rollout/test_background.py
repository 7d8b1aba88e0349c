"""Samples that fill the slots a step does not need."""

from dataclasses import replace
from typing import Any

import pytest

from openmimo.rollout.background import Background
from openmimo.rollout.driver import EngineSeat, RolloutDriver
from openmimo.rollout.policies import Static
from openmimo.rollout.validity import every_group

from .fakes import (
    SETTINGS,
    SHORT,
    Counting,
    Rewards,
    collect,
    content,
    decode,
    prompts,
    request,
)


@pytest.fixture(scope="module")
def expected() -> list[Any]:
    rollout = collect([EngineSeat(Counting(), 64)])
    assert len(rollout.batch) == 12
    assert len(rollout.groups) > 16, "too few groups are not valid"
    return content(rollout)


@pytest.mark.parametrize("life", [None, 4, 25])
@pytest.mark.parametrize("slots", [6, 24, 300])
def test_background_fills_free_slots_and_changes_nothing(
    expected: list[Any], slots: int, life: int | None
) -> None:
    """Also with few slots, where it has to give way, and with an engine that dies."""
    engines, coming, heard = [Counting(life), Counting()], prompts(), []
    fillers = [prompt for prompt, _ in zip(prompts(), range(40), strict=False)]
    background = Background(fillers, request, decode, lambda *sample: heard.append(sample))
    seats = [EngineSeat(engine, slots // 2) for engine in engines]
    settings = replace(SETTINGS, max_running_samples=slots)
    with RolloutDriver(seats, Rewards(), decode, request, patience=SHORT) as driver:
        rollout = driver.collect(settings, lambda: next(coming), background=background)
    assert rollout is not None
    assert content(rollout) == expected
    assert background.complete
    verdicts = {(p.problem["id"], sample): (c, v) for p, sample, c, v in heard}
    assert len(heard) == len(verdicts) == 160
    for group in rollout.groups[:40]:
        for sample, mine in enumerate(group.completions):
            completion, verdict = verdicts[group.prompt.problem["id"], sample]
            assert verdict.score == group.scores[sample]
            assert mine is not None
            assert completion.token_ids.tolist() == mine.token_ids.tolist()
    assert not engines[1].requests


def test_background_never_takes_a_slot_that_a_sample_waits_for() -> None:
    """Not even for a moment, when several samples end in one step."""
    engine, settings = Counting(), replace(SETTINGS, max_running_samples=16, validity=every_group)
    fillers = [prompt for prompt, _ in zip(prompts(), range(5), strict=False)]
    coming = prompts()
    with RolloutDriver([EngineSeat(engine, 16)], Rewards(), decode, request) as driver:
        background = Background(fillers, request, decode)
        assert driver.collect(settings, lambda: next(coming), Static(), background=background)
    kinds = [str(each).startswith("background") for each in engine.started]
    assert kinds == [False] * 48 + [True] * 20


def test_background_gives_way_to_the_step() -> None:
    """One slot: the step's samples all start before any of the background's but the first."""
    engine = Counting()
    settings = replace(SETTINGS, prompts_per_step=2, max_running_samples=1)
    fillers = [prompt for prompt, _ in zip(prompts(), range(5), strict=False)]
    coming = prompts()
    with RolloutDriver([EngineSeat(engine, 1)], Rewards(), decode, request) as driver:
        background = Background(fillers, request, decode)
        assert driver.collect(settings, lambda: next(coming), background=background)
    kinds = [
        "background" if str(each).startswith("background") else "step" for each in engine.started
    ]
    assert kinds.count("background") >= 20
    assert kinds[: kinds.index("background")].count("step") >= 8
    tail = kinds[len(kinds) - kinds[::-1].index("step") :]
    assert tail.count("background") >= 16
