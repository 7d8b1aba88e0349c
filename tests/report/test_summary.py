import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.report.load import Score, load_run
from openmimo.report.plots import _binned
from openmimo.report.summary import (
    judge_best,
    judge_claim,
    rl_ends,
    series,
    split_stages,
    training_phases,
)
from openmimo.report.tables import number


def scores(**values: float) -> dict[str, Score]:
    """Every interval is the value, plus and minus 2 points."""
    return {
        name: Score(pass_at_1=value, low=value - 0.02, high=value + 0.02, n=500)
        for name, value in values.items()
    }


@pytest.mark.parametrize(
    ("sft", "held", "words"),
    [
        (0.50, True, "SFT − Base = +10.0 points, intervals apart"),
        (0.43, False, "SFT − Base = +3.0 points, intervals overlap"),
        (0.30, False, "SFT − Base = -10.0 points, intervals apart"),
        (0.59, False, "RL − SFT = +1.0 points, intervals overlap"),
    ],
)
def test_a_claim_holds_only_with_every_interval_apart(sft: float, held: bool, words: str) -> None:
    claim = judge_claim(("base", "sft", "rl"), scores(base=0.4, sft=sft, rl=0.6))
    assert claim["claim"] == "Base < SFT < RL"
    assert claim["held"] is held
    assert words in claim["text"]
    assert sum(claim["differences"]) == pytest.approx(20)


def test_a_claim_without_its_variants_is_not_judged() -> None:
    claim = judge_claim(("base", "rl_zero"), scores(base=0.4))
    assert claim["held"] is None
    assert "RL-Zero" in claim["text"]


@pytest.mark.parametrize(
    ("rl", "held", "words"),
    [
        (0.60, True, "RL − RL-Zero, the best of the others, = +10.0 points, intervals apart"),
        (0.51, True, "= +1.0 points, intervals overlap"),
        (0.50, False, "= +0.0 points"),
        (0.45, False, "= -5.0 points, intervals apart"),
    ],
)
def test_the_best_is_ahead_of_every_other(rl: float, held: bool, words: str) -> None:
    claim = judge_best(scores(base=0.3, sft=0.4, rl_zero=0.5, rl=rl))
    assert claim["held"] is held
    assert words in claim["text"]
    assert judge_best(scores(base=0.3, rl=rl))["held"] is None


def test_phases_show_the_change_of_stage_3(run: Path) -> None:
    phases = {phase["phase"]: phase for phase in training_phases(load_run(run))}
    assert list(phases) == ["stage 1", "stage 2", "stage 3", "MTP layers", "SFT"]
    assert phases["stage 1"]["mtp_weight"] == [0.3, 0.1]
    assert phases["stage 2"]["rope_base"] == [10_000, 10_000]
    assert phases["stage 3"]["rope_base"] == [640_000, 640_000]
    assert phases["stage 3"]["seq_len"] == [512, 512]
    assert len(phases["SFT"]["mtp_loss"]) == 3


def test_phases_show_acceptance_speed_and_incidents(run: Path) -> None:
    phases = {phase["phase"]: phase for phase in training_phases(load_run(run))}
    assert phases["MTP layers"]["mtp_acceptance"] == pytest.approx([0.8, 0.7, 0.6])
    assert phases["stage 1"]["peak_share"] == pytest.approx(0.41)
    # Counters go on over the stages: two spikes in all, the second one not in stage 1.
    spikes = [phases[f"stage {stage}"]["loss_spikes"] for stage in (1, 2, 3)]
    assert spikes[0] == 1
    assert sum(spikes) == 2
    assert phases["SFT"]["loss_spikes"] is None  # not kept is not zero
    assert phases["SFT"]["peak_share"] is None


@pytest.mark.parametrize("names", [(1, 1, 2), ("1", "1", "2"), ("stage1", "stage1", "stage2")])
def test_stages_are_split_however_they_are_written(names: tuple) -> None:
    rows = [{"step": step, "stage": name} for step, name in enumerate(names)]
    assert [(name, len(part)) for name, part in split_stages(rows)] == [("1", 2), ("2", 1)]


def test_rl_ends_are_means_and_totals() -> None:
    rows = [{"step": step, "pass_rate": step / 40, "unscorable": 1} for step in range(40)]
    ends = rl_ends(rows)
    assert ends is not None
    assert ends["pass_rate"] == pytest.approx([4.5 / 40, 34.5 / 40])
    assert ends["unscorable"] == 40
    assert ends["entropy"] == [None, None]  # absent is not zero
    assert rl_ends([]) is None


def test_series_leaves_out_what_is_no_number() -> None:
    rows = [
        {"step": 1, "loss": 2.0, "mtp_loss": [3.0, 4.0]},
        {"step": 2, "loss": None, "mtp_loss": [3.5]},
        {"step": 3, "loss": "x"},
    ]
    assert series(rows, "loss") == [(1, 2.0)]
    assert series(rows, "mtp_loss", 1) == [(1, 4.0)]
    assert series(rows, "loss", x="tokens") == []


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=700), st.integers(1, 300))
def test_binning_bounds_the_points_and_keeps_the_end(values: list[float], most: int) -> None:
    points = [(float(x), y) for x, y in enumerate(values)]
    binned = _binned(points, most)
    assert len(binned) <= most
    assert binned[-1][0] == len(values) - 1
    assert all(min(values) - 1e-9 <= y <= max(values) + 1e-9 for _, y in binned)
    if len(points) <= most:
        assert binned == points


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (True, "True"), (0, "0"), (12_345, "12,345"), (1e-4, "0.0001"), (71.42, "71.4"),
     (1234.6, "1,235"), ("greedy", "greedy"), ([1], "[1]"), (math.pi, "3.14")],
)  # fmt: skip
def test_number(value: object, text: str) -> None:
    assert number(value) == text
