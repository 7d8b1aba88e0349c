"""Does every judgement get exactly one verdict, and the right one, while everything is killed?

    python benchmarks/judge_chaos.py --json -

Three rounds of `--judgements` solutions, all of them different, whose verdicts are known:
`in_process` (a Judge), `service` (RemoteJudge and one `mimo judge-serve`), `two_services`. All the
while a worker, picked at random, gets kill -9 every `--worker-kill-seconds` on average; each
service gets it `--service-kills` times and is started again at its port. Of each round: `verdicts`
(how many solutions had exactly one), `right`, `judge_errors`, what was killed, and the seconds.
Exit code 1 unless all verdicts are there and right.
"""

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from openmimo.judge import AssertTest, CallTest, Judge, Limits, StdioTest, Test
from openmimo.judge.protocol import SolutionJudge
from openmimo.judge.service.client import RemoteJudge
from openmimo.judge.verdict import SolutionVerdict

PAUSE_SECONDS = 0.5  # between a service's death and its successor
DEADLINE_SECONDS = 3000.0  # of a round
# Generous: a killed worker's successor takes both cores for a moment.
LIMITS = Limits(cpu_seconds=10.0, wall_seconds=60.0)


def solution(number: int) -> tuple[str, list[Test], list[str]]:
    """A program unlike all others, its tests, and the statuses that it must get."""
    adds = [StdioTest(f"{number} {n}", f"{number + n}") for n in range(2)]
    calls = [CallTest("f", [n], n + number) for n in range(2)]
    asserts = [AssertTest(f"assert f({n}) == {n + number}") for n in range(2)]
    return (
        ("print(sum(map(int, input().split())))", adds, ["ok", "ok"]),
        (f"print({number})", adds, ["ok", "wrong"]),
        ("raise SystemExit(3)", adds, ["crash", "crash"]),
        (f"def f(n): return n + {number}", calls, ["ok", "ok"]),
        (f"def f(n): return {number}", asserts, ["ok", "wrong"]),
        ("def f(n) return n", calls, ["compile", "compile"]),
    )[number % 6]


class Verdicts:
    """What each solution was given, and how often."""

    def __init__(self, judgements: int) -> None:
        self.given: list[list[list[str]]] = [[] for _ in range(judgements)]
        self.count = 0

    def add(self, number: int, verdict: SolutionVerdict) -> None:
        """Called once for each verdict that comes."""
        self.given[number].append([str(test.status) for test in verdict.tests])
        self.count += 1

    def figures(self) -> dict[str, int]:
        """Of the round, once it is over."""
        once = [given[0] for given in self.given if len(given) == 1]
        expected = [solution(number)[2] for number in range(len(self.given))]
        right = [given == [wanted] for given, wanted in zip(self.given, expected, strict=True)]
        errors = sum("judge_error" in statuses for statuses in once)
        return {"verdicts": len(once), "right": sum(right), "judge_errors": errors}


class Service:
    """A `mimo judge-serve` process that can be killed and started again at the same port."""

    def __init__(self, workers: int) -> None:
        self._workers, self._port, self.kills = workers, 0, 0
        self.start()

    def start(self) -> None:
        """Start it, as often as its workers are killed before it listens."""
        command = [sys.executable, "-m", "openmimo.cli", "judge-serve", "--port", str(self._port)]
        for _ in range(20):
            self._process = subprocess.Popen(
                [*command, "--workers", str(self._workers)], stdout=subprocess.PIPE, text=True
            )
            assert self._process.stdout
            found = re.search(r"http://\S+:(\d+)", self._process.stdout.readline())
            if found:
                self.url, self._port = found[0], int(found[1])
                return
        raise SystemExit("the service does not start")

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.wait()

    def replace(self) -> None:
        """kill -9, and another one in its place."""
        self.kill()
        self.kills += 1
        time.sleep(PAUSE_SECONDS)
        self.start()


class WorkerKiller:
    """Kills a random child of one of the processes now and then, in a thread."""

    def __init__(self, parents: Callable[[], list[int]], seconds: float) -> None:
        self._parents, self._seconds, self.kills = parents, seconds, 0
        self._chance = random.Random(0)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.wait(self._chance.uniform(0, 2 * self._seconds)):
            workers = [child for parent in self._parents() for child in children(parent)]
            if workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._chance.choice(workers), signal.SIGKILL)
                    self.kills += 1

    def __enter__(self) -> "WorkerKiller":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def children(pid: int) -> list[int]:
    """The processes that it started itself; of a judge: its fork servers."""
    found: list[int] = []
    with contextlib.suppress(OSError):  # it, or a thread of its, has just ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def judge_all(judge: SolutionJudge, judgements: int, events: Iterator[Callable[[], None]]) -> dict:
    """Submit all; an event happens each time that a further share of them has its verdict."""
    verdicts = Verdicts(judgements)
    happenings = list(events)
    began = time.monotonic()
    for number in range(judgements):
        program, tests, _ = solution(number)
        future = judge.submit(f"{program}\n# {number}", tests, LIMITS)
        future.add_done_callback(lambda done, n=number: verdicts.add(n, done.result()))
    for place, event in enumerate(happenings, 1):
        wait_for(verdicts, place * judgements // (len(happenings) + 1), began)
        event()
    wait_for(verdicts, judgements, began)
    seconds = time.monotonic() - began
    time.sleep(1.0)  # a second verdict of one would come late
    return verdicts.figures() | {"seconds": round(seconds, 1)}


def wait_for(verdicts: Verdicts, count: int, began: float) -> None:
    """Until so many have come; in vain, the figures tell."""
    while verdicts.count < count and time.monotonic() < began + DEADLINE_SECONDS:
        time.sleep(0.02)


def in_process(options: argparse.Namespace) -> dict[str, float]:
    """A judge of one's own, its workers killed."""
    with (
        Judge(options.workers) as judge,
        WorkerKiller(lambda: [os.getpid()], options.worker_kill_seconds) as killer,
    ):
        found = judge_all(judge, options.judgements, iter(()))
    return found | {"worker_kills": killer.kills, "service_kills": 0}


def remote(options: argparse.Namespace, number: int) -> dict[str, float]:
    """So many services that share the workers, all of them killed."""
    services = [Service(max(1, options.workers // number)) for _ in range(number)]
    try:
        with (
            RemoteJudge([service.url for service in services]) as judge,
            WorkerKiller(
                lambda: [service.pid for service in services], options.worker_kill_seconds
            ) as killer,
        ):
            events = (service.replace for _ in range(options.service_kills) for service in services)
            found = judge_all(judge, options.judgements, events)
    finally:
        for service in services:
            service.kill()
    kills = sum(service.kills for service in services)
    return found | {"worker_kills": killer.kills, "service_kills": kills}


def measure(options: argparse.Namespace) -> dict[str, object]:
    """The three rounds."""
    return {
        "judgements": options.judgements,
        "workers": options.workers,
        "in_process": in_process(options),
        "service": remote(options, 1),
        "two_services": remote(options, 2),
    }


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--judgements", type=int, default=10_000, help="solutions a round")
    parser.add_argument("--workers", type=int, default=2, help="of all services together")
    parser.add_argument("--worker-kill-seconds", type=float, default=1.0, help="on average")
    parser.add_argument("--service-kills", type=int, default=5, help="of each service")
    parser.add_argument("--json", metavar="FILE", default="-", help="- for stdout")
    return parser


def main() -> int:
    """Measure; print or write a JSON object."""
    options = make_parser().parse_args()
    figures = measure(options)
    text = json.dumps(figures, indent=2)
    print(text) if options.json == "-" else Path(options.json).write_text(text + "\n")
    rounds = [each for each in figures.values() if isinstance(each, dict)]
    return int(any(each[name] != options.judgements for each in rounds
                   for name in ("verdicts", "right")))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
