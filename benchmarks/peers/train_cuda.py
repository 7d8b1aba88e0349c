"""Model FLOPs utilisation of training on one GPU, for benchmarks/train.py.

    python benchmarks/peers/train_cuda.py --json -

bfloat16 products with float32 weights, moments and sums of gradients (FSDP2 on one rank), rows of
2048 tokens, each one document, with and without torch.compile; no activation checkpointing. About a
minute and a half, most of it compiling. Prints results as they come; null without a GPU.

The peak is NVIDIA's dense bfloat16 figure where the GPU is known. `matmul` is what a large product
reaches: no training is faster.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from typing import Any

import torch
from train_work import SHAPES, WORKS, Work, model_flops, packed_rows

from openmimo.config.schema import ComputeConfig, ModelConfig, OptimizerConfig
from openmimo.model.layout import tensor_shapes
from openmimo.model.mimo import init_tensor
from openmimo.training.batch import Batch
from openmimo.training.loss import Objective
from openmimo.training.optim import build_optimizer
from openmimo.training.parallel import prepare
from openmimo.training.step import train_step
from openmimo.training.throughput import StepClock
from openmimo.training.weights import Weights, empty_model
from openmimo.world import World

WORLD = World()
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
RUNS = {  # name: work, MTP layers, compiled
    "mfu_135m": ("135m_cuda", 0, True),
    "mfu_135m_with_mtp": ("135m_cuda", 1, True),
    "mfu_135m_eager": ("135m_cuda", 0, False),
    "mfu_1b": ("1b_cuda", 0, True),
    "mfu_1b_with_mtp": ("1b_cuda", 1, True),
    "mfu_1b_eager": ("1b_cuda", 0, False),
}
WARM_UP = 3


def measure(work: Work, mtp_layers: int, compiled: bool) -> dict[str, float]:
    """Tokens and model FLOPs a second, and the most memory; steps as the stages do them."""
    torch.cuda.reset_peak_memory_stats()
    config = ModelConfig(
        **SHAPES[work.shape],
        max_position_embeddings=work.length,
        num_nextn_predict_layers=mtp_layers,
    )
    compute = ComputeConfig(dtype="bfloat16", compile=compiled)
    module = prepare(
        empty_model(config), weights(config), Objective(range(mtp_layers)), compute, WORLD
    )
    settings = OptimizerConfig()
    optimizer = build_optimizer(module.named_parameters(), settings)
    ids, positions = (torch.from_numpy(x) for x in packed_rows(work))
    batch = Batch(ids, positions, ids)
    clock = StepClock(WORLD.device)

    def step() -> float:
        result = train_step(
            module, optimizer, batch, work.rows, 1e-4, 0.3, settings.clip, ids.numel(), WORLD, clock
        )
        return result.norm

    for _ in range(WARM_UP):
        step()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(work.steps):
        norm = step()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / work.steps
    return {
        "seconds_a_step": seconds,
        "tokens_per_second": ids.numel() / seconds,
        "flops_per_second": model_flops(work, mtp_layers) / seconds,
        "memory": torch.cuda.max_memory_allocated(),
        "grad_norm": norm,
    }


def weights(config: ModelConfig) -> Weights:
    """Random weights, drawn on the device: a billion of them takes long on a CPU."""
    for name, shape in tensor_shapes(config):
        weight = torch.empty(shape, device=WORLD.device)
        init_tensor(name, weight, config.initializer_range)
        yield name, weight


def matmul() -> float:
    """FLOP/s of a large bfloat16 product."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(20):
        a @ b
    torch.cuda.synchronize()
    return 20 * 2 * len(a) ** 3 / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=RUNS, help="default: all")
    parser.add_argument("--json", type=argparse.FileType("w"), default="-")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        options.json.write("null\n")
        return
    name = torch.cuda.get_device_name()
    peak = next((rate for known, rate in PEAKS.items() if known in name), None)
    result: dict[str, Any] = {"gpu": name, "torch": torch.__version__, "peak": peak}
    result["matmul"] = matmul()
    print(result, file=sys.stderr, flush=True)
    with WORLD:
        for key in options.only or RUNS:
            work, mtp_layers, compiled = RUNS[key]
            try:
                found = measure(WORKS[work], mtp_layers, compiled)
            except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
                # The other runs are still worth having.
                found = {"error": str(error)[:2000]}
            else:
                result[key] = found["flops_per_second"] / (peak or result["matmul"])
            result.setdefault("runs", {})[key] = found
            print(key, result.get(key), found, file=sys.stderr, flush=True)
            torch._dynamo.reset()
            gc.collect()
            torch.cuda.empty_cache()
    json.dump(result, options.json, indent=2)
    options.json.write("\n")


if __name__ == "__main__":
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    main()
