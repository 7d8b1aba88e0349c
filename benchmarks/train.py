"""Training speed beside transformers' Trainer and TRL's SFTTrainer, and as a share of the peak.

    python benchmarks/train.py --trl-python ../trl/bin/python --json -

All engines train the same model from the same weights on the same batches, in float32, each in a
process of its own with one thread (`peers/train_work.py` has the shapes and batches). They take
turns, one round each, again and again; the losses of their first steps must agree. The headline
compares the trunk alone; `..._with_mtp` is ours with an MTP layer and its loss, which the peers
lack, over theirs without.

Ratios are medians over the rounds of CPU seconds a token: an engine does not pay for what else the
machine does. `tokens_per_second` is on the clock. A peer that is not installed gives null.

- pretrain_nano_vs_hf: the nano recipe's model and most frequent batch, 4 rows of 128 tokens.
- pretrain_nano_long_vs_hf: its stage 3, 2 rows of 512 tokens.
- pretrain_135m_vs_hf: SmolLM2-135M's shape, one row of 2048 tokens. In these three the rows hold
  several documents, which both engines keep apart.
- pretrain_135m_short_vs_hf: 2 rows of 512 tokens, one document each.
- sft_vs_trl, sft_nano_vs_trl: samples of prompt and response, packed by each engine.
- peak_share_135m: model FLOPs of `pretrain_135m`, trunk only (`openmimo/training/flops.py`), a
  second of our CPU time, over this machine's best matmul, measured in turns with it.
- cuda: see `peers/train_cuda.py`; null without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from train_work import WORKS, Work, model_flops

PEERS = Path(__file__).parent / "peers"
COMPARISONS = {  # work: engines beside our trunk
    "nano": ("native_mtp", "hf"),
    "nano_long": ("native_mtp", "hf"),
    "135m": ("native_mtp", "hf", "peak"),
    "135m_short": ("hf",),
    "sft": ("native_mtp", "trl"),
    "sft_nano": ("native_mtp", "trl"),
}
Round = dict[str, float]


class Peer:
    """An engine in a process of its own that does a round when it is told to."""

    def __init__(self, command: list[str], quiet: bool) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else None,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self.first_loss = self._answer()["loss"]

    def round(self) -> Round:
        assert self._process.stdin
        print("run", file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args!r} ended with {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=60)


def compare(name: str, options: argparse.Namespace) -> dict[str, list[Round]]:
    """Rounds of all installed engines in turns."""
    commands = {
        "native": [sys.executable, "train_native.py", name],
        "native_mtp": [sys.executable, "train_native.py", name, "--mtp", "1"],
        "hf": [sys.executable, "train_hf.py", name],
        "trl": [str(options.trl_python), "train_trl.py", name],
        "peak": [sys.executable, "train_peak.py"],
    }
    peers = {}
    for engine in ("native", *COMPARISONS[name]):
        python, script, *rest = commands[engine]
        if not installed(engine, python):
            print(f"{engine} is not installed", file=sys.stderr)
            continue
        peers[engine] = Peer([python, str(PEERS / script), *rest], options.quiet)
    losses = {engine: peer.first_loss for engine, peer in peers.items() if engine != "peak"}
    print(name, "first losses", losses, file=sys.stderr, flush=True)
    if not WORKS[name].sft and max(losses.values()) - min(losses.values()) > 1e-3:
        raise SystemExit(f"{name}: the engines do different work, their losses are {losses}")
    rounds: dict[str, list[Round]] = {engine: [] for engine in peers}
    for number in range(options.rounds):
        for engine, peer in peers.items():
            rounds[engine].append(peer.round())
            print(name, number, engine, rounds[engine][-1], file=sys.stderr, flush=True)
    for peer in peers.values():
        peer.close()
    return rounds


def installed(engine: str, python: str) -> bool:
    """Whether the engine's library is there, in its environment."""
    library = {"hf": "transformers, accelerate", "trl": "trl, datasets"}.get(engine)
    if library is None:
        return True
    try:
        done = subprocess.run([python, "-c", f"import {library}"], capture_output=True)
    except OSError:
        return False
    return done.returncode == 0


def cpu_seconds_a_token(rounds: list[Round]) -> float:
    return statistics.median(r["cpu_seconds"] / r["tokens"] for r in rounds)


def ratio(rounds: dict[str, list[Round]], ours: str, theirs: str) -> float | None:
    """How many times as fast `ours` is."""
    if ours not in rounds or theirs not in rounds:
        return None
    return cpu_seconds_a_token(rounds[theirs]) / cpu_seconds_a_token(rounds[ours])


def peak_share(rounds: dict[str, list[Round]], work: Work) -> float:
    """Median over rounds of the FLOP/s of training over those of the matmul next to it."""
    return statistics.median(
        model_flops(work) * work.steps / ours["cpu_seconds"] / peak["flops_per_second"]
        for ours, peak in zip(rounds["native"], rounds["peak"], strict=True)
    )


def cuda(options: argparse.Namespace) -> Any:
    """Results of `peers/train_cuda.py`; None without a GPU."""
    done = subprocess.run(
        [sys.executable, str(PEERS / "train_cuda.py"), "--json", "-"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if options.quiet else None,
        text=True,
        timeout=600,
        check=True,
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=[*COMPARISONS, "cuda"], help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trl-python", type=Path, default=sys.executable, help="has trl")
    parser.add_argument("--quiet", action="store_true", help="hide what the peers print")
    parser.add_argument("--json", type=argparse.FileType("w"), default="-")
    options = parser.parse_args()
    chosen = options.only or [*COMPARISONS, "cuda"]
    result: dict[str, Any] = {"tokens_per_second": {}, "rounds": {}}
    for name in COMPARISONS:
        if name not in chosen:
            continue
        rounds = compare(name, options)
        peer = "trl" if WORKS[name].sft else "hf"
        key = f"{name}_vs_trl" if WORKS[name].sft else f"pretrain_{name}_vs_hf"
        result[key] = ratio(rounds, "native", peer)
        if "native_mtp" in rounds:
            result[f"{key}_with_mtp"] = ratio(rounds, "native_mtp", peer)
        if "peak" in rounds:
            result[f"peak_share_{name}"] = peak_share(rounds, WORKS[name])
        result["rounds"][name] = rounds
        result["tokens_per_second"][name] = {
            engine: statistics.median(r["tokens"] / r["seconds"] for r in rounds[engine])
            for engine in rounds
            if engine != "peak"
        }
    if "cuda" in chosen:
        result["cuda"] = cuda(options)
    json.dump(result, options.json, indent=2)
    options.json.write("\n")


if __name__ == "__main__":
    main()
