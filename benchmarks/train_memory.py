"""The memory of real training steps on a CUDA GPU against what `mimo plan` says.

    python benchmarks/train_memory.py --json -

Steps of pre-training, as the stage does them, on one GPU in bfloat16: a model of SmolLM2's shape
(135M) and one of a billion parameters, several micro-batches, with and without activation
checkpointing. `measured` is the most that tensors held at once in the second step
(`torch.cuda.max_memory_allocated`) and `reserved` what the allocator took from the device for it,
both without CUDA's own; `planned` is the plan's total without CUDA. Bytes; `ratio` is planned over
measured, null where the GPU was too small. A line is printed as soon as its point is done, and none
is begun after `--seconds`. Without a GPU the figures are null.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openmimo.config.schema import ComputeConfig, ModelConfig, OptimizerConfig
from openmimo.model.layout import tensor_shapes
from openmimo.model.mimo import init_tensor
from openmimo.training.batch import Segment, batch_rows
from openmimo.training.loss import Objective
from openmimo.training.memory import CUDA, Workload, training_memory
from openmimo.training.optim import build_optimizer
from openmimo.training.parallel import prepare
from openmimo.training.step import train_step
from openmimo.training.throughput import StepClock
from openmimo.training.weights import Weights, empty_model
from openmimo.world import World

WORLD = World()
LENGTH = 2048
SHAPES = {
    "135M": ModelConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, head_dim=64, max_position_embeddings=LENGTH,
    ),
    "1B": ModelConfig(
        vocab_size=49_152, hidden_size=2048, intermediate_size=5632, num_hidden_layers=18,
        num_attention_heads=16, num_key_value_heads=4, head_dim=128, max_position_embeddings=LENGTH,
    ),
}  # fmt: skip
TOKENS = (2048, 8192, 16_384, 32_768)
"""Of a micro-batch."""


class Trainer:
    """A model of random weights that takes training steps on one GPU."""

    def __init__(self, config: ModelConfig, compute: ComputeConfig) -> None:
        self.config, self.compute = config, compute
        self._clock = StepClock(WORLD.device)
        self._module = prepare(
            empty_model(config), weights(config), Objective((0,)), compute, WORLD
        )
        self._optimizer = build_optimizer(self._module.named_parameters(), OptimizerConfig())

    def measure(self, tokens: int) -> dict[str, Any]:
        """One point of the curve: two steps, the second of which is measured."""
        planned = training_memory(self.config, self.compute, Workload(tokens, LENGTH, 1), ranks=1)
        point: dict[str, Any] = {
            "tokens": tokens,
            "activation_checkpointing": self.compute.activation_checkpointing,
            "planned": planned.total - planned.parts[CUDA],
            "measured": None,
            "reserved": None,
            "ratio": None,
            "parts": planned.parts,
        }
        torch.cuda.empty_cache()
        try:
            for _ in range(2):
                torch.cuda.reset_peak_memory_stats()
                self._step(tokens)
        except torch.OutOfMemoryError:
            self._optimizer.zero_grad()
            return point
        point["measured"] = torch.cuda.max_memory_allocated()
        point["reserved"] = torch.cuda.max_memory_reserved()
        point["ratio"] = point["planned"] / point["measured"]
        return point

    def _step(self, tokens: int) -> None:
        ids = np.random.default_rng(0).integers(
            self.config.vocab_size, size=(tokens // LENGTH, LENGTH)
        )
        batch = batch_rows([[Segment(row)] for row in ids], LENGTH, pad_id=0)
        result = train_step(
            self._module,
            self._optimizer,
            batch,
            len(ids),
            1e-4,
            0.3,
            1.0,
            tokens,
            WORLD,
            self._clock,
        )
        if not math.isfinite(result.norm):
            raise RuntimeError("a step was skipped: the optimiser holds less than it would")


def weights(config: ModelConfig) -> Weights:
    """Random weights, drawn on the device: a billion of them takes long on a CPU."""
    for name, shape in tensor_shapes(config):
        weight = torch.empty(shape, device=WORLD.device)
        init_tensor(name, weight, config.initializer_range)
        yield name, weight


def curve(seconds: float, compiled: bool) -> list[dict[str, Any]]:
    """All points that the time allows; each is printed to standard error."""
    points = []
    end = time.monotonic() + seconds
    for name, config in SHAPES.items():
        for checkpointing in (True, False):
            compute = ComputeConfig(
                dtype="bfloat16", activation_checkpointing=checkpointing, compile=compiled
            )
            if time.monotonic() > end:
                break
            trainer = Trainer(config, compute)
            for tokens in TOKENS:
                if time.monotonic() > end:
                    break
                point = {"shape": name, **trainer.measure(tokens)}
                points.append(point)
                shown = {key: value for key, value in point.items() if key != "parts"}
                print(shown, file=sys.stderr, flush=True)
            del trainer
            gc.collect()
            torch._dynamo.reset()
    return points


def main() -> None:
    """Measure; write the figures as JSON with `--json FILE` (`-`: standard output)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=80, help="begin no point after that")
    parser.add_argument("--compile", action="store_true", help="compiled layers")
    parser.add_argument("--json", metavar="FILE", default="-", help="- for standard output")
    options = parser.parse_args()
    figures: dict[str, Any] = {"gpu": None, "length": LENGTH, "largest_error": None, "points": None}
    if torch.cuda.is_available():
        figures["gpu"] = torch.cuda.get_device_name()
        with WORLD:
            figures["points"] = curve(options.seconds, options.compile)
        errors = [abs(point["ratio"] - 1) for point in figures["points"] if point["ratio"]]
        figures["largest_error"] = max(errors, default=None)
    text = json.dumps(figures, indent=2) + "\n"
    if options.json == "-":
        print(text, end="")
    else:
        Path(options.json).write_text(text)


if __name__ == "__main__":
    main()
