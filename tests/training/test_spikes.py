import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.errors import UserError
from openmimo.training.spikes import FEWEST, MOST_SKIPPED, WINDOW, SpikeWatch


def watch_of(losses: list[float], norms: list[float] | None = None) -> tuple[SpikeWatch, list[str]]:
    """A watch that has seen these steps of one stage, and all that it said."""
    watch = SpikeWatch()
    said = []
    for index, loss in enumerate(losses):
        said += watch.observe(index + 1, "s", loss, norms[index] if norms else 1.0)
    return watch, said


def noisy(count: int, level: float = 2.0, spread: float = 0.02, seed: int = 0) -> list[float]:
    source = random.Random(seed)
    return [source.gauss(level, spread) for _ in range(count)]


def test_a_jump_of_the_loss_is_one_spike_and_one_line() -> None:
    losses = noisy(100)
    losses[70:73] = [4.0, 3.5, 3.0]  # it takes three steps to come back
    watch, said = watch_of(losses)
    assert watch.counts() == {"loss_spikes": 1, "norm_spikes": 0, "skipped": 0}
    assert len(said) == 1
    assert said[0].startswith("step 71: loss spike, 4 (median 1.9")


def test_two_jumps_are_two_spikes_although_the_first_one_is_in_the_window() -> None:
    losses = noisy(100)
    losses[50] = losses[60] = 50.0  # a mean and standard deviation would let the second one pass
    assert watch_of(losses)[0].counts()["loss_spikes"] == 2


def test_gradient_norms_have_a_count_of_their_own() -> None:
    norms = noisy(100, 1.0, 0.1)
    norms[80] = 30.0
    watch, said = watch_of(noisy(100), norms)
    assert watch.counts() == {"loss_spikes": 0, "norm_spikes": 1, "skipped": 0}
    assert "step 81: gradient norm spike, 30" in said[0]


@given(seed=st.integers(0, 50), start=st.floats(2, 12), spread=st.floats(0, 0.2))
def test_noise_on_a_falling_loss_is_no_spike(seed: int, start: float, spread: float) -> None:
    noise = noisy(400, 0, spread, seed)
    losses = [start * math.exp(-i / 150) + 2 + noise[i] for i in range(400)]
    assert watch_of(losses)[1] == []


def test_a_drop_is_no_spike() -> None:
    assert watch_of([*noisy(60), *noisy(60, level=0.5)])[1] == []


def test_values_without_any_spread_need_more_than_rounding() -> None:
    assert watch_of([*[2.0] * 60, 2.0001])[1] == []
    assert len(watch_of([*[2.0] * 60, 2.2])[1]) == 1


def test_nothing_is_said_before_there_is_a_median() -> None:
    assert watch_of([*[2.0] * (FEWEST - 1), 9.0])[1] == []
    assert len(watch_of([*[2.0] * FEWEST, 9.0])[1]) == 1


def test_a_level_that_stays_becomes_normal() -> None:
    watch, said = watch_of([*noisy(200), *noisy(200, level=3.0), 9.0])
    assert len(said) == 2  # where the level rises, and the spike above the new one
    assert watch.counts()["loss_spikes"] == 2


def test_another_stage_has_another_median() -> None:
    watch = SpikeWatch()
    said = []
    for index, loss in enumerate([*noisy(100), *noisy(100, level=4.0)]):
        said += watch.observe(index + 1, "one" if index < 100 else "two", loss, 1.0)
    assert said == []


def test_a_step_that_is_not_finite_is_counted_and_leaves_the_medians_alone() -> None:
    watch, said = watch_of([*noisy(50), math.nan, *noisy(20)], [*[1.0] * 50, math.inf, *[1.0] * 20])
    assert watch.counts() == {"loss_spikes": 0, "norm_spikes": 0, "skipped": 1}
    assert said == ["step 51: gradient is not finite (loss nan, gradient norm inf), step skipped"]
    watch.observe(72, "s", 9.0, 1.0)
    assert watch.counts()["loss_spikes"] == 1


def test_a_loss_that_is_not_finite_with_a_finite_gradient_is_not_a_skipped_step() -> None:
    watch, said = watch_of([*noisy(50), math.inf])
    assert said == []
    assert watch.skipped == 0


def test_a_run_whose_every_step_is_skipped_is_stopped() -> None:
    watch = SpikeWatch()
    for step in range(1, MOST_SKIPPED):
        watch.observe(step, "s", math.nan, math.nan)
    with pytest.raises(UserError, match=rf"steps 1 to {MOST_SKIPPED} were all not finite"):
        watch.observe(MOST_SKIPPED, "s", math.nan, math.nan)


def test_one_good_step_begins_the_count_anew() -> None:
    watch = SpikeWatch()
    for step in range(1, 10 * MOST_SKIPPED):
        norm = 1.0 if step % MOST_SKIPPED == 0 else math.nan
        watch.observe(step, "s", 2.0, norm)
    assert watch.skipped == 10 * (MOST_SKIPPED - 1)


@given(
    tail=st.lists(st.sampled_from([1.9, 2.0, 2.1, 9.0, math.nan]), min_size=10, max_size=60),
    data=st.data(),
)
def test_a_resumed_watch_is_the_same(tail: list[float], data: st.DataObject) -> None:
    tail[::10] = [2.0] * len(tail[::10])  # never MOST_SKIPPED in a row
    losses = [*noisy(WINDOW), *tail]
    cut = data.draw(st.integers(WINDOW, len(losses)))
    steps = [(i + 1, "ab"[i > WINDOW + 40], loss, 3 * loss) for i, loss in enumerate(losses)]
    whole, before, after = SpikeWatch(), SpikeWatch(), SpikeWatch()
    said = [whole.observe(*step) for step in steps]
    again = [before.observe(*step) for step in steps[:cut]]
    after.restore(json.loads(json.dumps(before.state(), allow_nan=False)))
    again += [after.observe(*step) for step in steps[cut:]]
    assert again == said
    assert after.state() == whole.state()
