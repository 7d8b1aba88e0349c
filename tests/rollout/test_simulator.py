"""Simulated engines against closed forms, simulated steps against the oracle."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmimo.errors import UserError
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
from openmimo.rollout.simulator.engine import EngineSpeed, SimulatedEngine
from openmimo.rollout.simulator.faults import Faults
from openmimo.rollout.simulator.measure import clairvoyant_bound, measure
from openmimo.rollout.simulator.simulate import Cluster, SimulatedStep, simulate
from openmimo.rollout.simulator.trace import StepTrace, TracePrompt
from openmimo.rollout.simulator.worlds import World
from openmimo.rollout.validity import every_group, valid_by_passrate

SPEED = EngineSpeed(base=0.01, per_row=0.001, slots=8)
WORLD = World(
    prompts_per_step=6, group_size=4, valid_rate=0.4, median_tokens=50, max_tokens=400, stream=12
)
ORDER_KEEPING = [
    Naive(), NaiveAsyncReward(), OneForOne(), RefillTwice(), Continuous(), ContinuousAsyncReward(),
    Report(), Ours(), Ours(posterior=False), Ours(longest_first=False),
    Ours(early_verdicts=False), Ours(ends="drain"), Ours(confidence=0.99),
]  # fmt: skip


def lockstep_ends(lengths: list[int], speed: EngineSpeed) -> list[float]:
    """When samples end that start together on an idle engine, by summing whole decode steps."""
    ends, time = {}, 0.0
    for token in range(1, max(lengths) + 1):
        rows = sum(length >= token for length in lengths)
        time += speed.base + speed.per_row * rows
        ends.update({n: time for n, length in enumerate(lengths) if length == token})
    return [ends[n] for n in range(len(lengths))]


def run_out(engine: SimulatedEngine) -> dict[tuple[int, int], float]:
    ends = {}
    while (time := engine.next_end()) is not None:
        ends[engine.finish(time)] = time
    return ends


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8))
def test_an_engine_decodes_in_lockstep(lengths: list[int]) -> None:
    engine = SimulatedEngine(SPEED)
    for sample, length in enumerate(lengths):
        engine.start(0, sample, length, 0.0)
    ends = run_out(engine)
    assert [ends[0, n] for n in range(len(lengths))] == pytest.approx(lockstep_ends(lengths, SPEED))


def test_a_sample_that_joins_slows_the_others_and_one_that_is_stopped_no_longer() -> None:
    engine = SimulatedEngine(SPEED)
    engine.start(0, 0, 100, 0.0)
    engine.start(1, 0, 100, 0.011 * 10)  # after ten steps alone
    assert engine.stop(1, 0, 0.011 * 10 + 0.012 * 20) == 20
    assert run_out(engine) == {(0, 0): pytest.approx(0.011 * 80 + 0.012 * 20)}


def test_a_pause_moves_all_ends_and_a_prompt_is_read_once() -> None:
    engine = SimulatedEngine(replace(SPEED, prefill=0.5))
    engine.start(0, 0, 10, 0.0)
    engine.start(0, 1, 10, 0.0)
    assert engine.pause(0.0, 2.0) == 2.5
    assert engine.pause(1.0, 1.0) == 3.5  # one after the other
    assert run_out(engine)[0, 0] == pytest.approx(3.5 + 10 * 0.012)


def test_drafts_pay_up_to_the_break_even() -> None:
    speed = EngineSpeed(base=0.01, per_row=0.002, slots=16, acceptance=0.5, draft_cost=0.1)
    plain = replace(speed, acceptance=0.0)
    assert speed.rate(1) == pytest.approx(1.5 / 0.015)
    assert plain.break_even == 0
    # 1.5 / (0.011 + 0.004 b) > 1 / (0.01 + 0.002 b) up to b = 4 exactly: equal there
    assert speed.break_even in (3, 4)
    assert all(speed.rate(b) == plain.rate(b) for b in range(5, 17))
    assert all(speed.rate(b) > plain.rate(b) for b in range(1, 4))
    with pytest.raises(UserError, match="acceptance"):
        replace(speed, acceptance=1.5)


def prompt(tokens: list[int], scores: list[float], seconds: float) -> TracePrompt:
    return TracePrompt("p", tuple(tokens), tuple(scores), (seconds,) * len(tokens))


VALID, INVALID = [0.0, 1.0], [1.0, 1.0]
TWO_WAVES = StepTrace(
    2, 2, (
        prompt([10, 30], VALID, 1.0), prompt([20, 20], INVALID, 1.0),
        prompt([5, 40], VALID, 1.0), prompt([50, 60], INVALID, 1.0),
    ),
)  # fmt: skip


def test_naive_takes_its_waves_one_after_another_and_then_their_rewards() -> None:
    cluster = Cluster(1, SPEED, serial_rewards=1)
    step = simulate(TWO_WAVES, Naive(), cluster)
    waves = max(lockstep_ends([10, 30, 20, 20], SPEED)) + max(lockstep_ends([5, 40, 50, 60], SPEED))
    assert step.timeline.seconds == pytest.approx(waves + 8 * 1.0)
    assert step.done.selected == (0, 2)
    two = simulate(TWO_WAVES, Naive(), replace(cluster, serial_rewards=2))
    assert two.timeline.seconds == pytest.approx(waves + 4 * 1.0)


def test_inline_rewards_stop_the_engine_and_asynchronous_ones_do_not() -> None:
    cluster = Cluster(1, SPEED)
    decoding = max(lockstep_ends([10, 30, 20, 20], SPEED))
    inline = simulate(TWO_WAVES, replace(Static(), rewards="inline"), cluster, every_group)
    assert inline.timeline.seconds == pytest.approx(decoding + 4 * 1.0)
    busy = measure(inline, TWO_WAVES, cluster, every_group)
    assert (1 - busy.idle) * busy.seconds == pytest.approx(decoding)
    apart = simulate(TWO_WAVES, Static(), cluster, every_group)
    assert apart.timeline.seconds == pytest.approx(decoding + 1.0)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), engines=st.integers(1, 4), slots=st.sampled_from([1, 5, 64]))
def test_all_that_keep_the_order_give_the_oracles_batch(
    seed: int, engines: int, slots: int
) -> None:
    trace = WORLD.step(seed)
    cluster = Cluster(engines, replace(SPEED, slots=slots), reward_workers=3, serial_rewards=2)
    batch, end = trace.oracle()
    for policy in ORDER_KEEPING:
        step = simulate(trace, policy, cluster)
        measures = measure(step, trace, cluster, valid_by_passrate)
        assert list(step.done.selected) == batch
        assert step.done.stats.committed == end or step.done.short
        assert measures.length_bias == 0
        assert 0 < measures.share_of_bound <= 1 + 1e-9
        assert 0 <= measures.idle < 1
        assert 0 <= measures.discarded < 1
        assert 0 < measures.slot_use <= 1 + 1e-9


def test_greedy_prefers_short_answers() -> None:
    cluster = Cluster(4, replace(SPEED, slots=64))
    bias = 0.0
    for seed in range(20):
        trace = WORLD.step(seed)
        step = simulate(trace, Greedy(), cluster)
        bias += measure(step, trace, cluster, valid_by_passrate).length_bias
    assert bias / 20 < -1  # of about 60 tokens


def test_no_aborted_work_is_busy() -> None:
    """Busy time against one that counts it out on a grid."""
    trace = replace(WORLD, median_tokens=80).step(3)
    cluster = Cluster(2, replace(SPEED, slots=64))
    step = simulate(trace, Ours(confidence=0.999), cluster)
    assert any(span.outcome == "aborted" for span in step.timeline.spans)
    useful = [
        span for span in step.timeline.spans
        if span.kind == "generate" and span.outcome != "aborted"
    ]  # fmt: skip
    parts = 4000
    counted = sum(
        any(span.lane == lane and span.start <= time < span.end for span in useful)
        for lane in ("engine 0", "engine 1")
        for time in (step.timeline.seconds * n / parts for n in range(parts))
    )
    idle = measure(step, trace, cluster, valid_by_passrate).idle
    assert idle == pytest.approx(1 - counted / (2 * parts), abs=0.005)


def test_the_bound_is_the_longest_sample_or_the_work() -> None:
    alone = SPEED.base + SPEED.per_row
    # prompts 0 to 2 are the batch; the fourth, longer, is not needed
    wide = clairvoyant_bound(TWO_WAVES, Cluster(100, SPEED), valid_by_passrate)
    assert wide == pytest.approx(40 * alone + 1.0)
    slow = replace(TWO_WAVES, prompts=tuple(
        replace(each, reward_seconds=(0.0, 0.0)) for each in TWO_WAVES.prompts
    ))  # fmt: skip
    narrow = clairvoyant_bound(slow, Cluster(1, SPEED), valid_by_passrate)
    assert narrow == pytest.approx(max(40 * alone, 125 / SPEED.throughput))


def expected_batch(step: SimulatedStep, wanted: int) -> list[int]:
    valid = [index for index, scores in sorted(step.scores.items()) if valid_by_passrate(scores)]
    return valid[:wanted]


def run_with_faults(steps: int) -> tuple[int, int]:
    """Steps with crashes and hung rewards; how many samples were lost, and scored as None."""
    lost = unscored = 0
    policies: list[Policy] = [Ours(), Report(), Naive(), ContinuousAsyncReward()]
    for seed in range(steps):
        trace = WORLD.step(seed)
        cluster = Cluster(3, replace(SPEED, slots=6), reward_workers=4, serial_rewards=2)
        faults = Faults(seed, seconds_between=2.0, restart_seconds=0.5, hung=0.1, deadline=3.0)
        step = simulate(trace, policies[seed % len(policies)], cluster, faults=faults)
        assert list(step.done.selected) == expected_batch(step, trace.prompts_per_step)
        assert step.done.short == (len(step.done.selected) < trace.prompts_per_step)
        committed = range(step.done.stats.committed)
        assert all(len(step.scores[index]) == trace.group_size for index in committed)
        for index in committed:
            told = zip(step.scores[index], trace.prompts[index].scores, strict=True)
            assert all(got in (None, true) for got, true in told)
        lost += step.done.stats.lost
        unscored += step.done.stats.unscorable_samples
    return lost, unscored


def test_crashes_and_hung_rewards_lose_nothing() -> None:
    lost, unscored = run_with_faults(40)
    assert lost > 40
    assert unscored > 0


@pytest.mark.slow
def test_crashes_and_hung_rewards_lose_nothing_in_a_thousand_steps() -> None:
    run_with_faults(1000)


def test_a_lost_samples_work_is_done_again() -> None:
    faults = Faults(1, seconds_between=0.4, restart_seconds=0.1, hung=0.0, deadline=1.0)
    step = simulate(TWO_WAVES, Naive(), Cluster(1, SPEED), faults=faults)
    spans = [span for span in step.timeline.spans if span.kind == "generate"]
    lost = [span for span in spans if span.outcome == "lost"]
    assert len(lost) == step.done.stats.lost > 0
    again = {(span.prompt, span.sample): span for span in spans if span.outcome != "lost"}
    for span in lost:
        whole = again[span.prompt, span.sample]
        assert whole.start >= span.end + 0.1  # the only engine has to restart first
        assert whole.tokens == TWO_WAVES.prompts[span.prompt].tokens[span.sample] > span.tokens
    assert step.done.selected == (0, 2)


def test_a_world_has_the_valid_rate_and_lengths_that_it_says() -> None:
    world = World(prompts_per_step=500, valid_rate=0.3, difficulty=0.0, visited=0.5)
    trace = world.step(0)
    valid = sum(valid_by_passrate(each.scores) for each in trace.prompts) / len(trace.prompts)
    assert valid == pytest.approx(0.3, abs=0.025)
    lengths = sorted(length for each in trace.prompts for length in each.tokens)
    assert lengths[len(lengths) // 2] == pytest.approx(world.median_tokens, rel=0.05)
    known = sum(each.prospect.tokens is not None for each in trace.prompts)
    assert known / len(trace.prompts) == pytest.approx(0.5, abs=0.03)
    assert trace == world.step(0)
    assert trace.history is not None
    assert trace.history.valid_rate == pytest.approx(0.3, abs=0.05)
