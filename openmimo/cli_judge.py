"""The verb judge: a program against tests, in the sandbox."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmimo.errors import UserError

if TYPE_CHECKING:
    from openmimo.judge import Limits, Rule, Verdict
    from openmimo.judge.packages import Package

RULES = ("tokens", "lines", "exact", "floats", "unordered")


def add_judge_verb(verbs: Any) -> None:
    """Add the verb to argparse's subparsers; it sets `handler`."""
    text = "judge a program on tests, in a sandbox; exit code 1 unless it passes all of them"
    verb = verbs.add_parser("judge", help=text, description=text)
    add = verb.add_argument
    add("program", metavar="PROGRAM", type=Path, help="a .py file, or C++ (.cpp, .cc, .c)")
    text = "Kattis or CMS packages, folders of *.in and *.out, .json or .jsonl files"
    add("tests", metavar="TESTS", type=Path, nargs="+", help=text)
    add("--rule", choices=RULES, help="of comparison (default: the tests' own, else tokens)")
    add("--tolerance", type=float, help="of the rule floats, absolute and relative")
    add("--entry-point", metavar="NAME", help="of call tests that name no function")
    add("--cpu", type=float, help="seconds of CPU time a test (default: the package's, else 1)")
    add("--wall", type=float, help="seconds a test in all (default: the package's, else 5)")
    add("--memory", type=int, help="MiB a test (default: the package's, else 256)")
    add("--output", type=int, help="bytes of output a test (default: 4 MiB)")
    add("--stop", action="store_true", help="at the first failure")
    add("--workers", type=int, default=1, help="suites judged at once (default: 1)")
    add("--json", metavar="FILE", help="write the verdicts there, - for standard output")
    add("--unsafe-local", action="store_true", help="without a sandbox, at your own risk")
    verb.set_defaults(handler=judge)


def judge(options: argparse.Namespace) -> None:
    """`mimo judge PROGRAM TESTS...`. SystemExit 1 if a test fails."""
    from openmimo.judge import Judge
    from openmimo.judge.suites import read_suite

    if not options.program.is_file():
        raise UserError(f"no program {options.program}")
    source = options.program.read_text(encoding="utf-8", errors="surrogateescape")
    rule = _rule(options)
    suites = [read_suite(path, rule, options.entry_point) for path in options.tests]
    with Judge(options.workers, unsafe=options.unsafe_local) as judge_:
        futures = [
            judge_.submit(
                suite.program(options.program.name, source),
                suite.tests,
                _limits(options, suite.limits),
                stop_at_failure=options.stop,
            )
            for suite in suites
        ]
        results = [list(future.result().tests) for future in futures]
    if options.json:
        _write(options.json, suites, results)
    if options.json != "-":
        for suite, verdicts in zip(suites, results, strict=True):
            _print(suite, verdicts)
    if any(verdict.status != "ok" for verdicts in results for verdict in verdicts):
        raise SystemExit(1)


def _rule(options: argparse.Namespace) -> Rule | None:
    from openmimo.judge import Rule

    if options.tolerance is not None:
        if options.rule not in (None, "floats"):
            raise UserError(f"--tolerance is of the rule floats, not {options.rule}")
        return Rule("floats", options.tolerance, options.tolerance)
    return Rule(options.rule) if options.rule else None


def _limits(options: argparse.Namespace, own: Limits) -> Limits:
    from dataclasses import replace

    given = {
        "cpu_seconds": options.cpu, "wall_seconds": options.wall, "memory_mb": options.memory,
        "output_bytes": options.output,
    }  # fmt: skip
    return replace(own, **{name: value for name, value in given.items() if value is not None})


def _print(suite: Package, verdicts: list[Verdict]) -> None:
    for name, verdict in zip(suite.test_names, verdicts, strict=True):
        mark = "UNSAFE " if verdict.unsafe else ""
        line = f"{mark}{name}: {verdict.status}, {verdict.cpu_seconds:.3f} s"
        print(f"{line}; {verdict.detail}" if verdict.detail else line)
    passed = [verdict.status == "ok" for verdict in verdicts]
    for group in suite.groups:
        earned = group.score if all(passed[test] for test in group.tests) else 0
        print(f"{suite.name}, {group.name}: {earned:g} of {group.score:g} points")
    print(f"{suite.name}: {sum(passed)} of {len(passed)} tests")


def _write(file: str, suites: list[Package], results: list[list[Verdict]]) -> None:
    report = [
        {
            "suite": suite.name,
            "tests": [
                {"name": name, **asdict(verdict)}
                for name, verdict in zip(suite.test_names, verdicts, strict=True)
            ],
        }
        for suite, verdicts in zip(suites, results, strict=True)
    ]
    text = json.dumps(report, indent=1)
    if file == "-":
        print(text)
    else:
        Path(file).write_text(text + "\n")
