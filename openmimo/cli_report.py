"""The verbs that render pages: report, of a run, and trace, of rollout steps."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from openmimo.errors import UserError


def add_report_verbs(verbs: Any) -> None:
    """Add the verbs to argparse's subparsers; each sets `handler`."""
    text = "render the report of a run"
    verb = verbs.add_parser("report", help=text)
    verb.add_argument("run", metavar="RUN", type=Path, help="the run's folder")
    verb.set_defaults(handler=report)

    text = "draw rollout steps: engines, samples, rewards, aborts and idle time, as one HTML file"
    verb = verbs.add_parser("trace", help=text, description=text)
    help = "a timeline, such as RUN/stages/rl/rollout_timeline.jsonl"
    verb.add_argument("file", metavar="FILE", type=Path, help=help)
    help = "(default: FILE's name with .html, in this folder)"
    verb.add_argument("-o", "--out", metavar="OUT", type=Path, help=help)
    verb.set_defaults(handler=trace)


def report(options: argparse.Namespace) -> None:
    """`mimo report RUN`."""
    from openmimo.report import render_report

    print(f"wrote {render_report(options.run).html}")


def trace(options: argparse.Namespace) -> None:
    """`mimo trace FILE`."""
    from openmimo.report.pages import write
    from openmimo.report.rollout_trace import render_trace
    from openmimo.rollout.timeline import read_timelines

    # Not beside FILE: that is a stage's folder, where a finished stage misses what is deleted.
    out = options.out or Path(options.file.with_suffix(".html").name)
    steps = list(read_timelines(options.file))
    if not steps:
        raise UserError(f"{options.file} has no rollout step")
    if out == options.file:
        raise UserError(f"{out} would replace the timeline: name another --out")
    write(out, render_trace(steps))
    print(f"wrote {out}")
