"""The judge's speed beside LiveCodeBench's checker, bubblewrap and bare processes, in turns.

    python benchmarks/judge.py --json -
    python benchmarks/judge.py --livecodebench PATH/TO/LiveCodeBench --json -

Every side judges the same small solutions on the same short tests (standard input, one line out)
and must find all of them right. LiveCodeBench's own checker runs a solution's tests in one process
without a sandbox; bubblewrap and the bare process (with resource limits) start `python -I -S` for
each test. Peers that are not there are null: name a checkout of LiveCodeBench, and install
bubblewrap (`bwrap`).

`tests_per_second` has the medians; `vs_livecodebench`, `vs_bwrap_per_test` and `vs_subprocess` are
the judge's rate divided by theirs with `--workers` on either side; `scaling_2_cores` is the judge
with two workers against one; `overhead_cpu_ms` is the CPU time of a test, of all processes, in
which the program itself does nothing. `rounds` has every measurement.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from openmimo.judge import Judge, Limits, StdioTest

PROGRAM = """
a, b = map(int, input().split())
while b:
    a, b = b, a % b
print(a)
"""
PEER = Path(__file__).parent / "peers" / "livecodebench_judge.py"
SECONDS, MEMORY = 10, 1 << 30


class Workload:
    """`solutions` texts that differ in a comment, each with `tests` pairs of input and output."""

    def __init__(self, solutions: int, tests: int, workers: int) -> None:
        self.workers = workers
        self.pairs = [(f"{6 * i} {4 * i}\n", f"{2 * i}\n") for i in range(1, tests + 1)]
        self._solutions, self._round = solutions, 0

    def programs(self) -> list[str]:
        """The solutions of a new round, unlike those of all rounds before."""
        self._round += 1
        return [f"{PROGRAM}# {self._round}.{number}" for number in range(self._solutions)]

    @property
    def tests(self) -> int:
        return self._solutions * len(self.pairs)


def time_judge(judge: Judge, load: Workload) -> float:
    """Seconds for a round."""
    tests = [StdioTest(*pair) for pair in load.pairs]
    programs = load.programs()
    start = time.perf_counter()
    futures = [judge.submit(program, tests) for program in programs]
    assert all(all(future.result().passed) for future in futures)
    return time.perf_counter() - start


def time_processes(prefix: list[str], load: Workload) -> float:
    """Seconds for a round with a fresh interpreter for each test."""

    def run(job: tuple[str, tuple[str, str]]) -> bool:
        program, (stdin, expected) = job
        command = [*prefix, sys.executable, "-I", "-S", "-c", program]
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=60, preexec_fn=_limit
        )
        return done.stdout == expected

    jobs = [(program, pair) for program in load.programs() for pair in load.pairs]
    start = time.perf_counter()
    with ThreadPoolExecutor(load.workers) as threads:
        assert all(threads.map(run, jobs))
    return time.perf_counter() - start


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


class LiveCodeBench:
    """Its checker in a process of its own, which waits while the others have their turn."""

    def __init__(self, checkout: Path, load: Workload) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(PEER), str(load.workers)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "PYTHONPATH": str(checkout)},
        )  # fmt: skip

    def time(self, load: Workload) -> float:
        """Seconds for a round."""
        assert self._process.stdin
        assert self._process.stdout
        inputs, outputs = zip(*load.pairs, strict=True)
        job = {"programs": load.programs(), "inputs": inputs, "outputs": outputs}
        print(json.dumps(job), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline() or "{}")
        if answer.get("right") != load.tests:
            raise SystemExit(f"LiveCodeBench's checker: {answer}")
        return float(answer["seconds"])

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def cpu_seconds() -> float:
    """CPU time of this process and of all below it, living or dead."""
    ticks = os.sysconf("SC_CLK_TCK")
    below = sum(sum(_ticks(pid)) for pid in _descendants(os.getpid())) / ticks
    return time.process_time() + below


def _descendants(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            yield child
            yield from _descendants(child)


def _ticks(pid: int) -> list[int]:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return [int(field) for field in fields[11:15]]  # its own and its dead children's


def measure(options: argparse.Namespace) -> dict[str, object]:
    """All sides in turns: a busy machine slows each of them."""
    load = Workload(options.solutions, options.tests, options.workers)
    small = Workload(max(1, options.solutions // 8), options.tests, options.workers)
    bwrap = shutil.which(options.bwrap)
    limits = Limits(cpu_seconds=SECONDS, wall_seconds=60.0)
    with Judge(options.workers, limits) as judge, Judge(1, limits) as single:
        peer = LiveCodeBench(options.livecodebench, load) if options.livecodebench else None
        sandbox = [str(bwrap), "--ro-bind", "/", "/", "--unshare-all", "--die-with-parent"]
        sides: dict[str, tuple[Workload, Callable[[Workload], float]]] = {
            "judge": (load, lambda work: time_judge(judge, work)),
            "judge_1_worker": (load, lambda work: time_judge(single, work)),
            "subprocess": (small, lambda work: time_processes([], work)),
        }
        if bwrap:
            sides["bwrap"] = (small, lambda work: time_processes(sandbox, work))
        if peer:
            sides["livecodebench"] = (load, peer.time)
        rates: dict[str, list[float]] = {name: [] for name in sides}
        overheads = []
        for number in range(options.rounds + 1):
            for name, (work, run) in sides.items():
                before = cpu_seconds()
                rate = work.tests / run(work)
                if number:  # the first round warms up
                    rates[name].append(rate)
                    if name == "judge":
                        overheads.append(1000 * (cpu_seconds() - before) / work.tests)
        if peer:
            peer.close()
    return summary(rates, overheads, options.workers)


def summary(
    rates: dict[str, list[float]], overheads: list[float], workers: int
) -> dict[str, object]:
    """The figures from every round's rates and CPU milliseconds."""
    names = ("judge", "judge_1_worker", "subprocess", "bwrap", "livecodebench")
    medians = {name: statistics.median(rates[name]) if name in rates else None for name in names}

    def versus(name: str) -> float | None:
        ours, theirs = medians["judge"], medians[name]
        return ours / theirs if ours and theirs else None

    return {
        "workers": workers,
        "tests_per_second": medians,
        "vs_livecodebench": versus("livecodebench"),
        "vs_bwrap_per_test": versus("bwrap"),
        "vs_subprocess": versus("subprocess"),
        "scaling_2_cores": versus("judge_1_worker") if workers == 2 else None,
        "overhead_cpu_ms": statistics.median(overheads),
        "rounds": rates,
    }


def main() -> None:
    """Measure and print; write the figures as JSON with `--json FILE` (`-`: standard output)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--solutions", type=int, default=40, help="solutions a round")
    parser.add_argument("--tests", type=int, default=20, help="tests of each solution")
    parser.add_argument("--rounds", type=int, default=5, help="the median round counts")
    parser.add_argument("--workers", type=int, default=2, help="on every side")
    parser.add_argument("--livecodebench", metavar="DIR", type=Path, help="a checkout of it")
    parser.add_argument("--bwrap", default="bwrap", help="the program bubblewrap")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, - for stdout")
    options = parser.parse_args()
    figures = measure(options)
    if options.json == "-":
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        if name != "rounds":
            print(name, value)
    if options.json:
        Path(options.json).write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
