"""The scheduler against a random engine: any timing and any policy, one batch."""

import copy
import random
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    Continuous,
    ContinuousAsyncReward,
    Greedy,
    Naive,
    NaiveAsyncReward,
    OneForOne,
    Ours,
    Policy,
    RefillTwice,
    Report,
    Static,
)
from openmimo.rollout.scheduler import StepScheduler, StepSettings
from openmimo.rollout.validity import valid_by_passrate, valid_by_reward_std

Table = list[list[float | None]]  # the score every sample will get, by prompt and sample

KEEP_ORDER: list[Policy] = [
    Naive(),
    NaiveAsyncReward(),
    OneForOne(),
    RefillTwice(),
    Continuous(),
    ContinuousAsyncReward(),
    Report(),
    Ours(),
    Ours(posterior=False),
    Ours(longest_first=False),
    Ours(early_verdicts=False),
    Ours(confidence=0.99),
]


@dataclass(frozen=True)
class Case:
    settings: StepSettings
    table: Table
    history: PassRates
    prospects: list[Prospect]
    loss: float  # chance that a sample is lost


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
    counts = st.floats(0, 16)
    prospects = st.builds(Prospect, counts, counts, st.none() | st.floats(1, 9999))
    history = PassRates(group)
    for passed in draw(st.lists(st.integers(0, group), max_size=8)):
        history = history.plus(passed, group, 0 < passed < group)
    return Case(
        StepSettings(
            prompts_per_step=batch,
            group_size=group,
            max_running_samples=draw(st.integers(1, 40)),
            max_prompts=most,
            validity=draw(st.sampled_from([valid_by_passrate, valid_by_reward_std])),
            max_losses=10**6,
        ),
        draw(st.lists(rows, min_size=most, max_size=most)),
        history,
        draw(st.lists(prospects, min_size=most, max_size=most)),
        draw(st.sampled_from([0.0, 0.3])),
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
    """Finishes and loses samples in random order and checks every invariant on the way."""

    def __init__(self, case: Case, policy: Policy, seed: int) -> None:
        self.case, self.policy = case, policy
        self.random = random.Random(seed)
        self.scheduler = StepScheduler(
            case.settings, policy, case.history, case.prospects.__getitem__
        )
        self.generating: set[tuple[int, int]] = set()
        self.scoring: set[tuple[int, int]] = set()
        self.scores: Counter[int] = Counter()  # received, by prompt
        self.started: Counter[tuple[int, int]] = Counter()
        self.lost: Counter[tuple[int, int]] = Counter()
        self.launched = 0
        self.aborted: set[int] = set()
        self.done: Done | None = None
        self.log: list[tuple[Event, list[Action]]] = []

    def run(self, steps: int = 10**6) -> "Engine":
        if not self.log:
            self.carry_out(self.scheduler.start())
        while self.done is None and steps:
            event = self.next_event()
            actions = self.scheduler.handle(event)
            self.log.append((event, actions))
            self.carry_out(actions)
            steps -= 1
        return self

    def next_event(self) -> Event:
        # Rewards may overtake answers that ended later, and the other way round.
        index, sample = self.random.choice(sorted(self.generating | self.scoring))
        if (index, sample) in self.scoring:
            self.scoring.remove((index, sample))
            self.scores[index] += 1
            return Scored(index, sample, self.case.table[index][sample])
        self.generating.remove((index, sample))
        if self.random.random() < self.case.loss:
            self.lost[index, sample] += 1
            return Lost(index, sample)
        return Generated(index, sample, self.random.randrange(100))

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            assert self.done is None, "Done must be the last action"
            match action:
                case Launch(index):
                    assert index == self.launched, "launches must be consecutive"
                    self.launched += 1
                case Start(index, sample):
                    assert index < self.launched
                    self.started[index, sample] += 1
                    self.generating.add((index, sample))
                case Score(index, sample):
                    if self.policy.rewards == "barrier":
                        assert not self.generating
                    self.scoring.add((index, sample))
                case Abort(index):
                    self.check_abort(index)
                    self.generating = {key for key in self.generating if key[0] != index}
                    self.scoring = {key for key in self.scoring if key[0] != index}
                    self.aborted.add(index)
                case Done():
                    self.done = action
        self.check()

    def check_abort(self, index: int) -> None:
        if not self.policy.keeps_order:
            return
        sure = sum(
            self.case.settings.validity(self.scheduler.scores(lower)) for lower in range(index)
        )
        assert sure >= self.case.settings.prompts_per_step

    def check(self) -> None:
        scheduler, limits = self.scheduler, self.case.settings
        states = Counter(scheduler.state(index) for index in range(self.launched))
        assert states.total() == scheduler.launched == self.launched <= limits.max_prompts
        assert states["running"] == scheduler.running
        assert states["aborted"] == len(self.aborted)
        finished = {
            index
            for index in range(self.launched)
            if self.scores[index] == limits.group_size and index not in self.aborted
        }
        assert self.launched - len(finished) - len(self.aborted) == states["running"]
        valid = {index for index in finished if limits.validity(self.case.table[index])}
        assert states["valid"] == len(valid)
        scored = {i: [s for s in self.case.table[i] if s is not None] for i in finished - valid}
        assert states["failed"] == sum(len(each) < 2 for each in scored.values())
        assert len(self.generating) == scheduler.running_samples <= limits.max_running_samples
        if len(self.generating) < limits.max_running_samples:
            assert not scheduler.waiting_samples, "a sample waits though a slot is free"
        for key, times in self.started.items():
            assert times - self.lost[key] in (0, 1)
        if self.done is None:
            assert self.generating or self.scoring, "nothing runs, yet the step is not done"
        else:
            assert not self.generating
            assert not self.scoring, "done, yet something still runs"


@pytest.mark.parametrize("policy", KEEP_ORDER, ids=lambda p: f"{p.name}-{hash(p) % 1000}")
@settings(max_examples=80, deadline=None)
@given(cases(), st.integers(0, 2**32))
def test_every_policy_that_keeps_the_order_selects_the_oracle_batch(
    policy: Policy, case: Case, seed: int
) -> None:
    engine = Engine(case, policy, seed).run()
    done = engine.done
    assert done is not None
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
    assert stats.lost == engine.lost.total()
    # An aborted group may be valid already, but only finished ones are surplus.
    surplus = set(range(committed, engine.launched)) - engine.aborted
    assert stats.surplus_valid == sum(case.settings.validity(case.table[i]) for i in surplus)


@settings(max_examples=80, deadline=None)
@given(cases(), st.integers(0, 2**32))
def test_greedy_takes_the_first_to_finish(case: Case, seed: int) -> None:
    engine = Engine(case, Greedy(), seed).run()
    assert engine.done is not None
    finished: list[int] = []
    left = Counter(dict.fromkeys(range(engine.launched), case.settings.group_size))
    for event, _ in engine.log:
        if isinstance(event, Scored):
            left[event.prompt_index] -= 1
            scores = case.table[event.prompt_index]
            if not left[event.prompt_index] and case.settings.validity(scores):
                finished.append(event.prompt_index)
    assert engine.done.selected == tuple(finished[: case.settings.prompts_per_step])


@settings(max_examples=80, deadline=None)
@given(cases(), st.integers(0, 2**32))
def test_static_launches_one_wave(case: Case, seed: int) -> None:
    engine = Engine(case, Static(), seed).run()
    assert engine.launched == case.settings.prompts_per_step


@settings(max_examples=200, deadline=None)
@given(cases(), st.integers(0, 2**32), st.integers(0, 60))
def test_a_step_goes_on_from_its_events_and_from_a_copy(case: Case, seed: int, cut: int) -> None:
    whole = Engine(case, Ours(), seed).run()
    part = Engine(case, Ours(), seed).run(cut)
    again = StepScheduler(case.settings, Ours(), case.history, case.prospects.__getitem__)
    again.start()
    for event, actions in part.log:
        assert again.handle(event) == actions
    copied = copy.deepcopy(again)
    for event, actions in whole.log[len(part.log) :]:
        assert copied.handle(event) == actions
    assert copied.done == whole.done


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
