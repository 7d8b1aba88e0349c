"""Renders report.md, report.html and report.json of a run folder."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from openmimo.report.load import STAGES, Run, load_run
from openmimo.report.machine import hardware, versions
from openmimo.report.pages import page, write
from openmimo.report.rollout_trace import render_trace
from openmimo.report.summary import VARIANTS, summarise
from openmimo.report.tables import make_tables

NO_PLOTS = (
    "No plots: matplotlib is not installed. Get them with `pip install openmimo[plots]`, "
    "then `mimo report`."
)
TRACE = "rollout_trace.html"
"""Beside the report, which links to it, if RL has left timelines."""
EXAMPLES_SHOWN = 3
CHARACTERS_SHOWN = 2000


@dataclass(frozen=True)
class ReportPaths:
    markdown: Path
    html: Path
    json: Path


def render_report(run_dir: Path) -> ReportPaths:
    """Write RUN/report.{md,html,json} from the run's files, and RUN/rollout_trace.html if RL has
    left timelines; a partial run names what it lacks.

    Without matplotlib the pages have no plots and say how to get them. The hardware and versions
    are those of the machine that renders. Raises UserError for a folder that is no run, a corrupt
    file in it, or one that cannot be written.
    """
    run = load_run(run_dir)
    summary = {**summarise(run), "hardware": hardware(), "versions": versions()}
    plots = _plots(run)
    values = {
        "config": run.config_text,
        "titles": VARIANTS,
        "examples": _examples(run),
        "next_commands": _next_commands(run),
        "mixture_captions": {
            f"mixture_{name}": f"Mixture in {name}: realised, and the target (line)."
            for name in run.mixture
        },
        "trace": TRACE if run.rollouts else None,
        "no_plots": NO_PLOTS if plots is None else None,
        "tables": make_tables(summary),
        "plots": {name: Markup(svg) for name, svg in (plots or {}).items()},
        **summary,
    }
    paths = ReportPaths(*(run_dir / f"report.{kind}" for kind in ("md", "html", "json")))
    if run.rollouts:
        write(run_dir / TRACE, render_trace(run.rollouts))
    write(paths.markdown, page("report.md.j2", values))
    write(paths.html, page("report.html.j2", values))
    write(paths.json, json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return paths


def _plots(run: Run) -> dict[str, str] | None:
    try:
        from openmimo.report.plots import draw_plots
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        return None
    return draw_plots(run)


def _examples(run: Run) -> dict[str, list[dict[str, Any]]]:
    """A few answers of each variant, best variant first, long ones cut."""
    variants = run.results.variants if run.results else {}
    return {
        name: [
            {key: _cut(value) for key, value in example.model_dump().items()}
            for example in variants[name].examples[:EXAMPLES_SHOWN]
        ]
        for name in reversed(VARIANTS)
        if name in variants and variants[name].examples
    }


def _next_commands(run: Run) -> list[str]:
    if len(run.done) < len(STAGES):
        return ["# Repeat the command that started this run: finished stages are skipped."]
    return [
        f"mimo chat {shlex.quote(str(run.folder / variant))}{note}"
        for variant, note in (("rl", ""), ("base", "   # the same question, before RL"))
    ]


def _cut(value: Any) -> Any:
    if isinstance(value, str) and len(value) > CHARACTERS_SHOWN:
        return value[:CHARACTERS_SHOWN] + " […]"
    return value
