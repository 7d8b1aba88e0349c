"""The scheduler against a random engine: any timing and any policy, one batch."""

import copy
import random
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


@pytest.mark.parametrize("policy", KEEP_ORDER, ids=range(len(KEEP_ORDER)))
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
