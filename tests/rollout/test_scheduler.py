"""The scheduler against a random engine: any completion order, one batch."""

import random
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmimo.errors import UserError
from openmimo.rollout.demand import ValidRate
from openmimo.rollout.scheduler import (
    Abort,
    Action,
    Done,
    Event,
    Launch,
    PromptUnscorable,
    SampleScored,
    StepScheduler,
    StepSettings,
)
from openmimo.rollout.validity import valid_by_passrate, valid_by_reward_std

Table = list[list[float | None]]  # the score every sample will get, by prompt and sample


@dataclass(frozen=True)
class Case:
    settings: StepSettings
    table: Table
    history: ValidRate


@st.composite
def cases(draw: st.DrawFn) -> Case:
    batch = draw(st.integers(1, 5))
    group = draw(st.integers(2, 4))
    most = draw(st.integers(batch, batch + 15))
    score = draw(
        st.sampled_from(
            [
                st.sampled_from([0.0, 1.0]),
                st.sampled_from([0.0, 0.5, 1.0, None]),
                st.sampled_from([1.0, None]),
            ]
        )
    )
    rows = st.lists(score, min_size=group, max_size=group)
    return Case(
        StepSettings(
            prompts_per_step=batch,
            group_size=group,
            max_running_samples=draw(st.integers(group, 40)),
            max_prompts=most,
            validity=draw(st.sampled_from([valid_by_passrate, valid_by_reward_std])),
            launch_margin=draw(st.sampled_from([0.0, 0.3, 2.0])),
        ),
        draw(st.lists(rows, min_size=most, max_size=most)),
        ValidRate(draw(st.floats(0.01, 50)), draw(st.floats(0.01, 50))),
    )


def oracle(case: Case) -> tuple[tuple[int, ...], int]:
    """The first B valid groups by index, and how many prompts it takes to see that."""
    selected: list[int] = []
    for index, scores in enumerate(case.table):
        if case.settings.validity(scores):
            selected.append(index)
        if len(selected) == case.settings.prompts_per_step:
            return tuple(selected), index + 1
    return tuple(selected), len(case.table)


class Engine:
    """Finishes running samples in random order and checks every invariant on the way."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case = case
        self.random = random.Random(seed)
        self.scheduler = StepScheduler(case.settings, case.history)
        self.running: dict[int, list[int]] = {}  # samples still to come, by prompt
        self.launched: list[int] = []
        self.aborted: set[int] = set()
        self.done: Done | None = None

    def run(self) -> Done:
        self.carry_out(self.scheduler.start())
        while self.done is None:
            self.carry_out(self.scheduler.handle(self.next_event()))
        return self.done

    def next_event(self) -> Event:
        index = self.random.choice(list(self.running))
        waiting = self.running[index]
        rest = [self.case.table[index][sample] for sample in waiting]
        if rest == [None] * len(rest) and self.random.random() < 0.5:
            del self.running[index]
            return PromptUnscorable(index)
        sample = waiting.pop(self.random.randrange(len(waiting)))
        if not waiting:
            del self.running[index]
        return SampleScored(index, sample, self.case.table[index][sample])

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            assert self.done is None, "Done must be the last action"
            match action:
                case Launch(index):
                    assert index == len(self.launched), "launches must be consecutive"
                    self.launched.append(index)
                    self.running[index] = list(range(self.case.settings.group_size))
                case Abort(index):
                    sure = sum(
                        self.case.settings.validity(self.scheduler.scores(lower))
                        for lower in range(index)
                    )
                    assert sure >= self.case.settings.prompts_per_step
                    del self.running[index]
                    self.aborted.add(index)
                case Done():
                    self.done = action
        self.check()

    def check(self) -> None:
        scheduler, limits = self.scheduler, self.case.settings
        states = Counter(scheduler.state(index) for index in self.launched)
        assert states.total() == scheduler.launched == len(self.launched) <= limits.max_prompts
        assert states["running"] == scheduler.running == len(self.running)
        assert states["aborted"] == len(self.aborted)
        finished = set(self.launched) - self.aborted - self.running.keys()
        valid = sum(limits.validity(self.case.table[index]) for index in finished)
        assert (states["valid"], states["invalid"]) == (valid, len(finished) - valid)
        samples = sum(map(len, self.running.values()))
        assert samples == scheduler.running_samples <= limits.max_running_samples
        assert self.running or self.done, "nothing runs, yet the step is not done"
        assert not (self.running and self.done), "done, yet something still runs"


@settings(max_examples=300, deadline=None)
@given(cases(), st.integers(0, 2**32))
def test_any_completion_order_selects_the_oracle_batch(case: Case, seed: int) -> None:
    engine = Engine(case, seed)
    done = engine.run()
    selected, committed = oracle(case)
    assert done.selected == selected
    assert done.short == (len(selected) < case.settings.prompts_per_step)
    rows = case.table[:committed]
    stats = done.stats
    assert len(done.all_passed) == stats.committed == committed
    assert stats.valid_passrate == sum(map(valid_by_passrate, rows))
    assert stats.valid_reward_std == sum(map(valid_by_reward_std, rows))
    assert stats.unscorable_samples == sum(row.count(None) for row in rows)
    assert stats.aborted == len(engine.aborted)
    # An aborted group may be valid already, but only finished ones are surplus.
    surplus = set(engine.launched[committed:]) - engine.aborted
    assert stats.surplus_valid == sum(case.settings.validity(case.table[i]) for i in surplus)


def step(batch: int = 2, group: int = 2, **changes: Any) -> StepSettings:
    base = StepSettings(
        prompts_per_step=batch, group_size=group, max_running_samples=100, max_prompts=50
    )
    return replace(base, **changes)


def score(scheduler: StepScheduler, index: int, *scores: float | None) -> list[Action]:
    """Score samples 0, 1, ... of one prompt; the actions of all events."""
    actions: list[Action] = []
    for sample, value in enumerate(scores):
        actions += scheduler.handle(SampleScored(index, sample, value))
    return actions


def test_launches_what_the_valid_rate_predicts() -> None:
    scheduler = StepScheduler(step(batch=8), ValidRate(40, 60))
    assert len(scheduler.start()) == 20  # 20 prompts x 0.4 = 8
    wider = StepScheduler(step(batch=8, launch_margin=0.25), ValidRate(40, 60))
    assert len(wider.start()) == 25


@pytest.mark.parametrize(
    ("first", "launches"), [((1.0, 0.0), []), ((1.0, 1.0), [Launch(3)]), ((1.0, None), [Launch(3)])]
)
def test_early_verdict_counts_before_the_group_is_finished(
    first: tuple[float | None, ...], launches: list[Action]
) -> None:
    # Half the groups are expected to be valid and there is room for three: 1.5 of 2 expected. When
    # a slot for a fourth frees, it is not needed if prompt 0 is sure to be valid: 1 + 0.5 + 0.5.
    scheduler = StepScheduler(step(group=3, max_running_samples=9), ValidRate(1, 1))
    assert len(scheduler.start()) == 3
    assert score(scheduler, 0, *first) == []
    assert scheduler.state(0) == "running"
    assert score(scheduler, 1, 1.0) == launches


def test_early_verdicts_do_not_raise_the_rate() -> None:
    # They are all "valid": the rate stays 1/2, so 1 + 3 x 0.5 of 3 are expected, not 1 + 3 x 2/3.
    scheduler = StepScheduler(step(batch=3, group=3, max_running_samples=12), ValidRate(1, 1))
    assert len(scheduler.start()) == 4
    assert score(scheduler, 0, 1.0, 0.0) == []
    assert score(scheduler, 1, 1.0) == [Launch(4)]


def test_an_invalid_group_is_replaced_while_others_still_run() -> None:
    scheduler = StepScheduler(step(), ValidRate(1e6, 0))
    assert scheduler.start() == [Launch(0), Launch(1)]
    assert score(scheduler, 1, 0.0, 0.0)[0] == Launch(2)
    assert scheduler.state(1) == "invalid"


def test_prompts_that_cannot_be_selected_are_aborted_at_once() -> None:
    # Prompts 1 and 2 are sure to be valid, so the batch lies within 0..2 whatever 0 brings; the
    # long answer of prompt 0 is still waited for.
    scheduler = StepScheduler(step(group=3), ValidRate(1, 1))
    assert len(scheduler.start()) == 4
    assert score(scheduler, 1, 1.0, 0.0) == []
    assert score(scheduler, 2, 1.0, 0.0) == [Abort(3)]
    assert score(scheduler, 0, 1.0, 0.0) == [Abort(2)]
    assert scheduler.handle(SampleScored(1, 2, 0.0)) == []
    (done,) = scheduler.handle(SampleScored(0, 2, 1.0))
    assert isinstance(done, Done)
    assert done.selected == (0, 1)
    assert done.all_passed == (False, False)
    assert scheduler.handle(SampleScored(3, 0, 1.0)) == []  # crossed with the abort


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


def test_unscorable_prompt_is_replaced() -> None:
    scheduler = StepScheduler(step(batch=1), ValidRate(1e6, 0))
    assert scheduler.start() == [Launch(0)]
    assert scheduler.handle(SampleScored(0, 0, 1.0)) == []
    assert scheduler.handle(PromptUnscorable(0))[0] == Launch(1)
    assert scheduler.scores(0) == [1.0, None]
    done = score(scheduler, 1, 0.0, 1.0)[-1]
    assert isinstance(done, Done)
    assert done.selected == (1,)
    assert done.all_passed == (None, False)
    assert done.stats.unscorable_samples == 1


@pytest.mark.parametrize(
    "event",
    [
        SampleScored(99, 0, 1.0),
        SampleScored(-1, 0, 1.0),
        SampleScored(0, 7, 1.0),
        SampleScored(0, 0, 1.0),
        SampleScored(0, 1, float("nan")),
    ],
)
def test_impossible_events_are_refused(event: SampleScored) -> None:
    scheduler = StepScheduler(step())
    scheduler.start()
    scheduler.handle(SampleScored(0, 0, 0.0))
    with pytest.raises(ValueError, match=r"about|finite"):
        scheduler.handle(event)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts_per_step": 0}, "prompts_per_step"),
        ({"group_size": 1}, "group_size"),
        ({"max_running_samples": 1}, "max_running_samples"),
        ({"max_prompts": 1}, "max_prompts"),
        ({"launch_margin": -0.1}, "launch_margin"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        step(**changes)


def test_a_paper_sized_step_is_quick_and_wastes_little() -> None:
    """512 of 41 % valid prompts: the launches follow demand instead of waves of 512."""
    rng = random.Random(0)
    table: Table = [
        [float(s < 8) for s in range(16)] if rng.random() < 0.41 else [0.0] * 16
        for _ in range(4000)
    ]
    case = Case(
        StepSettings(
            prompts_per_step=512, group_size=16, max_running_samples=4096, max_prompts=4000
        ),
        table,
        ValidRate(41, 59),
    )
    scheduler = StepScheduler(case.settings, case.history)
    running: list[tuple[int, int]] = []
    actions = scheduler.start()
    while not scheduler.done:
        for action in actions:
            if isinstance(action, Launch):
                running += [(action.prompt_index, sample) for sample in range(16)]
        at = rng.randrange(len(running))
        running[at], running[-1] = running[-1], running[at]
        index, sample = running.pop()
        actions = scheduler.handle(SampleScored(index, sample, table[index][sample]))
    assert scheduler.done.selected == oracle(case)[0]
    stats = scheduler.done.stats
    assert (stats.surplus_valid + stats.aborted) / 512 < 0.25
