import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openmimo.config.schema import ModelConfig
from openmimo.training import throughput
from openmimo.training.batch import Batch, Segment, batch_rows
from openmimo.training.throughput import Peak, StepClock, Throughput, device_peak, matmul_peak

CPU = torch.device("cpu")
CONFIG = ModelConfig(
    vocab_size=96,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    max_position_embeddings=64,
)
SECONDS = {"other": 0.25, "data": 0.25, "forward_backward": 1.0, "update": 0.5}


def one_document(rows: int = 2, length: int = 32) -> Batch:
    return batch_rows([[Segment(np.arange(length))]] * rows, length, 0)


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Throughput:
    """Of a machine that does 1e9 operations a second."""
    monkeypatch.setattr(throughput, "device_peak", lambda *_: Peak("mfu", 1e9))
    return Throughput(CONFIG, 1, True, CPU, torch.float32, ranks=1)


@given(gaps=st.lists(st.floats(0, 100), min_size=1, max_size=30), reads=st.sets(st.integers(1, 30)))
def test_the_parts_of_all_steps_are_the_whole_time(gaps: list[float], reads: set[int]) -> None:
    moments = np.cumsum([5.0, *gaps]).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(throughput.time, "perf_counter", iter(moments).__next__)
        clock, total = StepClock(CPU), {"data": 0.0, "update": 0.0}
        for number in range(1, len(moments)):
            clock.mark(("data", "update")[number % 2])
            if number in reads or number == len(moments) - 1:
                for part, seconds in clock.read().items():
                    total[part] += seconds
    steps = [after - before for before, after in pairwise(moments)]
    assert total["update"] == pytest.approx(sum(steps[::2]))
    assert total["data"] == pytest.approx(sum(steps[1::2]))


def test_speed_and_wait_are_shares_of_the_whole_step(meter: Throughput) -> None:
    values = meter.fields(one_document(), tokens=640, targets=620, seconds=SECONDS)
    assert values["tokens_per_second"] == 320
    assert values["data_wait"] == 0.125
    assert values["time_forward_backward"] == 1.0
    assert 0.01 < values["memory_gb"] < 1000


def test_mfu_by_hand(meter: Throughput) -> None:
    """A document of 32 tokens: a query sees 16.5 keys on average."""
    hidden, kv, ff, vocab = 16, 8, 24, 96
    block = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * ff
    attention = 4 * hidden * 16.5  # scores and values, forward
    layers = 2 * block + (block + 2 * hidden * hidden)  # the MTP layer joins two inputs
    forward = 2 * layers + 3 * attention
    head = 2 * vocab * hidden
    expected = 3 * forward * 640 + 3 * 2 * head * 620
    values = meter.fields(one_document(), tokens=640, targets=620, seconds=SECONDS)
    assert values["mfu"] == pytest.approx(expected / 2.0 / 1e9)


def test_short_documents_and_few_targets_are_less_work(meter: Throughput) -> None:
    def mfu(batch: Batch, targets: int) -> float:
        value: float = meter.fields(batch, 64, targets, SECONDS)["mfu"]
        return value

    packed = batch_rows([[Segment(np.arange(8))] * 4] * 2, 32, 0)
    assert mfu(packed, 62) < mfu(one_document(), 62)
    assert mfu(one_document(), 10) < mfu(one_document(), 62)


def test_ranks_share_the_work(meter: Throughput, monkeypatch: pytest.MonkeyPatch) -> None:
    four = Throughput(CONFIG, 1, True, CPU, torch.float32, ranks=4)
    one_mfu = meter.fields(one_document(), 640, 620, SECONDS)["mfu"]
    assert four.fields(one_document(), 640, 620, SECONDS)["mfu"] == pytest.approx(one_mfu / 4)


def test_no_share_is_claimed_where_the_trunk_did_not_run(meter: Throughput) -> None:
    batch = replace(one_document(), hidden=torch.zeros(2, 32, 16))
    assert "mfu" not in meter.fields(batch, 64, 62, SECONDS)


def test_a_rank_without_rows_has_fields_too(meter: Throughput) -> None:
    assert meter.fields(one_document(0), 64, 62, SECONDS)["mfu"] > 0


def test_the_peak_of_this_machine() -> None:
    before = torch.get_rng_state()
    began = time.perf_counter()
    peak = matmul_peak(CPU, torch.float32)
    first = time.perf_counter() - began
    assert torch.equal(torch.get_rng_state(), before)
    matrix = torch.rand(256, 256)
    seconds = []
    for _ in range(20):
        began = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - began)
    # Nothing of that size is much faster; other users of the machine may have slowed both.
    assert peak > 0.5 * 2 * 256**3 / min(seconds)
    assert first < 5
    began = time.perf_counter()
    assert matmul_peak(CPU, torch.float32) == peak
    assert time.perf_counter() - began < throughput.MEASURE_SECONDS / 3
    assert device_peak(CPU, torch.float32) == Peak("peak_share", peak)


def test_the_peak_is_that_of_the_fastest_layout() -> None:
    """In bfloat16 some CPUs multiply a transposed matrix twenty times faster than a plain one."""
    peak = matmul_peak(CPU, torch.bfloat16)
    left, right = torch.rand(2, 128, 128).bfloat16()
    for one, other in ((left, right.t()), (left, right), (left.t(), right)):
        seconds = []
        for _ in range(20):
            began = time.perf_counter()
            one @ other
            seconds.append(time.perf_counter() - began)
        assert peak > 0.3 * 2 * 128**3 / min(seconds)


@pytest.mark.parametrize(("dtype", "peak"), [("bfloat16", 989.4e12), ("float32", 66.9e12)])
def test_a_known_gpu_has_its_sheet_peak(
    monkeypatch: pytest.MonkeyPatch, dtype: str, peak: float
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    assert device_peak(torch.device("cuda"), getattr(torch, dtype)) == Peak(
        "mfu", pytest.approx(peak)
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_clock_times_the_device_and_does_not_wait() -> None:
    device = torch.device("cuda")
    matrix = torch.rand(4096, 4096, device=device)
    matrix @ matrix
    torch.cuda.synchronize()
    clock = StepClock(device)
    began = time.perf_counter()
    clock.mark("data")
    for _ in range(50):
        out = matrix @ matrix
    clock.mark("forward_backward")
    queued = time.perf_counter() - began
    float(out.sum())
    ended = time.perf_counter() - began
    seconds = clock.read()
    assert queued < 0.5 * ended
    assert seconds["forward_backward"] == pytest.approx(ended, rel=0.3)
    assert seconds["data"] < 0.1 * ended
