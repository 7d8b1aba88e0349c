"""Products of few rows with one weight, as `inference/matrix.py` does them and as it could.

    OMP_NUM_THREADS=1 python benchmarks/matrix.py --json -

Microseconds, medians. Several equal weights take turns, so that none stays in a near cache.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from figures import write
from torch import Tensor

from openmimo.inference.matrix import Matrix

BYTES = 64_000_000
"""Of all the weights that take turns."""


def median(product: Callable[[int], Tensor], weights: int, rounds: int) -> float:
    """Microseconds of product(n), n going round the weights."""
    durations = []
    for n in range(rounds + weights):
        began = time.perf_counter()
        product(n % weights)
        durations.append(time.perf_counter() - began)
    return 1e6 * statistics.median(durations[weights:])


def measure(rows: int, out: int, inner: int, dtype: torch.dtype, rounds: int) -> dict[str, float]:
    """All ways for one number of rows."""
    count = max(2, BYTES // (out * inner * dtype.itemsize))
    plain = [torch.randn(out, inner).to(dtype) for _ in range(count)]
    transposed = [weight.t().contiguous() for weight in plain]
    ours = []
    for weight in plain:
        ours.append(Matrix((out, inner), dtype, torch.device("cpu")))
        ours[-1].load(weight)
    x = torch.randn(rows, inner).to(dtype)
    return {
        "plain": median(lambda n: x @ plain[n].t(), count, rounds),
        "transposed": median(lambda n: x @ transposed[n], count, rounds),
        "packed": median(lambda n: ours[n](x), count, rounds),
    }


def main() -> None:
    """Measure; write the figures as JSON with `--json FILE` (`-`: standard output)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=int, default=3072)
    parser.add_argument("--inner", type=int, default=576)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 32])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", metavar="FILE", default="-", help="- for standard output")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    with torch.inference_mode():
        figures: dict[str, Any] = {
            str(rows): measure(rows, options.out, options.inner, dtype, options.rounds)
            for rows in options.rows
        }
    figures["threads"] = torch.get_num_threads()
    write(figures, options.json)


if __name__ == "__main__":
    main()
