"""Spans of a step: what became of each, and files of them."""

from pathlib import Path

import pytest

from openmimo.errors import UserError
from openmimo.rollout.events import Done, StepStats
from openmimo.rollout.timeline import (
    Recorder,
    Span,
    StepTimeline,
    read_timelines,
    write_timelines,
)


def recorded() -> StepTimeline:
    """Prompt 0 is kept, 1 not valid, 2 not needed, 3 stopped."""
    recorder = Recorder("ours", ["engine 0", "engine 1"])
    recorder.launch(0.5)
    for prompt in range(4):
        recorder.begin("generate", prompt, 0, f"engine {prompt % 2}", 1.0 + prompt)
    recorder.end("generate", 0, 0, 2.0, tokens=7, lost=True)
    recorder.begin("generate", 0, 0, "engine 1", 2.5)
    recorder.end("generate", 0, 0, 6.0, tokens=9)
    recorder.begin("reward", 0, 0, "reward 0", 6.0)
    for prompt in (1, 2):
        recorder.end("generate", prompt, 0, 7.0)
    assert recorder.oldest() == ("generate", (3, 0), "engine 1", 4.0)
    recorder.abort(3, 8.0)
    assert recorder.oldest() == ("reward", (0, 0), "reward 0", 6.0)
    recorder.end("generate", 3, 0, 9.0)  # too late to count
    stats = StepStats(4, 1, 1, 1, 2, 1, 1, 0, 0, 0, 0)
    return recorder.finish(Done((0,), (False, True), False, stats), {3}, 10.0)


def test_each_span_has_its_outcome() -> None:
    step = recorded()
    assert [(span.prompt, span.kind, span.outcome, span.end) for span in step.spans] == [
        (0, "generate", "lost", 2.0),
        (1, "generate", "filtered", 7.0),
        (0, "generate", "kept", 6.0),
        (2, "generate", "surplus", 7.0),
        (3, "generate", "aborted", 8.0),
        (0, "reward", "kept", 10.0),
    ]
    assert step.lanes == ("engine 0", "engine 1", "reward 0")
    assert (step.seconds, step.last_launch) == (10.0, 0.5)


def test_files_come_back(tmp_path: Path) -> None:
    steps = [recorded(), StepTimeline("empty", ("engine 0",), 1.0, 0.0, ())]
    write_timelines(tmp_path / "t.jsonl", steps)
    assert list(read_timelines(tmp_path / "t.jsonl")) == steps
    assert isinstance(steps[0].spans[0], Span)


@pytest.mark.parametrize("text", ["{", '{"lane": "engine 0"}', '{"step": "a"}'])
def test_a_line_that_is_no_timeline_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.jsonl").write_text(text + "\n")
    with pytest.raises(UserError, match=r"t.jsonl, line 1: not of a timeline"):
        list(read_timelines(tmp_path / "t.jsonl"))
    with pytest.raises(UserError, match="cannot read"):
        list(read_timelines(tmp_path / "none.jsonl"))
