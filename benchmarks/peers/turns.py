"""What the peers of benchmarks/decode.py share: arguments, prompts, and taking turns by stdin.

A peer runs in a process of its own, as it may need another environment. It prints a line
{"ready": true} when its model is loaded and warm; then, for each line "run BATCH" on stdin, it does
one round and prints one line of JSON. So the rounds of several engines alternate in one run, and
what else the machine does slows all of them. Other lines end the process with an error; the end of
stdin ends it without one. With --rounds N nothing is read: N rounds of every batch, one line.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Prompts = list[list[int]]
Generate = Callable[[Prompts], int]
"""Answers all prompts, greedily and to the full length; returns the number of new tokens."""


def parse(description: str, *more: Callable[[argparse.ArgumentParser], Any]) -> argparse.Namespace:
    """Arguments of a peer; `more` add its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path, help="a model folder that the engine reads")
    parser.add_argument("--batches", type=_numbers, default=[1, 32, 128], help="as 1,32,128")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of an answer")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=0, help="0: take turns by stdin")
    for add in more:
        add(parser)
    return parser.parse_args()


def take_turns(options: argparse.Namespace, generate: Generate, out: Any) -> None:
    """Warm up, then answer the lines of stdin, or do `--rounds`.

    Args:
        options: of `parse`.
        generate: the engine.
        out: where the lines of JSON go: the engine's libraries may write to stdout.
    """
    vocab = _vocab_size(options.folder)
    number = 0

    def round_of(batch: int) -> dict[str, float]:
        nonlocal number
        number += 1
        prompts = make_prompts(batch, options.prompt, vocab, number)
        began, worked = time.perf_counter(), time.process_time()
        tokens = generate(prompts)
        seconds = time.perf_counter() - began
        worked = time.process_time() - worked
        if tokens != batch * options.tokens:
            raise SystemExit(f"{tokens} new tokens instead of {batch} x {options.tokens}")
        return {
            "batch": batch,
            "seconds": seconds,
            "cpu_seconds": worked,  # says more than the clock while others use the cores
            "tokens_per_second": tokens / seconds,
        }

    for batch in options.batches:  # shapes are prepared (and perhaps compiled) at first sight
        round_of(batch)
    if options.rounds:
        rounds = {
            batch: [round_of(batch)["tokens_per_second"] for _ in range(options.rounds)]
            for batch in options.batches
        }
        medians = {batch: statistics.median(values) for batch, values in rounds.items()}
        print(json.dumps({"tokens_per_second": medians, "rounds": rounds}), file=out, flush=True)
        return
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        match line.split():
            case ["run", batch] if batch.isdigit() and int(batch) in options.batches:
                print(json.dumps(round_of(int(batch))), file=out, flush=True)
            case _:
                raise SystemExit(f'expected "run BATCH" of {options.batches}, got {line!r}')


def make_prompts(batch: int, length: int, vocab: int, number: int) -> Prompts:
    """Random token ids, others in every round: no prefix cache knows them."""
    rng = random.Random(f"{batch}/{number}")
    return [[rng.randrange(vocab) for _ in range(length)] for _ in range(batch)]


def _vocab_size(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"])


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]
