"""Matrix products as fast as torch has them, for few rows.

On a CPU a decode step reads every weight for a handful of rows, and the usual product x @ W.T is
then up to three times slower than what torch can do (AMD EPYC, AVX2, one thread, 3072 x 576 in
float32, microseconds; `benchmarks/matrix.py` repeats it):

    rows                       1      2      4      8     32
    x @ W.T                  635   1204    838   1022   2178
    x @ transposed copy      358    579    898   1134   2236
    packed by oneDNN         524    463    600    743   1800

So weights are packed for oneDNN, whose operators torch has for its own compiler, and small models
keep a second copy for single rows: transposed, or in bfloat16 if the model came in it and that is
faster (246 instead of 358 in the table: half the bytes). On other devices products are the usual
ones.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor


class Matrix:
    """A weight W of shape [out, in] that rows are multiplied with.

    Args:
        single_rows: keep a second copy for products with one row: in this dtype; None: no copy.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
        single_rows: torch.dtype | None = None,
    ) -> None:
        self.shape = shape
        self._pack = device.type == "cpu" and can_pack(dtype)
        self._transposed: Tensor | None = None
        self._narrow: Tensor | None = None
        if self._pack and single_rows == dtype:
            self._transposed = torch.empty(shape[::-1], dtype=dtype)
        elif self._pack and single_rows:
            self._narrow = torch.empty(shape, dtype=single_rows)
        self._weight = torch.empty(0 if self._pack else shape, dtype=dtype, device=device)

    def load(self, weight: Tensor) -> None:
        """Copy other values, [out, in], in the matrix's dtype and on its device."""
        if self._pack:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        else:
            self._weight.copy_(weight)
        if self._transposed is not None:
            self._transposed.copy_(weight.t())
        if self._narrow is not None:
            self._narrow.copy_(weight)

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [N, in] -> x @ W.T + bias, [N, out]."""
        if self._transposed is not None and x.shape[0] == 1:
            return x @ self._transposed if bias is None else torch.addmm(bias, x, self._transposed)
        if self._narrow is not None and x.shape[0] == 1:
            row = F.linear(x.to(self._narrow.dtype), self._narrow).to(x.dtype)
            return row if bias is None else row.add_(bias)
        if self._pack:
            product: Tensor = torch.ops.mkldnn._linear_pointwise(
                x, self._weight, bias, "none", [], ""
            )
            return product
        return F.linear(x, self._weight, bias)

    def add_to(self, sum_: Tensor, x: Tensor) -> Tensor:
        """sum_ [N, out] + x @ W.T, without a pass of its own for the sum."""
        if self._transposed is not None and x.shape[0] == 1:
            return torch.addmm(sum_, x, self._transposed)
        if self._narrow is not None and x.shape[0] == 1:
            return F.linear(x.to(self._narrow.dtype), self._narrow).to(x.dtype).add_(sum_)
        if self._pack:
            total: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
                x, sum_, self._weight, None, "add"
            )
            return total
        return torch.addmm(sum_, x, self._weight.t())


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch and this CPU have oneDNN's packed products for `dtype`."""
    try:
        weight = torch.ops.mkldnn._reorder_linear_weight(torch.eye(8, dtype=dtype), None)
        ones = torch.ones(2, 8, dtype=dtype)
        product = torch.ops.mkldnn._linear_pointwise(ones, weight, None, "none", [], "")
        total = torch.ops.mkldnn._linear_pointwise.binary(ones, ones, weight, None, "add")
    except (AttributeError, RuntimeError):
        return False
    return torch.equal(product, ones) and torch.equal(total, ones + ones)


@cache
def bfloat16_rows_pay() -> bool:
    """Whether one row is multiplied with a bfloat16 weight faster than with a float32 one, here."""
    wide = [torch.ones(512, 2048) for _ in range(8)]  # 32 MB: more than stays near a core
    narrow = [weight.to(torch.bfloat16) for weight in wide]
    row, short = torch.ones(1, 512), torch.ones(1, 2048, dtype=torch.bfloat16)

    def seconds(product: Callable[[int], Tensor]) -> float:
        durations = []
        for n in range(40):
            began = time.perf_counter()
            product(n % 8)
            durations.append(time.perf_counter() - began)
        return statistics.median(durations[8:])

    return seconds(lambda n: F.linear(short, narrow[n])) < seconds(lambda n: row @ wide[n])
