"""The verbs judge and judge-serve: a program against tests, in a sandbox; as a service."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmimo.errors import UserError, printable

if TYPE_CHECKING:
    from openmimo.judge import Limits, Rule, Verdict
    from openmimo.judge.packages import Package

RULES = ("tokens", "lines", "exact", "floats", "unordered")


def add_judge_verbs(verbs: Any) -> None:
    """Add the verbs to argparse's subparsers; each sets `handler`."""
    _add_judge(verbs)
    _add_serve(verbs)


def _add_judge(verbs: Any) -> None:
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
    text = "of `mimo judge-serve`, separated by commas (default: judge here); see --api-key there"
    add("--server", metavar="URL", help=text)
    add("--json", metavar="FILE", help="write the verdicts there, - for standard output")
    add("--unsafe-local", action="store_true", help="without a sandbox, at your own risk")
    verb.set_defaults(handler=judge)


def _add_serve(verbs: Any) -> None:
    text = "serve the judge over HTTP: programs and tests in, verdicts out"
    verb = verbs.add_parser("judge-serve", help=text, description=text)
    add = verb.add_argument
    add("--host", default="127.0.0.1", help="(default: 127.0.0.1, this machine alone)")
    add("--port", type=int, default=8001, help="(default: 8001)")
    text = "clients must send it (default: OPENMIMO_JUDGE_KEY, or none is asked for)"
    add("--api-key", help=text)
    cores = os.cpu_count() or 1
    add("--workers", type=int, default=cores, help="solutions judged at once (default: one a core)")
    add("--max-queue", type=int, default=1024, help="solutions taken at once (default: 1024)")
    add("--max-body-bytes", type=int, default=32_000_000, help="of a request (default: 32000000)")
    text = "CPU time, and seconds in all, that a test may ask for (default: 600)"
    add("--max-seconds", type=float, default=600, help=text)
    add("--max-memory-mb", type=int, default=4096, help="MiB that it may ask for (default: 4096)")
    add(
        "--max-output-bytes",
        type=int,
        default=64 << 20,
        help="the same of output (default: 64 MiB)",
    )
    add("--drain", type=float, default=30, help="seconds that a stop waits (default: 30)")
    add("--unsafe-local", action="store_true", help="without a sandbox, at your own risk")
    verb.set_defaults(handler=serve)


def judge(options: argparse.Namespace) -> None:
    """`mimo judge PROGRAM TESTS...`. SystemExit 1 if a test fails."""
    from openmimo.judge.connect import LOCAL, open_judge
    from openmimo.judge.suites import read_suite

    if not options.program.is_file():
        raise UserError(f"no program {options.program}")
    source = options.program.read_text(encoding="utf-8", errors="surrogateescape")
    rule = _rule(options)
    suites = [read_suite(path, rule, options.entry_point) for path in options.tests]
    where = options.server or LOCAL
    with contextlib.closing(
        open_judge(where, options.workers, unsafe=options.unsafe_local)
    ) as judge_:
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


def serve(options: argparse.Namespace) -> None:
    """`mimo judge-serve`."""
    from openmimo.judge.connect import KEY_VARIABLE
    from openmimo.judge.service.serve import ServiceSettings
    from openmimo.judge.service.serve import serve as run

    settings = ServiceSettings(
        host=options.host,
        port=options.port,
        # An empty one is refused: whoever gives it means to have a key.
        api_key=os.environ.get(KEY_VARIABLE) if options.api_key is None else options.api_key,
        workers=options.workers,
        max_queue=options.max_queue,
        max_body_bytes=options.max_body_bytes,
        max_seconds=options.max_seconds,
        max_memory_mb=options.max_memory_mb,
        max_output_bytes=options.max_output_bytes,
        drain=options.drain,
        unsafe=options.unsafe_local,
    )
    run(settings)


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
        print(f"{line}; {_harmless(verdict.detail)}" if verdict.detail else line)
    passed = [verdict.status == "ok" for verdict in verdicts]
    for group in suite.groups:
        earned = group.score if all(passed[test] for test in group.tests) else 0
        print(f"{suite.name}, {group.name}: {earned:g} of {group.score:g} points")
    print(f"{suite.name}: {sum(passed)} of {len(passed)} tests")


def _harmless(detail: str) -> str:
    """What a program said, unable to move the cursor or to look like a line of ours."""
    return "\n    ".join(map(printable, detail.split("\n")))


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
        try:
            Path(file).write_text(text + "\n")
        except OSError as error:
            raise UserError(f"cannot write the verdicts to {file}: {error}") from error
