import json
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.errors import UserError
from openmimo.report import ReportPaths, render_report
from openmimo.report.load import STAGES
from openmimo.report.pages import fenced
from openmimo.rollout.timeline import Span, StepTimeline, write_timelines


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def rendered(shared_run: Path) -> ReportPaths:
    return render_report(shared_run)


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "openmimo.report.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def test_json_holds_the_agreed_keys(rendered: ReportPaths, eval_results: dict) -> None:
    report = json.loads(rendered.json.read_text())
    expected = eval_results["variants"]
    for name in ("base", "rl_zero", "sft", "rl"):
        for key in ("pass_at_1", "low", "high", "n"):
            assert report["variants"][name][key] == expected[name][key]
    assert report["mtp_acceptance"] == [0.91, 0.78, 0.64]
    assert report["seconds"] == pytest.approx(1287.4)
    assert report["peak_memory_gb"] == pytest.approx(0.8 + 8 * 0.21)
    assert report["seed"] == 1
    assert report["missing"] == []
    for page in (rendered.html, rendered.markdown):
        assert "Prompts that are solved leave for the easy pool" in page.read_text()
    assert [claim["held"] for claim in report["claims"]] == [True, True, True]
    assert report["versions"]["python"] == sys.version.split()[0]


def test_both_pages_say_the_headline(rendered: ReportPaths) -> None:
    for text in (rendered.markdown.read_text(), Page(rendered.html.read_text()).text):
        assert "37.3 to 45.1 %" in text  # 0.412 of 600, worked out by hand
        assert "does not show what MiMo-7B can do" in text
        assert "mimo chat" in text
        assert "640,000" in text
    assert "Base < SFT < RL: **held**" in rendered.markdown.read_text()


def test_html_is_self_contained(rendered: ReportPaths) -> None:
    html = rendered.html.read_text()
    page = Page(html)
    tags = Counter(tag for tag, _ in page.tags)
    assert tags["svg"] == 24
    assert not tags.keys() & {"script", "link", "img", "iframe", "object"}
    links = [
        value or ""
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href")
    ]
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"url\((?!#)|@import", html)


def test_panels_share_one_page_without_clashing(rendered: ReportPaths) -> None:
    page = Page(rendered.html.read_text())
    ids = Counter(attributes["id"] for _, attributes in page.tags if "id" in attributes)
    # A marker may be defined twice with the same shape; a clip path cut for another panel may not.
    clips = [attrs["id"] for tag, attrs in page.tags if tag == "clippath"]
    assert clips
    assert all(ids[clip] == 1 for clip in clips)


def test_plot_colours_follow_the_theme(rendered: ReportPaths) -> None:
    html = rendered.html.read_text()
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) <= {"#ffffff"}  # only hidden backgrounds
        assert "var(--ink)" in svg
    defined = set(re.findall(r"(--\w+):", html))
    assert set(re.findall(r"var\((--\w+)\)", html)) <= defined


def test_the_same_run_gives_the_same_bytes(rendered: ReportPaths) -> None:
    first = rendered.html.read_bytes()
    assert render_report(rendered.html.parent).html.read_bytes() == first


def test_text_of_the_model_is_escaped(run: Path, eval_results: dict, no_matplotlib: None) -> None:
    example = eval_results["variants"]["rl"]["examples"][0]
    example["response"] = "<script>alert(1)</script>\n```\n# not a heading"
    example["answer"] = "a|b <b>"
    eval_results["variants"]["rl"]["by_family"] = {
        "<i>pipe|": {"pass_at_1": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    }
    (run / "stages/eval/results.json").write_text(json.dumps(eval_results))
    paths = render_report(run)
    tags = {tag for tag, _ in Page(paths.html.read_text()).tags}
    assert not tags & {"script", "b", "i"}
    markdown = paths.markdown.read_text()
    assert "````text\n<script>alert(1)</script>\n```\n# not a heading\n````" in markdown
    assert "| &lt;i>pipe\\| |" in markdown


def test_rollout_steps_are_drawn_beside_the_report(run: Path, no_matplotlib: None) -> None:
    span = Span("engine 0", 0, 0, 0.0, 1.0, "generate", "kept", 5)
    for stage in ("rl", "rl_zero"):
        step = StepTimeline(f"{stage} step 9, ours", ("engine 0",), 2.0, 0.0, (span,))
        write_timelines(run / "stages" / stage / "rollout_timeline.jsonl", [step])
    paths = render_report(run)
    links = [attrs.get("href") for tag, attrs in Page(paths.html.read_text()).tags if tag == "a"]
    assert links == ["rollout_trace.html"]
    assert "(rollout_trace.html)" in paths.markdown.read_text()
    text = Page((run / "rollout_trace.html").read_text()).text
    assert text.index("rl_zero step 9, ours") < text.index("rl step 9, ours")

    (run / "stages" / "rl" / "rollout_timeline.jsonl").write_text("{}")
    with pytest.raises(UserError, match="line 1: not of a timeline"):
        render_report(run)


@given(st.text(alphabet="`~a\n ", max_size=40))
def test_no_text_closes_its_code_block(text: str) -> None:
    fence = fenced(text).split("text\n", 1)[0]
    assert set(fence) == {"`"}
    assert len(fence) >= 3
    assert fence not in text


def test_long_answers_are_cut(run: Path, eval_results: dict, no_matplotlib: None) -> None:
    eval_results["variants"]["base"]["examples"][0]["response"] = "word " * 5000
    (run / "stages/eval/results.json").write_text(json.dumps(eval_results))
    assert len(render_report(run).markdown.read_text()) < 20_000


@pytest.mark.parametrize("stage", STAGES)
def test_a_missing_stage_is_named(run: Path, stage: str, no_matplotlib: None) -> None:
    for file in (run / "stages" / stage).iterdir():
        file.unlink()
    paths = render_report(run)
    assert json.loads(paths.json.read_text())["missing"] == [f"stage {stage} has not finished"]
    assert f"stage {stage} has not finished" in paths.markdown.read_text()
    assert f"stage {stage} has not finished" in Page(paths.html.read_text()).text
    assert "mimo chat" not in paths.markdown.read_text()


@pytest.mark.parametrize("schedule", ["[]", "[{ stage = 'one' }]"])
def test_pre_training_without_a_step_lacks_no_metrics(
    run: Path, schedule: str, no_matplotlib: None
) -> None:
    """Such a run hands on the model of init_from; any other should have metrics."""
    (run / "stages/pretrain/metrics.jsonl").write_text("")
    (run / "config.toml").write_text(f"[pretrain]\nschedule = {schedule}\n")
    missing = json.loads(render_report(run).json.read_text())["missing"]
    assert missing == ([] if schedule == "[]" else ["stage pretrain has no metrics"])


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    paths = render_report(tmp_path)
    report = json.loads(paths.json.read_text())
    assert report["variants"] == dict.fromkeys(("base", "rl_zero", "sft", "rl"))
    assert (report["mtp_acceptance"], report["seconds"], report["peak_memory_gb"]) == ([], 0, None)
    assert len(report["missing"]) == len(STAGES)
    assert [claim["held"] for claim in report["claims"]] == [None, None, None]
    assert "Not in this run yet." in paths.html.read_text()


def test_plots_of_a_run_in_its_first_steps(run: Path) -> None:
    for stage in ("rl", "rl_zero", "sft", "mtp_heads", "eval"):
        for file in (run / "stages" / stage).iterdir():
            file.unlink()
    metrics = run / "stages/pretrain/metrics.jsonl"
    rows = metrics.read_text().splitlines()[:2]
    rows[1] = re.sub(r'"loss": [\d.]+', '"loss": null', rows[1])  # MetricsWriter's NaN
    metrics.write_text("\n".join(rows) + '\n{"step": 3, "lo')  # torn while the run writes
    assert render_report(run).html.read_text().count("<svg") == 10


def test_levels_are_drawn_of_the_problem_whose_tests_differ_most(rendered: ReportPaths) -> None:
    text = Page(rendered.html.read_text()).text
    assert "7 tests, by level and pass rate" in text
    assert "level 1" in text


def test_damaged_levels_are_one_line(run: Path) -> None:
    file = run / "stages/difficulty/problems.jsonl"
    file.write_text('{"id": "a", "domain": "code", "levels": [[0]]}\n')
    with pytest.raises(UserError, match=r"problems\.jsonl: Field required"):
        render_report(run)


def test_without_matplotlib_the_pages_say_how_to_get_plots(run: Path, no_matplotlib: None) -> None:
    paths = render_report(run)
    assert "<svg" not in paths.html.read_text()
    for path in (paths.html, paths.markdown):
        assert "pip install openmimo[plots]" in path.read_text()


def test_rendering_imports_no_stage_and_no_torch(run: Path) -> None:
    code = (
        "import sys, pathlib; from openmimo.report import render_report\n"
        "sys.modules['matplotlib'] = None; render_report(pathlib.Path(sys.argv[1]))\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in ('openmimo', 'torch')))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, run], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    names = re.findall(r"'([\w.]+)'", out)
    allowed = {"openmimo", "openmimo.errors", "openmimo.metrics", "openmimo.data"}
    allowed.add("openmimo.data.documents")  # reads JSON Lines, and imports nothing
    allowed |= {f"openmimo.rollout{part}" for part in ("", ".events", ".timeline", ".usage")}
    allowed |= {"openmimo.runs", "openmimo.units", "openmimo.world"}  # for timelines' atomic write
    assert {name for name in names if not name.startswith("openmimo.report")} == allowed


BROKEN = {
    "stages/rl/metrics.jsonl": ['{"step": 1}\n{"step"\n{"step": 3}\n', "[1]\n", '{"a": 1}\n'],
    "stages/eval/results.json": ["{", '{"variants": []}', '{"variants": {"rl": {"n": 1}}}', "NaN"],
    "stages/data/stats.json": ['{"dedup": {"near": NaN}}', "3"],
    "stages/sft/done.json": ["", '{"seconds": "soon", "peak_memory_gb": 1}'],
    "config.toml": ["seed = = 1"],
}


@pytest.mark.parametrize(
    ("file", "text"), [(file, text) for file, texts in BROKEN.items() for text in texts]
)
def test_a_corrupt_file_is_named(run: Path, file: str, text: str) -> None:
    (run / file).write_text(text)
    with pytest.raises(UserError, match=re.escape(file)):
        render_report(run)
    assert not (run / "report.html").exists()


def test_bytes_that_are_no_text(run: Path) -> None:
    (run / "config.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"config\.toml"):
        render_report(run)


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir, Path.touch])
def test_what_is_no_run_folder(tmp_path: Path, make: object) -> None:
    make(tmp_path / "x")  # type: ignore[operator]
    with pytest.raises(UserError, match="not a run folder"):
        render_report(tmp_path / "x")


def test_a_report_that_cannot_be_written(run: Path, no_matplotlib: None) -> None:
    (run / "report.html").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*report\.html"):
        render_report(run)
