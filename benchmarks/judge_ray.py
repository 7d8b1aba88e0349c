"""The judge on a local Ray cluster while half of its actors are killed, and beside the local judge.

    python benchmarks/judge_ray.py --json -

For each seed, `--judgements` solutions (right ones, wrong ones, endless ones, some that crash; each
known beforehand) are judged by `--actors` actors on this machine, and half of the actors, chosen at
random, are killed with signal 9 after each sixth of the verdicts. `kills` has for each seed how
many actors were killed, and how many judgements were `lost` (no verdict), `doubled` (more than
one), `failed` (`judge_error`) and `wrong` (not the status that was known). Their totals come first.

`tests_per_second` has the medians of `--rounds` rounds in turns, nothing killed: solutions with one
short test and with ten, by the local judge with `--workers` workers, by as many actors of Ray
(`ray`), and by one actor with a worker for each CPU of the cluster (`ray_node`).
"""

import argparse
import json
import os
import random
import signal
import statistics
import threading
import time
from collections import Counter
from pathlib import Path

from openmimo.cluster import session
from openmimo.judge import Judge, Limits, SolutionVerdict, Status, StdioTest
from openmimo.judge.protocol import SolutionJudge
from openmimo.judge.ray_judge import RayJudge

KINDS = {
    Status.OK: "print(int(input()) + 1)",
    Status.WRONG: "print(int(input()) + 2)",
    Status.CRASH: "print(1 // int(input()) // 0)",
    Status.COMPILE: "print(int(input() + 1",
    Status.TIMEOUT: "while True: pass",
}
SHARES = [60, 25, 10, 4.8, 0.2]  # percent of each kind
LIMITS = Limits(cpu_seconds=0.3, wall_seconds=10.0)
PATIENCE = 600.0  # seconds without any verdict, until what is missing counts as lost


class Tally:
    """Counts the verdicts of each judgement."""

    def __init__(self, judge: SolutionJudge, kinds: list[Status], salt: str) -> None:
        self.kinds = kinds
        self.verdicts: list[list[SolutionVerdict]] = [[] for _ in kinds]
        self.count = 0
        self._changed = threading.Condition()
        tests = [StdioTest("1\n", "2\n")]
        for number, kind in enumerate(kinds):
            future = judge.submit(f"{KINDS[kind]}\n# {salt} {number}", tests, LIMITS)
            future.add_done_callback(lambda done, n=number: self._add(n, done.result()))

    def _add(self, number: int, verdict: SolutionVerdict) -> None:
        with self._changed:
            self.verdicts[number].append(verdict)
            self.count += 1
            self._changed.notify_all()

    def wait_for(self, count: int) -> bool:
        """Whether so many verdicts have come, before PATIENCE was out."""
        with self._changed:
            return self._changed.wait_for(lambda: self.count >= count, PATIENCE)

    def result(self) -> dict[str, int]:
        """How many judgements went wrong, in which way."""
        first = [verdicts[0].tests[0].status if verdicts else None for verdicts in self.verdicts]
        failed = sum(status is Status.JUDGE_ERROR for status in first)
        wrong = sum(
            status not in (None, Status.JUDGE_ERROR, kind)
            for status, kind in zip(first, self.kinds, strict=True)
        )
        return {
            "judgements": len(self.kinds),
            "lost": first.count(None),
            "doubled": sum(len(verdicts) > 1 for verdicts in self.verdicts),
            "failed": failed,
            "wrong": wrong,
        }


def kill_half(seed: int, judgements: int, workers: int) -> dict[str, object]:
    """Judge on a fresh pool, and kill half of the actors five times."""
    chance = random.Random(seed)
    kinds = chance.choices(list(KINDS), SHARES, k=judgements)
    killed = 0
    start = time.perf_counter()
    with RayJudge(workers) as judge:
        tally = Tally(judge, kinds, f"seed {seed}")
        for sixth in range(1, 6):
            tally.wait_for(judgements * sixth // 6)
            actors = actor_processes()
            for pid in chance.sample(actors, len(actors) // 2):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        tally.wait_for(judgements)
        time.sleep(1.0)  # for second verdicts, if there are any
    seconds = time.perf_counter() - start - 1.0
    return {"seed": seed, "killed": killed, "seconds": round(seconds, 1), **tally.result()}


def actor_processes() -> list[int]:
    """The process ids of the Ray actors below this process."""
    parents, actors = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2]
            parents[int(folder.name)] = int(stat.split()[1])
            if (folder / "cmdline").read_bytes().startswith(b"ray::Host"):
                actors.append(int(folder.name))
        except OSError:
            continue  # it has just ended
    return [pid for pid in actors if os.getpid() in ancestors(pid, parents)]


def ancestors(pid: int, parents: dict[int, int]) -> set[int]:
    """All processes above one."""
    above = set()
    while pid in parents:
        pid = parents[pid]
        above.add(pid)
    return above


def measure(workers: int, rounds: int) -> dict[str, dict[str, int]]:
    """Tests a second on solutions with one test and with ten, medians of the rounds."""
    makers = {
        "local": lambda: Judge(workers),
        "ray": lambda: RayJudge(workers),
        "ray_node": lambda: RayJudge(),
    }
    rates: dict[str, dict[str, list[float]]] = {"1 test": {}, "10 tests": {}}
    for number in range(rounds):
        for name, make in makers.items():
            with make() as judge:
                rate(judge, "warm", 100, 1)
                for load, solutions, tests in (("1 test", 1500, 1), ("10 tests", 150, 10)):
                    seen = rates[load].setdefault(name, [])
                    seen.append(rate(judge, f"{name} {number}", solutions, tests))
    return {
        load: {name: round(statistics.median(seen)) for name, seen in sides.items()}
        for load, sides in rates.items()
    }


def rate(judge: SolutionJudge, salt: str, solutions: int, tests: int) -> float:
    """Tests a second for a round of right solutions."""
    suite = [StdioTest(f"{n}\n", f"{n + 1}\n") for n in range(tests)]
    start = time.perf_counter()
    futures = [
        judge.submit(f"{KINDS[Status.OK]}\n# {salt} {number}", suite) for number in range(solutions)
    ]
    assert all(all(future.result(PATIENCE).passed) for future in futures)
    return solutions * tests / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", required=True, metavar="FILE", help="- for standard output")
    parser.add_argument("--judgements", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--actors", type=int, default=4, help="while actors are killed")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    kills = [kill_half(seed, options.judgements, options.actors) for seed in range(options.seeds)]
    session.join(cpus=options.workers)  # once for all rounds
    try:
        speed = measure(options.workers, options.rounds)
    finally:
        session.leave()
    total: Counter[str] = Counter()
    for run in kills:
        total.update({key: run[key] for key in ("lost", "doubled", "failed", "wrong", "killed")})
    text = json.dumps({**total, "kills": kills, "tests_per_second": speed}, indent=2)
    if options.json == "-":
        print(text)
    else:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
