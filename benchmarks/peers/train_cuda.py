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
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from train_work import SHAPES, WORKS, Work, model_flops, packed_rows

from openmimo.config.schema import ModelConfig, OptimizerConfig
from openmimo.model.mimo import MiMo
from openmimo.training.batch import Batch
from openmimo.training.loss import Objective, TrainingLoss, count_targets
from openmimo.training.optim import build_optimizer, update

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
    """Tokens and model FLOPs a second, and the most memory."""
    torch.cuda.reset_peak_memory_stats()
    loss = sharded(work, mtp_layers, compiled)
    settings = OptimizerConfig()
    optimizer = build_optimizer(loss.model.named_parameters(), settings)
    ids, positions = (torch.from_numpy(x).cuda() for x in packed_rows(work))
    batch = Batch(ids, positions, ids)
    counts = count_targets(batch, loss.objective)

    def step() -> float:
        loss(batch, counts, 0.3).total.backward()
        return update(optimizer, 1e-4, settings.clip)

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


def sharded(work: Work, mtp_layers: int, compiled: bool) -> TrainingLoss:
    """The model on the GPU, under FSDP2."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    config = ModelConfig(
        **SHAPES[work.shape],
        max_position_embeddings=work.length,
        num_nextn_predict_layers=mtp_layers,
    )
    with torch.device("cuda"):
        model = MiMo(config)
    model.init_weights(torch.Generator("cuda").manual_seed(0))
    model.train()
    loss = TrainingLoss(model, Objective(range(mtp_layers)), head_chunk=4096)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in (*model.model.layers, *model.mtp_layers):
        if compiled:
            layer.compile()
        fully_shard(layer, mp_policy=policy)
    fully_shard(loss, mp_policy=policy)
    return loss


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
    with tempfile.TemporaryDirectory() as folder:
        store = torch.distributed.FileStore(str(Path(folder) / "store"), 1)
        torch.distributed.init_process_group("nccl", store=store, rank=0, world_size=1)
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
            torch.cuda.empty_cache()
        torch.distributed.destroy_process_group()
    json.dump(result, options.json, indent=2)
    options.json.write("\n")


if __name__ == "__main__":
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    main()
