"""Kill a run at random moments, repeat the command until it is done, compare with a quiet one.

    python benchmarks/kill_resume.py --kills 10 --json -

The smoke recipe is trained twice with one seed. One run is undisturbed; the other one is ended by
`kill -9` at `--kills` random moments spread over the first one's time, and the same command is
repeated each time. Nothing is trained twice if the weights of all four variants are equal bit for
bit and every step stands in the metrics once.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.numpy import load_file

STEPPING = ("pretrain", "mtp_heads", "sft", "rl_zero", "rl")


def command(folder: Path, seed: int) -> list[str]:
    return [
        sys.executable, "-m", "openmimo.cli", "speedrun", "--smoke",
        "--out", str(folder), "--seed", str(seed),
    ]  # fmt: skip


def run_and_kill(folder: Path, seed: int, after: float) -> bool:
    """Start the run and kill it after some seconds; whether it had finished by then."""
    process = subprocess.Popen(
        command(folder, seed), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        _, errors = process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return False
    if process.returncode:
        raise SystemExit(f"the repeated command failed with {process.returncode}: {errors}")
    return True


def steps_once(folder: Path) -> bool:
    """Whether every stage's metrics hold steps 1, 2, 3, ... without gap or repetition."""
    for stage in STEPPING:
        lines = (folder / "stages" / stage / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        if steps != list(range(1, len(steps) + 1)):
            return False
    return True


def same_weights(a: Path, b: Path) -> bool:
    """Whether two model folders hold the same bits."""
    names = sorted(path.name for path in a.glob("*.safetensors"))
    if names != sorted(path.name for path in b.glob("*.safetensors")):
        return False
    pairs = ((load_file(a / name), load_file(b / name)) for name in names)
    return all(
        left.keys() == right.keys()
        and all(left[key].tobytes() == right[key].tobytes() for key in left)
        for left, right in pairs
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", required=True, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        plain, killed = Path(scratch) / "plain", Path(scratch) / "killed"
        began = time.monotonic()
        if not run_and_kill(plain, options.seed, after=1800):
            raise SystemExit("the undisturbed run took longer than 30 minutes")
        seconds = time.monotonic() - began
        rng = random.Random(options.seed)
        kills, moments = 0, []
        for _ in range(options.kills):
            # Starting up takes seconds too, so the moments are drawn within a fair share of work.
            moment = rng.uniform(3, 3 + 2 * seconds / options.kills)
            if run_and_kill(killed, options.seed, moment):
                break
            moments.append(round(moment, 2))
            kills += 1
        finished = run_and_kill(killed, options.seed, after=1800)
        result = {
            "kills": kills,
            "seconds_before_each_kill": moments,
            "finished": finished,
            "undisturbed_seconds": round(seconds, 1),
            "every_step_once": steps_once(killed),
            "same_weights": {
                name: same_weights(plain / name, killed / name)
                for name in ("base", "sft", "rl_zero", "rl")
            },
            "seed": options.seed,
        }
    text = json.dumps(result, indent=2)
    print(text) if options.json == "-" else Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
