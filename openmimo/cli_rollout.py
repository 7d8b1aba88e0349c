"""The verb rollout-bench: policies of the rollout engine side by side, simulated."""

from __future__ import annotations

import argparse
import statistics
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmimo.cli_plan import write_json
from openmimo.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from openmimo.rollout.simulator.bench import Mean, Runs, TableRow
    from openmimo.rollout.simulator.published import Published
    from openmimo.rollout.simulator.settings import Setting

SETTINGS = (
    "report", "nano", "small", "engines-8", "engines-64", "valid-20", "valid-60", "valid-80",
    "code", "early", "late", "first-epoch",
)  # fmt: skip

WIDTH = 130
"""Columns of a printed table, whatever the terminal: a narrower one may wrap whole lines."""

MEASURES = ("rollout_speedup", "overall_speedup", "idle", "waste", "length_bias", "share_of_bound")
"""What the JSON says of a policy."""


def add_rollout_verb(verbs: Any) -> None:
    """Add the verb to argparse's subparsers; it sets `handler`."""
    text = "simulate rollout policies on the same traces: tables 2 and 3 of the MiMo report"
    verb = verbs.add_parser("rollout-bench", help=text, description=text)
    add = verb.add_argument
    add("--setting", choices=SETTINGS, default="report", help="(default: report)")
    add("--engines", type=int, metavar="N", help="the same work on so many engines")
    add("--trace", type=Path, metavar="FILE", help="replay a recorded trace (docs/rollout.md)")
    add("--policies", metavar="NAME,...", help="only these, and naive (default: all)")
    add("--seeds", type=int, default=3, metavar="N", help="steps of each policy (default: 3)")
    add("--workers", type=int, default=2, metavar="N", help="processes (default: 2)")
    text = "as well, run a model's steps and validations for real (docs/rollout.md)"
    add("--real", type=Path, metavar="MODEL", help=text)
    add("--problems", type=Path, metavar="FILE", help="of --real: problems as RL reads them")
    add(
        "--steps", type=int, default=5, help="of --real, each by all policies in turns (default: 5)"
    )
    add("--record", type=Path, metavar="FILE", help="of --real: write naive's steps as a trace")
    text = "write what each worker did in the first step, by policy, for the trace view"
    add("--timeline", type=Path, metavar="FILE", help=text)
    add("--json", metavar="FILE", help="write the figures there, - for standard output")
    verb.set_defaults(handler=rollout_bench)


def rollout_bench(options: argparse.Namespace) -> None:
    """`mimo rollout-bench`: the tables, and with --json the figures of Table 2."""
    from openmimo.rollout.simulator.bench import replayed, simulated, summary, timelines
    from openmimo.rollout.simulator.settings import SETTINGS as KNOWN
    from openmimo.rollout.simulator.trace import read_trace
    from openmimo.rollout.timeline import write_timelines

    _check_real(options)
    _check_files(options)
    for name in ("engines", "seeds", "workers", "steps"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1")
    setting = KNOWN[options.setting]
    if options.engines:
        setting = setting.on(options.engines)
    names = _names(options.policies)
    traces = read_trace(options.trace) if options.trace else []
    if traces:
        training, validation = replayed(setting, names, traces, options.workers)
    else:
        training, validation = simulated(setting, names, options.seeds, options.workers)
    if options.timeline:
        first = traces[0] if traces else None
        write_timelines(options.timeline, timelines(setting, names, first))
    if options.json != "-":
        _print(options, setting, training, validation)
    real = None
    if options.real:
        # Progress is told on standard output, which with `--json -` is for the figures alone.
        with redirect_stdout(sys.stderr if options.json == "-" else sys.stdout):
            real = _measure_real(options)
    if options.json:
        _write(options.json, summary(training), real)
    if options.json != "-" and real:
        _print_real(real)


def _check_real(options: argparse.Namespace) -> None:
    if options.real is None:
        if options.problems or options.record:
            raise UserError("--problems and --record belong to --real MODEL, which is missing")
        return
    if not options.real.is_dir():
        raise UserError(f"no folder {options.real}: name a model folder, such as runs/nano/sft")
    if options.problems is None:
        hint = "RUN/stages/difficulty/problems.jsonl"
        raise UserError(f"--real needs --problems FILE, such as {hint}")
    if not options.problems.is_file():
        raise UserError(f"no file {options.problems}")


def _check_files(options: argparse.Namespace) -> None:
    """Before minutes of work, that what comes of them can be written."""
    for file in (options.json, options.record):
        if file in (None, "-"):
            continue
        if not Path(file).parent.is_dir() or Path(file).is_dir():
            raise UserError(f"cannot write {file}: name a file in a folder that is there")


def _measure_real(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    from openmimo.rollout.real import RealSettings, measure_real

    settings = RealSettings(steps=options.steps)
    return measure_real(options.real, options.problems, settings, options.record)


def _print_real(real: Mapping[str, Mapping[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("policy, for real")
    heads = ["rollout", "seconds", "idle", "waste", "validation", "its idle", "same batches"]
    for head in heads:
        table.add_column(head, justify="right")
    for name, row in real.items():
        table.add_row(
            name, f"{row['rollout_speedup']:.2f}", f"{statistics.median(row['seconds']):.2f}",
            f"{100 * row['idle']:.1f} %", f"{100 * row['waste']:.1f} %",
            f"{row['validation_speedup']:.2f}", f"{100 * row['validation_idle']:.1f} %",
            "yes" if row["same_batches"] else "NO",
        )  # fmt: skip
    Console(width=WIDTH).print(table)


def _names(policies: str | None) -> list[str]:
    from openmimo.rollout.simulator.table import rows

    known = list(rows())
    if policies is None:
        return known
    chosen = {"naive", *policies.split(",")}
    if unknown := sorted(chosen - set(known)):
        raise UserError(f"no policy {', '.join(unknown)}; there are {', '.join(known)}")
    return [name for name in known if name in chosen]


def _print(options: argparse.Namespace, setting: Setting, training: Runs, valid: Runs) -> None:
    from rich.console import Console

    from openmimo.rollout.simulator.bench import summary
    from openmimo.rollout.simulator.published import TABLE_2, TABLE_3

    work = f"trace {options.trace}" if options.trace else setting.about
    steps = len(training["naive"])
    console = Console(width=WIDTH)
    told = TABLE_2 if options.setting == "report" and not options.trace else {}
    print(f"{work}; {setting.cluster.engines} engines, {steps} steps")
    console.print(_table(summary(training), told))
    told = TABLE_3 if options.setting == "report" and not options.trace else {}
    print("all answers to as many prompts, as in validation")
    console.print(_table(summary(valid), told))
    print("± is half of a 95 % interval; all columns are explained in docs/rollout.md")


def _table(rows: Mapping[str, TableRow], told: Mapping[str, Published]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("policy")
    heads = ["rollout", "overall", "idle", "waste", "bias", "bound", "blind bound"]
    for head in [*heads, "report: rollout, idle, waste"] if told else heads:
        table.add_column(head, justify="right")
    for name, row in rows.items():
        cells = [
            _times(row.rollout_speedup), f"{row.overall_speedup.value:.2f}", _percent(row.idle),
            _percent(row.waste), f"{row.length_bias.value:.0f}", _percent(row.share_of_bound),
            _percent(row.share_of_blind_bound),
        ]  # fmt: skip
        if told:
            cells.append(_published(told.get(name)))
        table.add_row(name, *cells)
    return table


def _times(mean: Mean) -> str:
    return f"{mean.value:.2f} ± {mean.half:.2f}" if mean.half == mean.half else f"{mean.value:.2f}"


def _percent(mean: Mean) -> str:
    return f"{100 * mean.value:.1f} %"


def _published(row: Published | None) -> str:
    if row is None:
        return ""
    waste = "-" if row.waste is None else f"{100 * row.waste:.1f} %"
    return f"{row.rollout_speedup:.2f}, {100 * row.idle:.1f} %, {waste}"


def _write(file: str, rows: Mapping[str, TableRow], real: dict[str, Any] | None) -> None:
    report: dict[str, Any] = {
        name: {what: round(getattr(row, what).value, 4) for what in MEASURES}
        for name, row in rows.items()
    }
    if real:
        report["real"] = real
    write_json(file, report)
