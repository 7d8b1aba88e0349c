"""Renders report.md, report.html and report.json of a run folder."""

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from openmimo.errors import UserError
from openmimo.report.load import STAGES, Run, load_run
from openmimo.report.machine import hardware, versions
from openmimo.report.summary import VARIANTS, summarise
from openmimo.report.tables import make_tables, number, percent

NO_PLOTS = (
    "No plots: matplotlib is not installed. Get them with `pip install openmimo[plots]`, "
    "then `mimo report`."
)
EXAMPLES_SHOWN = 3
CHARACTERS_SHOWN = 2000


@dataclass(frozen=True)
class ReportPaths:
    markdown: Path
    html: Path
    json: Path


def render_report(run_dir: Path) -> ReportPaths:
    """Write RUN/report.{md,html,json} from the run's files; a partial run names what it lacks.

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
        "no_plots": NO_PLOTS if plots is None else None,
        "tables": make_tables(summary),
        "plots": {name: Markup(svg) for name, svg in (plots or {}).items()},
        **summary,
    }
    paths = ReportPaths(*(run_dir / f"report.{kind}" for kind in ("md", "html", "json")))
    _write(paths.markdown, _page("report.md.j2", values))
    _write(paths.html, _page("report.html.j2", values))
    _write(paths.json, json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
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


def _page(template: str, values: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("openmimo.report"),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, number=number, cell=_cell, fenced=_fenced)
    return environment.get_template(template).render(values)


def _cell(value: Any) -> str:
    """Text of the data in a Markdown table: it must neither end the cell nor be HTML."""
    text = " ".join(str(value).split()).replace("\\", "\\\\").replace("|", "\\|")
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _fenced(text: str) -> str:
    """A Markdown code block that no backticks in the text can close."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error}): free space or fix its rights") from error
