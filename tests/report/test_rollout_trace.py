"""The trace view: what is in the file, and what a reader sees and does in a browser."""

import base64
import heapq
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openmimo import cli
from openmimo.report.rollout_trace import COLUMNS, encode, render_trace
from openmimo.rollout.timeline import Span, StepTimeline, write_timelines
from openmimo.rollout.usage import OUTCOMES, usage

HOSTILE = "</script><script>window.bad = 1</script><img src=x onerror='window.bad = 1'>&\"{{ 1 }}"


def made_step(
    name: str, engines: int, slots: int, samples: int, lane: str = "engine"
) -> StepTimeline:
    """Samples of random lengths and outcomes, each put where there is room first."""
    rng = random.Random(name)
    free = [(0.0, slot, engine) for slot in range(slots) for engine in range(engines)]
    spans = []
    for number in range(samples):
        start, slot, engine = free[0]
        end = start + rng.lognormvariate(0, 0.6)
        heapq.heapreplace(free, (end, slot, engine))
        outcome = rng.choice(OUTCOMES)
        key, tokens = (number // 8, number % 8), round(100 * (end - start))
        spans.append(Span(f"{lane} {engine}", *key, start, end, "generate", outcome, tokens))
        if number % 2:
            reward = Span(f"reward {number % 6}", *key, end, end + 0.2, "reward", outcome)
            spans.append(reward)
    lanes = [f"{lane} {n}" for n in range(engines)] + [f"reward {n}" for n in range(6)]
    seconds = max(span.end for span in spans) + 0.5
    spans.sort(key=lambda span: span.start)
    return StepTimeline(name, tuple(lanes), seconds, seconds * 0.7, tuple(spans))


def test_spans_survive_their_encoding() -> None:
    step = made_step("any", 3, 4, 200)
    data = json.loads(json.dumps(encode(step, usage(step))))
    columns = {
        name: np.frombuffer(base64.b64decode(data["spans"][name]), dtype)
        for name, dtype in COLUMNS.items()
    }
    for number, span in enumerate(step.spans):
        got = {name: column[number].item() for name, column in columns.items()}
        kind, outcome = divmod(got["code"], 8)
        assert data["lanes"][got["lane"]] == span.lane
        assert (got["prompt"], got["sample"], got["tokens"]) == (
            span.prompt, span.sample, span.tokens,
        )  # fmt: skip
        assert (["generate", "reward"][kind], OUTCOMES[outcome]) == (span.kind, span.outcome)
        assert got["start"] == pytest.approx(span.start, rel=1e-6)
        assert got["end"] == pytest.approx(span.end, rel=1e-6)
    assert {data["lanes"][each["lane"]] for each in data["engines"]} == set(step.lanes[:3])


def test_a_page_is_small_and_needs_nothing_else() -> None:
    page = render_trace([made_step("large", 8, 64, 13_400)])
    assert page.count("<script") == 4
    assert len(page) < 1_000_000  # for 20,100 spans
    assert not re.search(r"https?:|@import|url\(|\bfetch\(|XMLHttpRequest|innerHTML|eval\(", page)
    assert "default-src 'none'" in page


def test_text_of_the_timeline_is_escaped() -> None:
    page = render_trace([made_step(HOSTILE, 1, 2, 8, lane=HOSTILE)])
    assert page.count("<script") == 4
    assert "<img" not in page
    assert "window.bad = 1</script>" not in page


def test_the_verb(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    file, page = tmp_path / "t.jsonl", Path("t.html")
    write_timelines(file, [made_step("any", 1, 2, 8)])
    assert cli.main(["trace", str(file)]) == 0
    assert capsys.readouterr().out == f"wrote {page}\n"
    assert page.read_text() == render_trace([made_step("any", 1, 2, 8)])
    assert cli.main(["trace", str(file), "-o", str(tmp_path / "other.html")]) == 0
    assert (tmp_path / "other.html").read_text() == page.read_text()

    (tmp_path / "empty").write_text("")
    before = file.read_bytes()
    for arguments, message in (
        ([tmp_path / "none.jsonl"], "cannot read the timeline"),
        ([page], "line 1: not of a timeline"),
        ([tmp_path / "empty"], "has no rollout step"),
        ([file, "-o", file], "would replace the timeline"),
        ([file, "-o", tmp_path / "no" / "folder.html"], "cannot write"),
    ):
        capsys.readouterr()
        assert cli.main(["trace", *map(str, arguments)]) == 2
        said = capsys.readouterr().err
        assert re.fullmatch(r"mimo: error: [^\n]+\n", said), said
        assert message in said
    assert file.read_bytes() == before


# In a browser.

PLAIN = StepTimeline(
    "first", ("engine 0", "engine 1", "reward 0"), 10.0, 4.0,
    (
        Span("engine 0", 7, 2, 1.0, 5.0, "generate", "kept", 400),
        Span("engine 0", 8, 0, 2.0, 9.0, "generate", "aborted", 90),
        Span("reward 0", 7, 2, 5.0, 6.5, "reward", "kept"),
        Span("engine 1", 7, 1, 0.0, 8.0, "generate", "kept", 640),
    ),
)  # fmt: skip
STEPS = [PLAIN, made_step(HOSTILE, 2, 3, 60, lane=HOSTILE), made_step("wide", 100, 4, 1600)]


@pytest.fixture
def trace(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """The page of `STEPS`, open; fails the test if anything goes wrong in it."""
    file = tmp_path / "trace.html"
    file.write_text(render_trace(STEPS))
    page = browser.new_page(viewport={"width": 1200, "height": 1200}, color_scheme="light")
    page.set_default_timeout(20_000)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda each: each.type == "error" and faults.append(each.text))
    page.on("request", lambda request: request.url == file.as_uri() or faults.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_function("document.getElementById('range').textContent")
    yield page
    assert faults == []
    assert page.evaluate("window.bad") is None
    page.close()


def place(page: Any, lane: str, time: float, track: int) -> dict[str, float]:
    """Where a time of a lane's track is in the canvas."""
    return page.evaluate(
        """([lane, time, track]) => {
            const each = layRows(step, view).find(({ row }) => row.name === lane);
            return { x: painter.x(time), y: barTop(each, track) + barSize(each).thick / 2 };
        }""",
        [lane, time, track],
    )


def colour(page: Any, at: dict[str, float]) -> list[int]:
    """What is painted there; the text in a bar is at its left end."""
    frame = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    page.evaluate(frame)
    return page.evaluate(
        "({ x, y }) => [...painter.context.getImageData(x, y, 1, 1).data].slice(0, 3)", at
    )


def colours_near(page: Any, at: dict[str, float]) -> set[tuple[int, ...]]:
    """Of the 12 by 12 pixels around a point: more than a dash and its gap."""
    data = page.evaluate(
        "({ x, y }) => [...painter.context.getImageData(x - 6, y - 6, 12, 12).data]", at
    )
    return {tuple(data[at : at + 3]) for at in range(0, len(data), 4)}


def css(page: Any, name: str) -> list[int]:
    return page.evaluate("(name) => readColours()[name].bytes", name)


def shown(page: Any) -> dict[str, str]:
    """The summary that is in sight."""
    values = page.eval_on_selector_all(
        "dd", "all => all.filter(e => e.offsetParent).map(e => [e.dataset.key, e.textContent])"
    )
    return dict(values)


def rows(page: Any) -> dict[str, list[str]]:
    """The table in sight: the numbers of each outcome."""
    cells = page.eval_on_selector_all(
        "tr[data-outcome]",
        "all => all.filter(e => e.offsetParent).map(e => [e.dataset.outcome, "
        "[...e.cells].slice(1).map(cell => cell.textContent)])",
    )
    return dict(cells)


@pytest.mark.slow
def test_a_reader_sees_the_numbers_and_the_bars(trace: Any) -> None:
    assert shown(trace) == {
        "seconds": "10 s", "tail": "6 s", "engines": "2", "idle": "20.0 %", "doomed": "20.0 %",
        "wasted": "36.8 %", "reward_peak": "1",
    }  # fmt: skip
    assert rows(trace)["kept"] == ["1", "2", "1,040", "12", "63.2 %"]
    assert rows(trace)["aborted"] == ["1", "1", "90", "7", "36.8 %"]
    assert rows(trace)["reward"] == ["1", "1", "0", "1.5", ""]

    for lane, time, track, name in (
        ("engine 0", 3.3, 0, "kept"),
        ("engine 0", 6.3, 1, "aborted"),
        ("engine 1", 6.3, 0, "kept"),
        ("rewards", 6.3, 0, "reward"),
        ("engine 0", 8.3, 0, "panel"),  # no sample in this track, but another one runs
    ):
        assert colour(trace, place(trace, lane, time, track)) == css(trace, name), (lane, time)
    # Hatched where nothing runs; a line where the last prompt was launched.
    for time, hatched in ((8.3, False), (9.3, True)):
        at = place(trace, "engine 0", time, 0)
        assert (colours_near(trace, at) > {tuple(css(trace, "panel"))}) == hatched, time
    gap = place(trace, "engine 0", 4.0, 4)  # above the bars
    assert tuple(css(trace, "ink")) in colours_near(trace, gap)
    trace.emulate_media(color_scheme="dark")
    dark = colour(trace, place(trace, "engine 0", 6.3, 1))
    assert dark == css(trace, "aborted") == [232, 114, 58]


@pytest.mark.slow
def test_a_reader_points_at_samples(trace: Any) -> None:
    trace.hover("#canvas", position=place(trace, "engine 0", 4.0, 0))
    assert trace.inner_text("#tip") == (
        "prompt 7, sample 2: kept\nengine 0, 1.000 s to 5.000 s (4.000 s)\n"
        "400 tokens, 100.0 a second"
    )
    # Its group is outlined, on the other engine too.
    edge = place(trace, "engine 1", 4.3, 0)
    edge["y"] = trace.evaluate("barTop(layRows(step, view).find((each) => each.index === 1), 0)")
    assert colour(trace, edge) == css(trace, "ink")
    trace.hover("#canvas", position=place(trace, "all engines", 4.0, 0))
    assert trace.inner_text("#tip") == "all engines at 4.000 s\n2 kept, 1 aborted"
    trace.hover("#canvas", position=place(trace, "engine 0", 9.5, 0))
    assert trace.inner_text("#tip") == "engine 0 at 9.500 s\nidle"
    trace.focus("#canvas")
    trace.keyboard.press("Escape")
    assert not trace.is_visible("#tip")
    for sample in (1, 2, 0, 0):  # by start; the reward is no sample
        trace.keyboard.press(".")
        assert f", sample {sample}: " in trace.inner_text("#tip")
    trace.keyboard.press(",")
    assert "sample 2" in trace.inner_text("#tip")


@pytest.mark.slow
def test_a_reader_zooms_and_changes_the_step(trace: Any) -> None:
    def seen() -> tuple[float, float]:
        trace.evaluate("new Promise((done) => requestAnimationFrame(done))")
        low, high = re.findall(r"[\d.]+", trace.inner_text("#range"))
        return float(low), float(high)

    assert seen() == (0, 10)
    trace.click("text=Zoom in")
    assert seen() == (2.5, 7.5)
    trace.focus("#canvas")
    trace.keyboard.press("ArrowRight")
    assert seen() == (3.5, 8.5)
    trace.keyboard.press("0")
    # The wheel leaves what is under the pointer where it is.
    at = place(trace, "engine 0", 2.0, 0)
    trace.hover("#canvas", position=at)
    trace.mouse.wheel(0, -400)
    trace.wait_for_function("view.to < 9")
    low, high = seen()
    assert high - low < 5
    assert place(trace, "engine 0", 2.0, 0)["x"] == pytest.approx(at["x"], abs=1)
    trace.mouse.down()
    trace.mouse.move(0, 0)  # far to the left: the end of the step is not passed
    trace.mouse.up()
    trace.click("text=Whole step")
    trace.click("text=Zoom out")
    assert seen() == (0, 10)

    trace.select_option("#step", label=HOSTILE)
    used = usage(STEPS[1])
    assert shown(trace)["idle"] == f"{100 * used.idle:.1f} %"
    assert shown(trace)["wasted"] == f"{100 * used.wasted:.1f} %"
    for outcome in OUTCOMES:
        work = used.generated[outcome]
        assert rows(trace)[outcome][:3] == [
            str(work.prompts), str(work.samples), f"{work.tokens:,}",
        ]  # fmt: skip
    drawn = trace.evaluate(
        """OUTCOMES.map((outcome) => {
            const own = [...step.start.keys()].filter((span) => {
                return !step.isReward(span) && step.outcome(span) === outcome;
            });
            return own.reduce((sum, span) => sum + step.end[span] - step.start[span], 0);
        })"""
    )
    assert drawn == pytest.approx([used.generated[o].seconds for o in OUTCOMES], rel=1e-4)
    trace.hover("#canvas", position=place(trace, f"{HOSTILE} 1", 1.0, 0))
    assert f"{HOSTILE} 1" in trace.inner_text("#tip")


@pytest.mark.slow
def test_many_engines_are_a_heat_map_until_one_is_looked_at(trace: Any) -> None:
    trace.select_option("#step", label="wide")
    trace.wait_for_selector("text=A row is an engine")
    step = STEPS[2]
    trace.evaluate("painter.paint(step, view, -1)")
    row = "layRows(step, view).find(({ row }) => row.name === 'engine 50')"
    middle = trace.evaluate(f"{row}.top + {row}.height / 2")
    own = [s for s in step.spans if s.lane == "engine 50" and s.kind == "generate"]
    last = max(span.end for span in own)
    end = trace.evaluate("([t]) => painter.x(t)", [last])
    assert colour(trace, {"x": end + 4, "y": middle}) == css(trace, "idle")
    assert colour(trace, {"x": end - 4, "y": middle}) != css(trace, "idle")

    # The larger part gives the colour, all samples its strength: here 3 of at most 4, 2 aborted.
    mixed = trace.evaluate(
        """() => {
            const pixels = new Uint32Array(1);
            painter.heatRow({ means: [1, 0, 0, 2, 0, 0], same: [0] }, pixels);
            return [...new Uint8Array(pixels.buffer)].slice(0, 3);
        }"""
    )
    strength = 0.25 + 0.75 * 3 / 4
    for got, hue, ground in zip(mixed, css(trace, "aborted"), css(trace, "page"), strict=True):
        assert got == pytest.approx(strength * hue + (1 - strength) * ground, abs=1)

    trace.dblclick("#canvas", position={"x": 600, "y": middle})
    trace.wait_for_selector("text=A bar is a sample")
    names = trace.evaluate("layRows(step, view).filter((e) => e.index >= 0).map((e) => e.row.name)")
    assert "engine 50" in names
    span = max(own, key=lambda span: span.end - span.start)
    track = trace.evaluate(
        f"{row}.row.tracks[{row}.row.bars.findIndex((s) => step.prompt[s] === {span.prompt}"
        f" && step.sample[s] === {span.sample})]"
    )
    at = place(trace, "engine 50", (span.start + span.end) / 2, track)
    assert colour(trace, at) == css(trace, span.outcome)
    trace.dblclick("#canvas", position=at)
    trace.wait_for_selector("text=A row is an engine")
