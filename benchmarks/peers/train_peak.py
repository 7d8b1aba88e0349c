"""The matmul peak of this machine in float32, as a peer of benchmarks/train.py.

The best of three sizes, in FLOP/s of CPU time: the most that training could reach with these
threads.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from train_work import own_stdout

SIZES = (512, 1024, 2048)


def main() -> None:
    out = own_stdout()
    pairs = [(torch.randn(size, size), torch.randn(size, size)) for size in SIZES]
    print(json.dumps({"ready": True, "loss": None}), file=out, flush=True)
    for _ in sys.stdin:
        rates = []
        for a, b in pairs * 3:
            began = time.process_time()
            a @ b
            rates.append(2 * len(a) ** 3 / (time.process_time() - began))
        print(json.dumps({"flops_per_second": max(rates)}), file=out, flush=True)


if __name__ == "__main__":
    sys.exit(main())
