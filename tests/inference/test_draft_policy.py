"""The policy against simulated machines and texts, whose best choice is known."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmimo.inference.draft_policy import LOAN, DraftPolicy
from openmimo.inference.drafter import USUAL


@dataclass
class World:
    """A machine and a text.

    costs: seconds of a step with 0, 1, .. drafts, at one row.
    right: probability that draft j is right if those before it are.
    entry: seconds to make up for one step without drafts, a row and layer.
    noise: spread of the durations; now and then a step takes five times as long.
    answer: tokens after which rows are new ones, without backlog.
    load: what each draft of each further row adds to a step, as a share of a plain one: a large
        batch keeps the machine busy without drafts.
    """

    costs: Sequence[float]
    right: Sequence[float]
    entry: float = 0.0
    noise: float = 0.0
    answer: int = 100
    load: float = 0.0
    seed: int = 0
    choices: list[int] = field(default_factory=list)
    time: float = 0.0
    plain_time: float = 0.0
    behind: int = 0

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def cost(self, drafts: int, rows: int) -> float:
        """The expected duration of a step, outliers left out."""
        return self.costs[drafts] + self.costs[0] * self.load * drafts * (rows - 1)

    def yield_of(self, drafts: int) -> float:
        """The expected tokens of a row in a step."""
        return 1 + float(np.cumprod(self.right[:drafts]).sum())

    def speed(self, drafts: int, rows: int) -> float:
        """The expected tokens of a row in a second."""
        return self.yield_of(drafts) / self.cost(drafts, rows)

    def best(self, rows: int = 1) -> int:
        """The number of drafts that yields most a second."""
        return max(range(len(self.costs)), key=lambda k: self.speed(k, rows))

    def run(self, policy: DraftPolicy, steps: int, rows: int = 1) -> None:
        """Steps of an engine that does what the policy chooses."""
        for _ in range(steps):
            missing = self.behind * rows if self.behind > USUAL else 0
            backlog = [k * missing * self.entry for k in range(len(self.costs))]
            k = policy.choose(rows, backlog)
            self.choices.append(k)
            if backlog[k]:
                policy.spend(backlog[k])
                self.time += backlog[k]
            self.behind = 0 if k else (self.behind + 1) % self.answer
            seconds = self.cost(k, rows) * float(np.exp(self.noise * self._rng.normal()))
            if self.noise and self._rng.random() < 0.02:
                seconds *= 5
            hits = self._rng.random((rows, k)) < self.right[:k]
            accepted = np.logical_and.accumulate(hits, axis=1).sum(axis=0).tolist()
            policy.record(rows, k, seconds, accepted)
            self.time += self.cost(k, rows)  # the noise is nobody's fault
            self.plain_time += (1 + sum(accepted) / rows) * self.cost(0, rows)

    @property
    def loss(self) -> float:
        """Seconds lost against one token a step."""
        return self.time - self.plain_time


CHEAP = (1.0, 1.1, 1.2, 1.3)
DEAR = (1.0, 1.7, 2.3, 2.9)


def world_of(
    costs: Sequence[float], right: Sequence[float], step: float = 0.001, **changes: Any
) -> World:
    """`costs` in plain steps of `step` seconds; making up for a token costs little."""
    return World([step * c for c in costs], right, **{"entry": step / 400, **changes})


PAYING = [
    (CHEAP, (0.9, 0.8, 0.8), 3),
    (CHEAP, (0.8, 0.5, 0.05), 2),
    (CHEAP, (0.7, 0.1, 0.0), 1),
    (DEAR, (0.95, 0.95, 0.95), 3),
    ((1.0, 1.2, 3.0, 3.2), (0.9, 0.8, 0.5), 1),
    ((1.0, 1.1), (0.5,), 1),
]
WASTED = [
    (CHEAP, (0.05, 0.05, 0.05), 0),
    (DEAR, (0.6, 0.5, 0.5), 0),
    (DEAR, (0.0, 0.0, 0.0), 0),
    ((1.0, 1.5, 2.0, 2.5), (0.4, 0.4, 0.4), 0),
]


@pytest.mark.parametrize(("costs", "right", "best"), [*PAYING, *WASTED[:2]])
@pytest.mark.parametrize(("step", "rows"), [(0.001, 8), (0.03, 1)])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_it_is_nearly_as_fast_as_the_best_number_of_drafts(
    costs: Sequence[float], right: Sequence[float], best: int, step: float, rows: int, noise: float
) -> None:
    world = world_of(costs, right, step, noise=noise)
    assert world.best() == best
    policy = DraftPolicy(len(costs) - 1)
    world.run(policy, 1000, rows)
    begin, tokens = world.time, world.plain_time / world.cost(0, rows)
    world.run(policy, 1500, rows)
    speed = (world.plain_time / world.cost(0, rows) - tokens) / (world.time - begin)
    assert speed > 0.94 * world.speed(best, rows)
    if not noise:
        assert np.bincount(world.choices[1000:]).argmax() == best


@pytest.mark.parametrize(("costs", "right", "best"), WASTED)
@pytest.mark.parametrize(("step", "rows"), [(0.0003, 1), (0.001, 8), (0.2, 1)])
@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("entry", [0.0025, 0.1, 2.0])
def test_where_drafts_never_pay_little_is_lost(
    costs: Sequence[float], right: Sequence[float], best: int, step: float, rows: int,
    noise: float, entry: float,
) -> None:  # fmt: skip
    """At any time, whatever making up for plain steps costs."""
    world = world_of(costs, right, step, noise=noise, entry=entry * step, behind=50)
    policy = DraftPolicy(3)
    for _ in range(25):
        world.run(policy, 50, rows)
        assert world.loss < 0.03 * world.plain_time + LOAN
    assert world.choices.count(best) > 0.7 * len(world.choices)


@settings(max_examples=30)
@given(
    extra=st.lists(st.floats(0.02, 2), min_size=1, max_size=3),
    right=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    rows=st.integers(1, 40),
    step=st.floats(1e-4, 0.3),
    answer=st.integers(1, 400),
    entry=st.floats(0, 1),
)
def test_no_world_makes_it_much_slower_than_no_drafts(
    extra: list[float], right: list[float], rows: int, step: float, answer: int, entry: float
) -> None:
    costs = np.cumsum([1, *extra]).tolist()
    world = world_of(costs, right[: len(extra)], step, answer=answer, entry=entry * step)
    policy = DraftPolicy(len(extra))
    world.run(policy, 600, rows)
    assert world.loss < 0.03 * world.plain_time + LOAN
    assert set(world.choices) <= set(range(len(costs)))
    # Without noise it knows what it saved, but for the steps before it knew a plain one's cost.
    assert policy.saved_seconds == pytest.approx(-world.loss, abs=0.02 * world.time + 5 * step)


def steps_until(world: World, policy: DraftPolicy, choice: int, rows: int, limit: int) -> int:
    """Steps that pass before 45 of 50 have made the choice."""
    for steps in range(0, limit, 50):
        world.run(policy, 50, rows)
        if world.choices[-50:].count(choice) >= 45:
            return steps
    return limit


@pytest.mark.parametrize(
    ("step", "rows", "entry"), [(0.001, 1, 0.0025), (0.001, 64, 0.0025), (0.03, 8, 0.03)]
)
def test_it_follows_an_acceptance_that_falls_and_rises(
    step: float, rows: int, entry: float
) -> None:
    world = world_of(CHEAP, (0.9, 0.9, 0.9), step, entry=entry * step)
    policy = DraftPolicy(3)
    assert steps_until(world, policy, 3, rows, 1000) < 100
    for _ in range(2):
        world.run(policy, 500, rows)
        world.right = (0.05, 0.05, 0.05)
        assert steps_until(world, policy, 0, rows, 1000) < 300
        world.run(policy, 500, rows)
        world.right = (0.9, 0.9, 0.9)
        assert steps_until(world, policy, 3, rows, 3000) < 2000


def test_it_follows_a_machine_that_becomes_slow_at_drafting() -> None:
    world, policy = world_of(CHEAP, (0.7, 0.5, 0.5)), DraftPolicy(3)
    world.run(policy, 1000)
    world.costs = [0.001, 0.003, 0.005, 0.007]
    assert steps_until(world, policy, 0, 1, 500) < 100
    world.costs = [0.004, 0.0041, 0.0042, 0.0043]  # everything else is slow as well
    assert steps_until(world, policy, 3, 1, 5000) < 3000


def test_small_and_large_batches_are_judged_apart() -> None:
    world, policy = world_of(CHEAP, (0.7, 0.6, 0.6), load=0.05), DraftPolicy(3)
    assert (world.best(1), world.best(32)) == (3, 0)
    for _ in range(2):
        for rows in (1, 32):
            world.run(policy, 800, rows)
    late = world.choices[1600:]
    assert late[:800].count(3) > 700
    assert late[800:].count(0) > 700
    # Nearly the same number of rows: what is known of it is used at once.
    world.run(policy, 20, 40)
    assert world.choices[-20:].count(0) >= 14


def test_a_backlog_that_is_too_dear_is_not_paid() -> None:
    world, policy = world_of(CHEAP, (0.9, 0.8, 0.8)), DraftPolicy(3)
    world.run(policy, 50)
    assert world.choices[-1] == 3
    while policy.choose(1, [0, 0, 0, 0]) != 3:
        world.run(policy, 1)
    assert policy.choose(1, [0, 1000, 1000, 1000]) == 0
    assert policy.choose(1, [0, 1e-6, 1e-6, 1e-6]) == 3


def test_making_up_for_plain_steps_counts_as_time_lost() -> None:
    policy = DraftPolicy(3)
    policy.spend(2.0)
    assert policy.saved_seconds == -2.0


def test_what_trials_may_cost_is_not_saved_up_for_ever() -> None:
    world, policy = world_of((1.0, 1.0, 1.0, 1.0), (0.0, 0.0, 0.0), 0.02), DraftPolicy(3)
    world.run(policy, 20_000)  # seven minutes, in which trials cost nothing
    for step in range(500):
        drafts = policy.choose(1, [0, 2.2, 2.2, 2.2])
        assert drafts == 0 or step < 3  # a trial that has begun goes on
        policy.record(1, drafts, 0.02, [0] * drafts)


def test_the_time_saved_is_told_in_spite_of_noise() -> None:
    world = world_of(CHEAP, (0.8, 0.6, 0.5), 0.01, noise=0.05)
    policy = DraftPolicy(3)
    world.run(policy, 2000)
    assert policy.saved_seconds == pytest.approx(-world.loss, rel=0.15)
    assert policy.saved_seconds > 0.4 * world.time
