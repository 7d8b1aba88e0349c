"""Decode steps in a few fixed shapes, each captured once as a CUDA graph.

A GPU computes a small step faster than Python can launch its kernels; a graph launches them all at
once. It has fixed shapes and addresses, so rows and cache entries are rounded up, which costs some
work, and inputs are copied to where the graph reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openmimo.inference.cache import KVCache
from openmimo.inference.packed import PackedModel, Span

SHORTEST = 256
"""Cache entries that even the shortest graph reads: so few cost nothing."""
MOST = 64
"""Shapes kept at a time, the latest used; each takes some megabytes and a moment to make."""


class Step(NamedTuple):
    """One shape: its inputs, int64 [N, T] each, its output [N, T, D], and how to compute it."""

    tokens: Tensor
    positions: Tensor
    hidden: Tensor
    run: Callable[[], None]


class FixedSteps:
    """Computes `PackedModel.hidden` of the rows 0..N-1 of a cache.

    A step that pads to more rows also computes rows that are not decoding. They write their last
    entry, which no sequence uses.

    Args:
        slots: rows of the cache.
    """

    def __init__(self, model: PackedModel, cache: KVCache, slots: int) -> None:
        self._model, self._cache, self._slots = model, cache, slots
        self._steps: dict[tuple[int, int, int], Step] = {}
        self._pool: Any = None  # memory that all graphs share

    @torch.inference_mode()
    def hidden(self, tokens: NDArray[np.int64], positions: NDArray[np.int64]) -> Tensor:
        """Hidden states before the final norm, [N, T, D], valid until the next call.

        Args:
            tokens, positions: [N, T]; the cache entries `positions` are written.
        """
        count, width = tokens.shape
        rows = rounded(count, 1, self._slots)
        length = rounded(int(positions.max()) + 1, SHORTEST, self._cache.length)
        shape = (rows, width, length)
        step = self._steps.pop(shape, None) or self._make(*shape)
        self._steps[shape] = step  # the latest used stand last
        if len(self._steps) > MOST:
            del self._steps[next(iter(self._steps))]
        step.tokens[:count].copy_(torch.from_numpy(tokens), non_blocking=True)
        step.positions[:count].copy_(torch.from_numpy(positions), non_blocking=True)
        step.positions[count:] = self._cache.length - 1
        step.run()
        return step.hidden[:count]

    def _make(self, rows: int, width: int, length: int) -> Step:
        device = self._model.device
        tokens = torch.zeros(rows, width, dtype=torch.int64, device=device)
        positions = torch.full_like(tokens, self._cache.length - 1)
        hidden = torch.empty(
            rows, width, self._model.config.hidden_size, dtype=self._model.dtype, device=device
        )

        def compute() -> None:
            span = Span(self._model, slice(0, rows), positions, length)
            hidden.copy_(self._model.hidden(tokens, span, self._cache))

        run = self._captured(compute) if device.type == "cuda" else compute
        return Step(tokens, positions, hidden, run)

    def _captured(self, compute: Callable[[], None]) -> Callable[[], None]:
        # The libraries choose their kernels and make their workspaces in the first call, which a
        # capture must not record. The inputs are such that it writes unused entries alone.
        stream = torch.cuda.Stream(self._model.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            compute()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            compute()
        self._pool = graph.pool()
        return graph.replay


def rounded(size: int, least: int, most: int) -> int:
    """`size` rounded up to a power of two times `least`, or one and a half of that; to `most` at
    most."""
    whole = least
    while whole < size:
        if whole >= 2 * least and whole * 3 // 2 >= size:
            return min(whole * 3 // 2, most)
        whole *= 2
    return min(whole, most)
