"""The judge's speed against its plainest peer: one `python -I -S` process for each solution.

    python benchmarks/judge_speed.py --json -

Both run the same tiny solutions with the same tests, in turns, and both must find all correct. The
peer has no sandbox and no limit but a wall clock. Ratios above 1 say the judge is faster.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from openmimo.judge import CallTest, Judge

PROGRAM = """
def f(a, b):
    while b:
        a, b = b, a % b
    return a
"""
PEER = """
import json, sys
task = json.load(sys.stdin)
space = {}
exec(task["program"], space)
print(json.dumps([space["f"](*args) for args in task["args"]]))
"""


def tests(count: int) -> tuple[list[list[int]], list[int]]:
    """`count` calls of Euclid's algorithm and their results."""
    return [[6 * i, 4 * i] for i in range(1, count + 1)], [2 * i for i in range(1, count + 1)]


def time_judge(judge: Judge, solutions: int, calls: int) -> float:
    """Seconds for `solutions` solutions of `calls` tests each."""
    cases = [CallTest("f", args, value) for args, value in zip(*tests(calls), strict=True)]
    start = time.perf_counter()
    # A comment makes each solution a different text, as in a real batch.
    futures = [judge.submit(f"{PROGRAM}# {i}", cases) for i in range(solutions)]
    assert all(all(future.result().passed) for future in futures)
    return time.perf_counter() - start


def time_peer(solutions: int, calls: int, workers: int) -> float:
    """The same with a fresh interpreter for each solution, `workers` of them at a time."""
    args, expected = tests(calls)

    def run(number: int) -> bool:
        task = json.dumps({"program": f"{PROGRAM}# {number}", "args": args})
        command = [sys.executable, "-I", "-S", "-c", PEER]
        done = subprocess.run(command, input=task, capture_output=True, text=True, timeout=60)
        return json.loads(done.stdout) == expected

    start = time.perf_counter()
    with ThreadPoolExecutor(workers) as threads:
        assert all(threads.map(run, range(solutions)))
    return time.perf_counter() - start


def main() -> None:
    """Measure and print; write the figures as JSON with `--json FILE` (`-`: standard output)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--solutions", type=int, default=100, help="solutions a round")
    parser.add_argument("--calls", type=int, default=8, help="tests of each solution")
    parser.add_argument("--rounds", type=int, default=5, help="the median round counts")
    parser.add_argument("--workers", type=int, default=1, help="workers on either side")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, - for stdout")
    options = parser.parse_args()
    ours, peer = [], []
    with Judge(workers=options.workers) as judge:
        time_judge(judge, 10, options.calls)
        for _ in range(options.rounds):  # in turns: a busy machine slows both
            ours.append(time_judge(judge, options.solutions, options.calls))
            peer.append(time_peer(options.solutions, options.calls, options.workers))
    rate = options.solutions / statistics.median(ours)
    peer_rate = options.solutions / statistics.median(peer)
    figures = {
        "workers": options.workers,
        "calls_per_solution": options.calls,
        "judge_solutions_per_second": rate,
        "judge_calls_per_second": rate * options.calls,
        "judge_ms_per_solution": 1000 / rate,
        "subprocess_solutions_per_second": peer_rate,
        "subprocess_calls_per_second": peer_rate * options.calls,
        "ratio": rate / peer_rate,
    }
    if options.json == "-":
        print(json.dumps(figures))
    else:
        print(
            f"judge {rate:.0f} solutions/s, subprocess {peer_rate:.0f}, "
            f"ratio {rate / peer_rate:.1f}"
        )
        if options.json:
            Path(options.json).write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
