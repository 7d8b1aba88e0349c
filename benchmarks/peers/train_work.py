"""What the peers of benchmarks/train.py share: the work, the weights, and taking turns by stdin.

A peer trains in a process of its own. It prints {"ready": true, "loss": ...} after a first step, a
warm-up from the common weights, whose loss shows that all engines do the same work. Then, for each
line "run" on stdin, it does one round of steps and prints one line of JSON; the end of stdin ends
it. So the rounds of several engines alternate, and what else the machine does slows all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

SHAPES: dict[str, dict[str, Any]] = {
    "nano": {
        "vocab_size": 1024, "hidden_size": 160, "intermediate_size": 448, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 40,
    },
    "135m": {  # SmolLM2-135M, with an untied head
        "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
    },
    "1b": {  # TinyLlama-1.1B
        "vocab_size": 32_000, "hidden_size": 2048, "intermediate_size": 5632,
        "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
        "head_dim": 64,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """One comparison.

    Attributes:
        shape: of the model.
        rows, length: of a step's batch.
        document: median length of the documents in the rows, which do not see each other
            (lognormal, sigma 1, as web text); 0: each row is one document.
        steps: of a round.
        sft: samples with prompts, packed by the engine itself, instead of given rows.
    """

    shape: str
    rows: int
    length: int
    document: int
    steps: int
    sft: bool = False


WORKS = {
    "nano": Work("nano", 4, 128, 100, 20),  # most steps of the recipe
    "nano_long": Work("nano", 2, 512, 100, 10),  # its stage 3
    "135m": Work("135m", 1, 2048, 400, 1),
    "135m_short": Work("135m", 2, 512, 0, 1),
    "135m_cuda": Work("135m", 48, 2048, 0, 6),
    "1b_cuda": Work("1b", 16, 2048, 0, 6),
    "sft": Work("135m", 2, 1024, 250, 1, sft=True),
    "sft_nano": Work("nano", 4, 512, 120, 5, sft=True),
}

SETTINGS = {"learning_rate": 1e-4, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1, "clip": 1.0}


def parse(description: str) -> argparse.Namespace:
    """Arguments of a peer."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--mtp", type=int, default=0, help="MTP layers (native only)")
    return parser.parse_args()


def own_stdout() -> Any:
    """Where the lines of JSON go: from here on libraries print to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return out


def packed_rows(work: Work) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and positions that restart with each document, int64 [rows, length]."""
    rng = np.random.default_rng(0)
    vocab = SHAPES[work.shape]["vocab_size"]
    ids = rng.integers(vocab, size=(work.rows, work.length))
    positions = np.tile(np.arange(work.length), (work.rows, 1))
    for row in positions if work.document else ():
        start = 0
        while start < work.length:
            end = start + max(2, int(rng.lognormal(math.log(work.document))))
            row[start:end] = np.arange(len(row[start:end]))
            start = end
    return ids, positions


def samples(work: Work) -> list[tuple[list[int], int]]:
    """SFT samples: token ids and how many of them are the prompt; 40 full batches of them."""
    rng = np.random.default_rng(0)
    vocab = SHAPES[work.shape]["vocab_size"]
    found, tokens = [], 0
    while tokens < 40 * work.rows * work.length:
        prompt, response = (
            max(2, int(rng.lognormal(math.log(median))))
            for median in (work.document // 4, work.document)
        )
        size = min(prompt + response, work.length)
        found.append((rng.integers(vocab, size=size).tolist(), min(prompt, size - 1)))
        tokens += size
    return found


def model_flops(work: Work, mtp_layers: int = 0) -> float:
    """Floating-point operations of one step, by `openmimo/training/flops.py`."""
    from openmimo.config.schema import ModelConfig
    from openmimo.training.flops import training_flops

    _, positions = packed_rows(work)
    config = ModelConfig(**SHAPES[work.shape], max_position_embeddings=work.length)
    context = float(positions.mean()) + 1
    return positions.size * training_flops(config, context, mtp_layers).total


def fill(named_parameters: Any) -> None:
    """The same weights in every engine, by name."""
    import torch

    with torch.no_grad():
        for name, parameter in named_parameters:
            rng = torch.Generator().manual_seed(sum(name.encode()))
            if "norm" not in name:
                parameter.normal_(std=0.02, generator=rng)


class Turns:
    """The peer's side of taking turns; `step_done` is called after every step."""

    def __init__(self, work: Work, out: Any) -> None:
        self._work, self._out = work, out
        self._done = -1  # the first step is the warm-up
        self._tokens = 0

    def step_done(self, tokens: int, loss: float) -> bool:
        """False when there is nothing more to do."""
        self._done += 1
        self._tokens += tokens
        if self._done == 0:
            self._say({"ready": True, "loss": loss})
            return self._wait()
        if self._done < self._work.steps:
            return True
        self._say(
            {
                "seconds": time.perf_counter() - self._began,
                "cpu_seconds": time.process_time() - self._worked,
                "tokens": self._tokens,
                "loss": loss,
            }
        )
        return self._wait()

    def _wait(self) -> bool:
        line = sys.stdin.readline().strip()
        if line not in ("run", ""):
            raise SystemExit(f'expected "run", got {line!r}')
        self._done, self._tokens = 0, 0
        self._began, self._worked = time.perf_counter(), time.process_time()
        return line == "run"

    def _say(self, record: dict[str, Any]) -> None:
        print(json.dumps(record), file=self._out, flush=True)
