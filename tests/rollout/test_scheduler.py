"""The scheduler step by step: what each part of it does."""

from dataclasses import replace
from typing import Any

import pytest

from openmimo.errors import UserError
from openmimo.rollout.demand import PassRates, Prospect
from openmimo.rollout.events import (
    Abort,
    Action,
    Done,
    Event,
    Generated,
    Launch,
    Lost,
    Score,
    Scored,
    Start,
)
from openmimo.rollout.policies import (
    OneForOne,
    Ours,
    Report,
)
from openmimo.rollout.scheduler import StepScheduler, StepSettings


def step(batch: int = 2, group: int = 2, **changes: Any) -> StepSettings:
    base = StepSettings(
        prompts_per_step=batch, group_size=group, max_running_samples=100, max_prompts=1000
    )
    return replace(base, **changes)


def rates(group: int, **groups: int) -> PassRates:
    """So many groups, mixed or not."""
    history = PassRates(group)
    for _ in range(groups.get("mixed", 0)):
        history = history.plus(group // 2, group, True)
    for number in range(groups.get("same", 0)):
        history = history.plus(group * (number % 2), group, False)
    return history


def score(scheduler: StepScheduler, index: int, *scores: float | None) -> list[Action]:
    """Generate and score samples 0, 1, ... of one prompt; the actions but starts and scores."""
    actions: list[Action] = []
    for sample, value in enumerate(scores):
        actions += scheduler.handle(Generated(index, sample, 10))
        actions += scheduler.handle(Scored(index, sample, value))
    return [action for action in actions if not isinstance(action, Start | Score)]


def launches(actions: list[Action]) -> int:
    return sum(isinstance(action, Launch) for action in actions)


def test_the_report_launches_what_the_valid_rate_of_this_step_predicts() -> None:
    settings, history = step(batch=8, group=2), rates(2, mixed=4000, same=6000)
    scheduler = StepScheduler(settings, Report(imagined=0.25, margin=0.0), history)
    assert launches(scheduler.start()) == 8  # nothing is known yet
    assert launches(score(scheduler, 0, 1.0, 1.0)) == 5  # (8 + 5 - 1) x 2 / 3 = 8
    assert launches(score(scheduler, 1, 0.0, 1.0)) == 0  # 1 + 11 x 3 / 4 > 8


def test_confidence_launches_more_and_what_is_known_of_prompts_less() -> None:
    history = rates(16, mixed=400, same=600)

    def launched(confidence: float, slots: int) -> int:
        settings = step(64, 16, max_running_samples=slots)
        return launches(StepScheduler(settings, Ours(confidence=confidence), history).start())

    low, even, high = (launched(each, 10_000) for each in (0.2, 0.5, 0.9))
    assert low < 158 <= even <= 161 < high  # 64 / 0.4 = 160
    assert launched(0.9, slots=100) == even  # what is not likely needed does not wait for a slot
    few = StepScheduler(step(16, 16), Ours(), history, lambda index: Prospect(8, 8))
    assert launches(few.start()) == 16


def test_longest_first_and_spare_groups_last() -> None:
    lengths = [5.0, 90.0, 20.0, 60.0, 99.0]
    settings = step(batch=3, group=8, max_running_samples=40)
    prospects = [Prospect(2, 2, length) for length in lengths]
    scheduler = StepScheduler(
        settings, Ours(confidence=0.99), rates(8, mixed=9, same=2), prospects.__getitem__
    )
    order = [action.prompt_index for action in scheduler.start() if isinstance(action, Start)]
    # Of those needed, the longest first; what was launched beyond them comes last.
    assert order == [index for index in (1, 3, 2, 0, 4) for _ in range(8)]


def test_early_verdicts_free_demand_before_a_group_is_finished() -> None:
    counts = []
    for early in (True, False):
        policy = Ours(early_verdicts=early, posterior=False)
        scheduler = StepScheduler(step(batch=4, group=3), policy, rates(3, mixed=500, same=500))
        started = launches(scheduler.start())
        for index in range(4):
            score(scheduler, index, 1.0, 0.0)
        counts.append(scheduler.valid)
        assert scheduler.launched == started
    assert counts == [4, 0]


def test_an_invalid_group_is_replaced_while_others_still_run() -> None:
    scheduler = StepScheduler(step(), OneForOne())
    assert launches(scheduler.start()) == 2
    assert score(scheduler, 1, 0.0, 0.0)[0] == Launch(2)
    assert scheduler.state(1) == "invalid"


def test_prompts_that_cannot_be_selected_are_aborted_at_once() -> None:
    # Prompts 1 and 2 are sure to be valid, so the batch lies within 0..2 whatever 0 brings; the
    # long answer of prompt 0 is still waited for.
    policy = Ours(posterior=False, confidence=0.6)
    scheduler = StepScheduler(step(group=3), policy, rates(3, mixed=500, same=500))
    assert launches(scheduler.start()) == 4
    assert score(scheduler, 1, 1.0, 0.0) == []
    assert score(scheduler, 2, 1.0, 0.0) == [Abort(3)]
    assert score(scheduler, 0, 1.0, 0.0) == [Abort(2)]
    scheduler.handle(Generated(1, 2))
    scheduler.handle(Generated(0, 2))
    assert scheduler.handle(Scored(1, 2, 0.0)) == []
    (done,) = scheduler.handle(Scored(0, 2, 1.0))
    assert isinstance(done, Done)
    assert done.selected == (0, 1)
    assert done.all_passed == (False, False)
    assert scheduler.handle(Generated(3, 0)) == []  # crossed with the abort


def test_short_step_says_whether_the_data_is_too_easy_or_too_hard() -> None:
    scheduler = StepScheduler(step(batch=2, max_prompts=4))
    scheduler.start()
    outcomes = {0: (1.0, 1.0), 1: (0.0, 0.0), 2: (0.0, 1.0), 3: (1.0, 1.0)}
    actions = [
        action for index, pair in outcomes.items() for action in score(scheduler, index, *pair)
    ]
    done = actions[-1]
    assert isinstance(done, Done)
    assert done.short
    assert done.selected == (2,)
    assert done.all_passed == (True, False, False, True)
    assert (done.stats.all_passed, done.stats.none_passed) == (2, 1)


def test_a_sample_that_is_lost_too_often_is_unscorable_and_its_prompt_replaced() -> None:
    scheduler = StepScheduler(step(batch=1, max_losses=2), OneForOne())
    scheduler.start()
    assert score(scheduler, 0, 1.0) == []
    assert [scheduler.handle(Lost(0, 1)) for _ in range(2)] == [[Start(0, 1, 10.0)]] * 2
    assert scheduler.handle(Lost(0, 1))[0] == Launch(1)
    assert scheduler.scores(0) == [1.0, None]
    assert scheduler.state(0) == "failed"
    done = score(scheduler, 1, 0.0, 1.0)[-1]
    assert isinstance(done, Done)
    assert done.selected == (1,)
    assert done.all_passed == (None, False)
    assert (done.stats.unscorable_samples, done.stats.failed, done.stats.lost) == (1, 1, 3)


@pytest.mark.parametrize(
    "event",
    [
        Generated(99, 0),
        Generated(-1, 0),
        Generated(0, 7),
        Generated(0, 0),
        Lost(0, 0),
        Scored(0, 1, 1.0),
        Scored(0, 0, float("nan")),
    ],
)
def test_impossible_events_are_refused(event: Event) -> None:
    scheduler = StepScheduler(step())
    scheduler.start()
    scheduler.handle(Generated(0, 0))
    with pytest.raises(ValueError, match=r"about|finite"):
        scheduler.handle(event)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts_per_step": 0}, "prompts_per_step"),
        ({"group_size": 0}, "group_size"),
        ({"max_running_samples": 0}, "max_running_samples"),
        ({"max_prompts": 1}, "max_prompts"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        step(**changes)


def test_what_was_lost_starts_before_all_others() -> None:
    settings = step(batch=4, group=2, max_running_samples=2)
    scheduler = StepScheduler(settings, Ours(confidence=0.9))
    scheduler.start()
    scheduler.handle(Generated(0, 0, tokens=500))  # longer than it was thought
    (again,) = scheduler.handle(Lost(0, 1))[:1]
    assert again == Start(0, 1, 500.0)


def test_prompts_of_unknown_length_keep_their_order_whenever_they_are_launched() -> None:
    settings = step(batch=4, group=2, max_running_samples=1)
    scheduler = StepScheduler(settings, OneForOne(longest_first=True))
    scheduler.start()
    order = []
    while scheduler.running_samples:
        index = len(order) // 2
        order.append(index)
        scheduler.handle(Generated(index, (len(order) - 1) % 2, tokens=100 * len(order)))
    assert order == [0, 0, 1, 1, 2, 2, 3, 3]
