"""Timelines as files, and the sums of their spans."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.errors import UserError
from openmimo.rollout.timeline import (
    LatestTimelines,
    Span,
    StepTimeline,
    read_timelines,
    write_timelines,
)
from openmimo.rollout.usage import OUTCOMES, EngineTime, Work, usage

SPANS = (
    Span("engine 0", 0, 0, 0.0, 4.0, "generate", "kept", 40),
    Span("engine 0", 0, 1, 1.0, 3.0, "generate", "kept", 20),
    Span("engine 0", 1, 0, 3.0, 6.0, "generate", "aborted", 30),
    Span("engine 1", 2, 0, 2.0, 3.0, "generate", "lost", 5),
    Span("reward 0", 0, 1, 3.0, 3.5, "reward", "kept"),
    Span("engine 1", 2, 0, 3.0, 5.0, "generate", "filtered", 21),
    Span("reward 0", 0, 0, 4.0, 6.0, "reward", "kept"),
    Span("reward 1", 2, 0, 5.0, 5.5, "reward", "filtered"),
)
STEP = StepTimeline("ours", ("engine 0", "engine 1", "engine 2", "reward 0", "reward 1"), 8.0, 3.0,
                    SPANS)  # fmt: skip


def test_the_sums_of_a_step() -> None:
    used = usage(STEP)
    # Of 8 s: engine 0 works for 6, the last 2 of them on what is aborted.
    assert used.engines == {
        "engine 0": EngineTime(idle=0.25, doomed=0.25),
        "engine 1": EngineTime(idle=0.625, doomed=0.125),
        "engine 2": EngineTime(idle=1.0, doomed=0.0),
    }
    assert used.idle == pytest.approx(1.875 / 3)
    assert used.doomed == pytest.approx(0.375 / 3)
    assert used.tail == 5.0
    assert used.generated == {
        "kept": Work(1, 2, 60, 6.0),
        "filtered": Work(1, 1, 21, 2.0),
        "surplus": Work(0, 0, 0, 0.0),
        "aborted": Work(1, 1, 30, 3.0),
        "lost": Work(1, 1, 5, 1.0),
    }
    assert used.wasted == pytest.approx(4 / 12)
    assert used.rewards == Work(2, 3, 0, 3.0)
    assert used.reward_peak == 2


def test_an_engine_that_computes_a_reward_is_idle() -> None:
    pause = Span("engine 0", 0, 1, 3.0, 3.5, "reward", "kept")
    step = replace(STEP, spans=(*SPANS[:2], pause), seconds=4.0)
    assert usage(step).engines["engine 0"] == EngineTime(idle=0.125, doomed=0.0)


def test_a_step_of_nothing() -> None:
    used = usage(StepTimeline("none", (), 0.0, 0.0, ()))
    assert (used.idle, used.wasted, used.reward_peak) == (0.0, 0.0, 0)


@st.composite
def timelines(draw: st.DrawFn) -> StepTimeline:
    lanes = tuple(draw(st.lists(st.text(max_size=5), min_size=1, max_size=4, unique=True)))
    seconds = draw(st.floats(0, 1e6))
    times = st.floats(0, seconds)
    small = st.integers(0, 2**31 - 1)
    spans = st.builds(
        lambda lane, times, *rest: Span(lane, *rest[:2], *sorted(times), *rest[2:]),
        st.sampled_from(lanes), st.tuples(times, times), small, small,
        st.sampled_from(("generate", "reward")), st.sampled_from(OUTCOMES), small,
    )  # fmt: skip
    return StepTimeline(
        draw(st.text()), lanes, seconds, draw(times), tuple(draw(st.lists(spans, max_size=6)))
    )


@given(st.lists(timelines(), max_size=3))
def test_a_file_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, steps: list[StepTimeline]
) -> None:
    path = tmp_path_factory.mktemp("timeline") / "t.jsonl"
    write_timelines(path, steps)
    assert list(read_timelines(path)) == steps


@given(timelines())
def test_engine_time_is_a_share(step: StepTimeline) -> None:
    for engine in usage(step).engines.values():
        assert -1e-9 <= engine.idle <= 1 + 1e-9
        assert -1e-9 <= engine.doomed <= 1 - engine.idle + 1e-9


HEAD = {"step": "s", "lanes": ["engine 0"], "seconds": 9.0, "last_launch": 1.0}
SPAN = {"lane": "engine 0", "prompt": 0, "sample": 0, "start": 1.0, "end": 2.0,
        "kind": "generate", "outcome": "kept", "tokens": 3}  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([SPAN], "line 1: not of a timeline: a span before any step"),
        ([HEAD, "{"], "line 2: not of a timeline: Expecting"),
        ([HEAD, 5], "line 2: not of a timeline"),
        ([HEAD, {**SPAN, "start": 3.0}], "line 2: not of a timeline: no 0 <= start <= end"),
        ([HEAD, {**SPAN, "end": 9.5}], "<= the step's seconds"),
        ([HEAD, {**SPAN, "start": float("nan")}], "no 0 <= start"),
        ([HEAD, {**SPAN, "outcome": "won"}], "line 2: not of a timeline: outcome: Input should"),
        ([HEAD, {**SPAN, "kind": None}], "kind: Input should"),
        ([HEAD, {**SPAN, "prompt": -1}], "prompt, sample and tokens must be"),
        ([HEAD, {**SPAN, "tokens": 2**32}], "prompt, sample and tokens must be"),
        ([HEAD, {**SPAN, "lane": "engine 1"}], "lane 'engine 1' is not one of the step's"),
        ([HEAD, {"lane": "engine 0"}], "prompt: Field required"),
        ([{**HEAD, "seconds": float("inf")}], "no 0 <= last_launch <= seconds"),
        ([{**HEAD, "last_launch": 10.0}], "no 0 <= last_launch <= seconds"),
        ([{"step": "s"}], "line 1: not of a timeline: lanes: Field required"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, lines: list[Any], message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(e if isinstance(e, str) else json.dumps(e) for e in lines))
    with pytest.raises(UserError) as error:
        list(read_timelines(path))
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for name in ("bytes", "nowhere", "."):
        with pytest.raises(UserError, match="cannot read the timeline"):
            list(read_timelines(tmp_path / name))


def test_the_latest_steps_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "latest.jsonl"
    latest = LatestTimelines(path, 2)
    for number in range(4):
        latest.add(f"rl step {number}", STEP)
    assert [step.name for step in read_timelines(path)] == ["rl step 2, ours", "rl step 3, ours"]
    assert next(read_timelines(path)).spans == SPANS
    assert list(tmp_path.iterdir()) == [path]
    LatestTimelines(tmp_path / "none", 0).add("rl step 1", STEP)
    assert not (tmp_path / "none").exists()
