"""Decoding speed beside vLLM and transformers, and what MTP drafts are worth.

    python benchmarks/decode.py --nano runs/nano/vllm/RL --smol runs/smol/vllm --json -

All engines read the same folders (`mimo export --to vllm`) and answer the same number of random
prompts greedily with answers of a fixed length. They take turns, one round each, again and again,
in processes that wait meanwhile. `--prompts` (problems of a run, in
`stages/data/problems/heldout.jsonl`) adds the table of drafts: real prompts, greedy, against plain
decoding of the same engine.

{model: {batch: {native, vllm, transformers}}} are median tokens a second, null for a peer that is
not installed; `mtp` is {batch: {drafts: speed-up}}. `rounds` has every measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from figures import write

PEERS = Path(__file__).parent / "peers"
BATCHES = {"nano": [1, 32, 128], "smol": [1, 8, 32]}
DTYPES = {"nano": "float32", "smol": "bfloat16"}


class Peer:
    """An engine in a process of its own that does a round when it is told to."""

    def __init__(self, python: str, script: str, folder: Path, options: argparse.Namespace) -> None:
        batches = ",".join(map(str, (options.batches or BATCHES[options.model])))
        self._process = subprocess.Popen(
            [
                python, str(PEERS / script), str(folder), "--batches", batches,
                "--dtype", DTYPES[options.model], "--prompt", str(options.prompt),
                "--tokens", str(options.tokens),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if options.quiet else None,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(options.threads)},
        )  # fmt: skip
        self._answer()

    def round(self, batch: int) -> float:
        """Tokens a second of one round."""
        assert self._process.stdin
        print(f"run {batch}", file=self._process.stdin, flush=True)
        return float(self._answer()["tokens_per_second"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args!r} ended with {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=60)


def compare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Rounds of all engines in turns, {batch: {engine: [tokens a second]}}."""
    vllm = str(options.vllm_python) if options.vllm_python.exists() else None
    pythons = {
        "native": (sys.executable, "native_decode.py"),
        "vllm": (vllm, "vllm_decode.py"),
        "transformers": (sys.executable, "transformers_decode.py"),
    }
    peers = {
        name: Peer(python, script, folder, options)
        for name, (python, script) in pythons.items()
        if python and name not in options.without
    }
    rounds: dict[str, Any] = {}
    for batch in options.batches or BATCHES[options.model]:
        rounds[str(batch)] = {name: [] for name in pythons}
        for _ in range(options.rounds):
            for name, peer in peers.items():
                rounds[str(batch)][name].append(peer.round(batch))
        print(options.model, batch, medians(rounds[str(batch)]), file=sys.stderr, flush=True)
    for peer in peers.values():
        peer.close()
    return rounds


def medians(rounds: dict[str, list[float]]) -> dict[str, float | None]:
    """{engine: median}; None for an engine that has no rounds."""
    return {name: statistics.median(values) if values else None for name, values in rounds.items()}


def drafting(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds with and without drafts, {batch: {drafts: [seconds]}}, in turns."""
    import torch

    from openmimo.evals.exam import read_problems
    from openmimo.inference.engine import Engine
    from openmimo.inference.protocol import Request
    from openmimo.model.checkpoint import load_release

    torch.set_num_threads(options.threads)
    model, tokenizer = load_release(folder, dtype=getattr(torch, options.mtp_dtype))
    stops = (tokenizer.eos_id, tokenizer.doc_end_id)
    prompts = [
        tokenizer.chat_prompt(problem["prompt"])
        for problem in read_problems(options.prompts).values()
    ]
    choices: list[Any] = [0, *range(1, len(model.mtp_layers) + 1), "auto"]
    seconds: dict[str, Any] = {}
    for batch in options.mtp_batches:
        count = max(batch, options.mtp_prompts)
        chosen = [prompts[n * len(prompts) // count] for n in range(count)]
        requests = [
            Request(n, ids, options.tokens, temperature=0, stop_ids=stops)
            for n, ids in enumerate(chosen)
        ]
        engines = {
            str(drafts): Engine(
                model,
                slots=batch,
                max_length=max(map(len, chosen)) + options.tokens,
                used_vocab=tokenizer.vocab_size,
                drafts=drafts,
            )
            for drafts in choices
        }
        seconds[str(batch)] = {str(drafts): [] for drafts in choices}
        answers = [done.token_ids.tolist() for done in engines["0"].run(requests)]
        for name, engine in engines.items():  # the first run is not measured
            again = [done.token_ids.tolist() for done in engine.run(requests)]
            if again != answers and options.mtp_dtype == "float32":
                different = sum(a != b for a, b in zip(answers, again, strict=True))
                print(f"{name} drafts: {different} answers differ", file=sys.stderr)
        for _ in range(options.rounds):
            for name, engine in engines.items():
                began = time.perf_counter()
                engine.run(requests)
                seconds[str(batch)][name].append(time.perf_counter() - began)
        plain = statistics.median(seconds[str(batch)]["0"])
        shown = {k: round(plain / statistics.median(v), 3) for k, v in seconds[str(batch)].items()}
        print(options.model, "drafts", batch, shown, file=sys.stderr, flush=True)
    return seconds


def speedups(seconds: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """{batch: {drafts: median seconds of plain decoding over those with drafts}}."""
    return {
        batch: {
            drafts: statistics.median(of["0"]) / statistics.median(values)
            for drafts, values in of.items()
            if drafts != "0"
        }
        for batch, of in seconds.items()
    }


def main() -> None:
    """Measure; write the figures as JSON with `--json FILE` (`-`: standard output)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nano", type=Path, help="folder of a nano model")
    parser.add_argument("--smol", type=Path, help="folder of a smol model")
    parser.add_argument("--prompts", type=Path, help="problems.jsonl, for the table of drafts")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a random prompt")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of an answer")
    parser.add_argument(
        "--batches", type=int, nargs="+", help="(default: nano 1 32 128, smol 1 8 32)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="the median round counts")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every engine")
    parser.add_argument("--mtp-batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--mtp-prompts", type=int, default=8, help="fewest prompts of a round")
    parser.add_argument(
        "--mtp-dtype", default="float32", help="of the model in the table of drafts"
    )
    parser.add_argument("--without", nargs="*", default=[], help="engines to leave out")
    parser.add_argument("--vllm-python", type=Path, default=Path(".venv-vllm/bin/python"))
    parser.add_argument("--quiet", action="store_true", help="hide what the peers say")
    parser.add_argument("--only", choices=("engines", "drafts"), help="half of the measurements")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, - for stdout")
    options = parser.parse_args()
    figures: dict[str, Any] = {"rounds": {}, "threads": options.threads}
    for name in ("nano", "smol"):
        folder = getattr(options, name)
        if not folder:
            continue
        options.model = name
        if options.only != "drafts":
            rounds = figures["rounds"][name] = compare(folder, options)
            figures[name] = {batch: medians(of) for batch, of in rounds.items()}
        if options.only != "engines" and options.prompts:
            seconds = figures["rounds"][f"{name} drafts"] = drafting(folder, options)
            figures["mtp" if name == "smol" else "mtp_nano"] = speedups(seconds)
    if options.json:
        write(figures, options.json)


if __name__ == "__main__":
    main()
