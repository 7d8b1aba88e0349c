"""How fast a step was, where its time went, and how near it came to what the device can do.

On CUDA nothing here waits for the device: the parts of a step are timed by events in its stream,
which are read once the losses are, and the losses have to be waited for anyway.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch

from openmimo.config.schema import ModelConfig
from openmimo.runs import peak_memory_gb
from openmimo.training.batch import Batch
from openmimo.training.flops import training_flops
from openmimo.training.gpus import gpu_of_device

MEASURE_SECONDS = 0.3
"""Time for measuring the peak; more only where one small product takes longer."""
LARGEST_SIDE = {"cpu": 2048, "cuda": 8192}
"""Of the matrices that are multiplied to measure it."""

Moment = float | torch.cuda.Event


class StepClock:
    """Splits the time of a training loop into parts, without a gap: a part begins where the one
    before it ends. On CUDA it is the device's time: a part ends when its kernels have."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, Moment]] = [("start", self._now())]

    def mark(self, part: str) -> None:
        """Here `part` ends."""
        self._marks.append((part, self._now()))

    def read(self) -> dict[str, float]:
        """Seconds of each part since the last call; parts of one name are added.

        On CUDA the caller has read a result that was queued after the last mark.
        """
        seconds: dict[str, float] = {}
        for (_, before), (part, now) in pairwise(self._marks):
            seconds[part] = seconds.get(part, 0.0) + _elapsed(before, now)
        del self._marks[:-1]
        return seconds

    def _now(self) -> Moment:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def _elapsed(before: Moment, now: Moment) -> float:
    if isinstance(before, torch.cuda.Event) and isinstance(now, torch.cuda.Event):
        now.synchronize()  # returns at once, see `read`
        return before.elapsed_time(now) / 1000
    assert isinstance(before, float)
    assert isinstance(now, float)
    return now - before


@dataclass(frozen=True)
class Peak:
    """Operations a second that the device could do at best, and what a share of them is called.

    mfu: of the dense peak in the vendor's data sheet, as model FLOPs utilisation is defined.
    peak_share: of what large matrix products reach here; a CPU's own figure depends on its clock
    and its other users, and no sheet tells it.
    """

    field: str
    flops: float


def device_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """The peak for matrix products of `dtype`; a device that is in no table is measured."""
    if device.type == "cuda":
        gpu = gpu_of_device(torch.cuda.get_device_name(device))
        if gpu is not None:
            return Peak("mfu", gpu.peak(str(dtype).removeprefix("torch.")))
    return Peak("peak_share", matmul_peak(device, dtype))


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the fastest matrix product found in `MEASURE_SECONDS`, with torch's
    threads. It is measured once in a process."""
    return _measured_peak(device, dtype, torch.get_num_threads())


@lru_cache
def _measured_peak(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    best, side, end = 0.0, 256, time.perf_counter() + MEASURE_SECONDS
    while True:
        began = time.perf_counter()
        best = max(best, 2 * side**3 / _product_seconds(side, device, dtype))
        now = time.perf_counter()
        # Twice the side is eight times the work. What is too large for the time left is not begun;
        # the time left goes into trying again, as other users come and go.
        larger = now + 8 * (now - began) < end
        if larger and side < LARGEST_SIDE[device.type]:
            side *= 2
        elif now > end:
            return best


def _product_seconds(side: int, device: torch.device, dtype: torch.dtype) -> float:
    """Time of one product of square matrices, the best of a few.

    A linear layer has three: forward, and the gradients of input and weight. Which operand lies
    transposed in memory matters: in bfloat16 on a CPU without such instructions, twentyfold.
    """
    random = torch.Generator(device).manual_seed(0)  # torch's own draws stay as they are
    left, right = (
        torch.rand(side, side, generator=random, device=device).to(dtype) for _ in range(2)
    )
    seconds = []
    for one, other in ((left, right.t()), (left, right), (left.t(), right)):
        one @ other  # warm up
        for _ in range(2):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            began = time.perf_counter()
            one @ other
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began)
    return min(seconds)


class Throughput:
    """The fields of metrics.jsonl about speed and memory.

    Args:
        config: the model's shape.
        mtp_layers: how many MTP layers are trained.
        trunk: whether the trunk is.
        device, dtype: that the matrix products run on and in.
        ranks: devices that share each step.
    """

    def __init__(
        self,
        config: ModelConfig,
        mtp_layers: int,
        trunk: bool,
        device: torch.device,
        dtype: torch.dtype,
        ranks: int,
    ) -> None:
        self._config, self._mtp_layers, self._trunk = config, mtp_layers, trunk
        self._device, self._ranks = device, ranks
        self._peak = device_peak(device, dtype)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def fields(
        self, batch: Batch, tokens: int, targets: int, seconds: dict[str, float]
    ) -> dict[str, Any]:
        """What a step did in its time.

        Args:
            batch: this rank's rows; the other ranks' documents are taken to be as long.
            tokens, targets: of the step, over all ranks.
            seconds: of its parts, one of which is `data`; their sum is the step's time.
        """
        total = sum(seconds.values())
        values: dict[str, Any] = {
            "tokens_per_second": tokens / total,
            "data_wait": seconds["data"] / total,
            **{f"time_{part}": value for part, value in seconds.items()},
            **self._memory(),
        }
        # Where the trunk's output is known already, only a part of the model runs.
        if batch.hidden is None:
            done = self._flops(batch, tokens, targets)
            values[self._peak.field] = done / total / (self._peak.flops * self._ranks)
        return values

    def _flops(self, batch: Batch, tokens: int, targets: int) -> float:
        """Operations that the step needs; the head reads only positions that have a target."""
        context = float(batch.positions.double().mean()) + 1 if batch.positions.numel() else 1.0
        token = training_flops(self._config, context, self._mtp_layers, trunk=self._trunk)
        return (token.total - token.head) * tokens + token.head * targets

    def _memory(self) -> dict[str, float]:
        """The largest so far, in 1e9 bytes."""
        if self._device.type != "cuda":
            return {"memory_gb": peak_memory_gb()}
        return {
            "memory_gb": torch.cuda.max_memory_allocated(self._device) / 1e9,
            "memory_reserved_gb": torch.cuda.max_memory_reserved(self._device) / 1e9,
        }
