"""The schedule's arithmetic, and the report's own table in the `mimo-7b` preset."""

import math
import time
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openmimo.config.load import load_config
from openmimo.config.schema import PretrainConfig, Recipe, ScheduleRow
from openmimo.model.mimo import MiMo
from openmimo.training.schedule import Schedule

B, T = 10**9, 10**12


def row(until: int, **changes: object) -> ScheduleRow:
    values = {
        "stage": "s",
        "until": until,
        "learning_rate": (0.0, 1.0),
        "batch": (1, 5),
        "length": 10,
        "rope_base": 10_000.0,
        "mtp_weight": 0.3,
        "mixture": {"general": 1.0},
    }
    return ScheduleRow.model_validate(values | changes)


@pytest.fixture(scope="module")
def mimo() -> Recipe:
    return load_config(Recipe, "mimo-7b")


@pytest.fixture(scope="module")
def table(mimo: Recipe) -> Schedule:
    return Schedule(mimo.pretrain.schedule)


# Section 2.3 of the report: tokens, stage, learning rate, batch, length, RoPE base, MTP weight.
REPORT = [
    (0, "stage1", 0.0, 64, 8192, 10_000, 0.3),
    (84 * B, "stage1", 1.07e-4, 1312, 8192, 10_000, 0.3),
    (168 * B, "stage1", 1.07e-4, 2560, 8192, 10_000, 0.3),
    (10_284 * B - 1, "stage1", 1.07e-4, 2560, 8192, 10_000, 0.3),
    (10_284 * B, "stage1", 1.07e-4, 2560, 8192, 10_000, 0.1),
    (17_784 * B - 1, "stage1", 3e-5, 2560, 8192, 10_000, 0.1),
    (17_784 * B, "stage2", 3e-5, 2560, 8192, 10_000, 0.1),
    (21_784 * B - 1, "stage2", 3e-5, 2560, 8192, 10_000, 0.1),
    (21_784 * B, "stage3", 3e-5, 640, 32_768, 640_000, 0.1),
    (23_284 * B, "stage3", 3e-5, 640, 32_768, 640_000, 0.1),
    (23_784 * B, "stage3", 1e-5, 640, 32_768, 640_000, 0.1),
]


@pytest.mark.parametrize(
    ("tokens", "stage", "rate", "batch", "length", "rope_base", "mtp_weight"), REPORT
)
def test_mimo_7b_is_the_report_s_table(
    table: Schedule,
    tokens: int,
    stage: str,
    rate: float,
    batch: int,
    length: int,
    rope_base: float,
    mtp_weight: float,
) -> None:
    point = table.at(tokens)
    assert point.learning_rate == pytest.approx(rate, rel=1e-9)
    assert (point.stage, point.batch, point.length, point.rope_base, point.mtp_weight) == (
        stage, batch, length, rope_base, mtp_weight,
    )  # fmt: skip
    if tokens >= 168 * B:
        assert point.batch * point.length == 20_971_520


def test_mimo_7b_between_the_boundaries(table: Schedule) -> None:
    assert table.total_tokens == 23_784 * B
    assert table.at(42 * B).learning_rate == pytest.approx(1.07e-4 / 2)
    assert table.at(126 * B).batch == 1936
    assert table.at((10_284 + 3_750) * B).learning_rate == pytest.approx((1.07e-4 + 3e-5) / 2)
    quarter = 3e-5 + 7.7e-5 * (1 + math.sqrt(0.5)) / 2  # cosine: slow at first
    assert table.at((10_284 + 1_875) * B).learning_rate == pytest.approx(quarter)
    assert table.at(23_534 * B).learning_rate == pytest.approx(2e-5)


BOUNDARIES = [0, 84 * B, 168 * B, 10_284 * B, 17_784 * B, 21_784 * B, 23_284 * B, 23_784 * B]
HALVES = [(first + last) // 2 for first, last in pairwise(BOUNDARIES)]


def expected(tokens: int) -> tuple[float, int, int, int, float]:
    """Section 4 of the recipe as formulas: rate, batch, length, RoPE base, MTP weight."""

    def fall(first: float, last: float, start: int, end: int) -> float:
        """Half a period of the cosine, by the half-angle formula."""
        done = Fraction(min(tokens, end) - start, end - start)
        return last + (first - last) * math.cos(math.pi / 2 * float(done)) ** 2

    if tokens < 84 * B:
        rate = 1.07e-4 * float(Fraction(tokens, 84 * B))
    elif tokens < 10_284 * B:
        rate = 1.07e-4
    elif tokens < 17_784 * B:
        rate = fall(1.07e-4, 3e-5, 10_284 * B, 17_784 * B)
    elif tokens < 23_284 * B:
        rate = 3e-5
    else:
        rate = fall(3e-5, 1e-5, 23_284 * B, 23_784 * B)
    # One straight line from 64 to 2560, though the table has two rows for it.
    batch = round(64 + Fraction(2496 * tokens, 168 * B)) if tokens < 168 * B else 2560
    weight = 0.3 if tokens < 10_284 * B else 0.1
    if tokens < 21_784 * B:
        return rate, batch, 8192, 10_000, weight
    return rate, 640, 32_768, 640_000, weight


def check(table: Schedule, tokens: int) -> None:
    point = table.at(tokens)
    rate, *rest = expected(tokens)
    assert point.learning_rate == pytest.approx(rate, rel=1e-9, abs=1e-20)
    assert [point.batch, point.length, point.rope_base, point.mtp_weight] == rest


@pytest.mark.parametrize(
    "tokens",
    sorted({max(t + near, 0) for t in BOUNDARIES for near in (-1, 0, 1)} | {*HALVES}),
)
def test_mimo_7b_just_before_at_and_after_every_boundary(table: Schedule, tokens: int) -> None:
    check(table, tokens)


@given(tokens=st.integers(0, 24 * T))
def test_mimo_7b_everywhere(table: Schedule, tokens: int) -> None:
    check(table, tokens)


@given(tokens=st.integers(0, 170 * B))
def test_mimo_7b_warms_up_by_the_formulas(table: Schedule, tokens: int) -> None:
    check(table, tokens)


def test_mimo_7b_mixtures(table: Schedule) -> None:
    first, second, third = (table.at(tokens).mixture for tokens in (0, 20 * T, 22 * T))
    assert not first.get("synthetic")
    assert second["math"] + second["code"] == pytest.approx(0.7)
    assert third["synthetic"] == pytest.approx(0.1)


def test_mimo_7b_settings_of_the_report(mimo: Recipe) -> None:
    sft, rl, adam = mimo.sft, mimo.rl, mimo.pretrain.optimizer
    assert (adam.beta1, adam.beta2, adam.weight_decay, adam.clip) == (0.9, 0.95, 0.1, 1.0)
    assert (sft.learning_rate, sft.batch, sft.length, sft.responses_per_query) == (
        3e-5, 128, 32_768, 8,
    )  # fmt: skip
    assert (rl.prompts_per_step, rl.prompts_per_update, rl.learning_rate) == (512, 32, 1e-6)
    assert (rl.max_new_tokens, rl.easy_share, rl.loss_agg) == (32_768, 0.1, "prompt_token_mean")
    assert rl.eps_high > rl.eps_low
    assert mimo.mtp_heads.layers == 3


def test_mimo_7b_has_7_833_409_536_parameters(mimo: Recipe) -> None:
    with torch.device("meta"):
        model = MiMo(mimo.model)
    assert sum(parameter.numel() for parameter in model.parameters()) == 7_833_409_536


def test_rows_are_half_open() -> None:
    schedule = Schedule((row(100, stage="a"), row(300, stage="b", learning_rate=(5.0, 7.0))))
    assert schedule.at(99).stage == "a"
    assert (schedule.at(100).stage, schedule.at(100).learning_rate) == ("b", 5.0)
    assert schedule.at(200).learning_rate == 6.0
    assert schedule.at(10_000).learning_rate == 7.0  # past the end: the last value


def test_steps_count_their_own_tokens() -> None:
    schedule = Schedule((row(100), row(200, batch=(5, 5), length=20)))
    walk = schedule.steps()
    for (tokens, point), (after, _) in pairwise(walk):
        assert point == schedule.at(tokens)
        assert after == tokens + point.batch * point.length
    last, point = walk[-1]
    assert last < 200 <= last + point.batch * point.length
    assert [point.batch for _, point in walk] == [1, 1, 2, 3, 4, 5]


@given(
    ends=st.lists(st.integers(1, 5000), min_size=1, max_size=4, unique=True),
    batches=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=4, max_size=4),
    length=st.integers(2, 30),
)
def test_spans_are_the_steps(ends: list[int], batches: list[tuple[int, int]], length: int) -> None:
    # Rows may be shorter than a step, and then give none.
    rows = zip(sorted(ends), batches, strict=False)
    schedule = Schedule(
        tuple(row(end, batch=batch, length=length, stage=str(end)) for end, batch in rows)
    )
    counted = [
        (span.start + step * span.batch * length, schedule.rows[span.row].stage, span.batch)
        for span in schedule.spans()
        for step in range(span.steps)
    ]
    assert counted == [(tokens, point.stage, point.batch) for tokens, point in schedule.steps()]


def test_mimo_7b_s_steps_are_counted_without_walking(table: Schedule) -> None:
    began = time.process_time()
    spans = list(table.spans())
    assert time.process_time() - began < 2  # walking takes over ten seconds
    # By hand: all rows but the warm-up have steps of 20,971,520 tokens.
    after = [span for span in spans if span.row > 1]
    full = (23_784 - 168) * B / 20_971_520
    assert sum(span.steps for span in after) == pytest.approx(full, abs=6)
    # Linear warm-up: the integral of tokens over 8192 (64 + 2496 tokens / 168B).
    warm = 168 * B / (8192 * 2496) * math.log(2560 / 64)
    steps = sum(span.steps for span in spans if span.row < 2)
    assert steps == pytest.approx(warm, rel=1e-3)
    assert sum(span.steps * span.batch for span in spans if span.row < 2) * 8192 == pytest.approx(
        168 * B, abs=20_971_520
    )


@given(st.integers(0, 400))
def test_values_stay_between_a_row_s_ends(tokens: int) -> None:
    rows = (row(100), row(300, learning_rate=(1.0, 0.25), shape="cosine", batch=(5, 9)))
    point = Schedule(rows).at(tokens)
    low, high = ((0.0, 1.0), (1, 5)) if tokens < 100 else ((0.25, 1.0), (5, 9))
    assert low[0] <= point.learning_rate <= low[1]
    assert high[0] <= point.batch <= high[1]


@pytest.mark.parametrize("ends", [(200, 100), (100, 100)])
def test_rows_out_of_order(ends: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="schedule"):
        PretrainConfig(schedule=tuple(row(until) for until in ends))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": (0, 4)}, "batch"),
        ({"mixture": {"general": 0.5}}, "mixture"),
        ({"mixture": {"general": 1.5, "math": -0.5}}, "mixture"),
        ({"mixture": {}}, "mixture"),
        ({"length": 1}, "length"),
    ],
)
def test_rows_that_cannot_be(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        row(100, **changes)


def test_an_empty_table_is_no_steps() -> None:
    # A run with `init_from` may hand its model on as it is.
    assert Schedule(()).steps() == []
