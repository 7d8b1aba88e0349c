"""The schedule's arithmetic, and the report's own table in the `mimo-7b` preset."""

import math
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
