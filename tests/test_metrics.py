import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.errors import UserError
from openmimo.metrics import MetricsWriter, read_metrics


def steps(path: Path) -> list[int]:
    return [record["step"] for record in read_metrics(path)]


def test_records_come_back_in_order_with_step_and_time(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "metrics.jsonl"
    before = time.time()
    with MetricsWriter(path) as metrics:
        metrics.log(1, loss=2.5, mtp_loss=[1.0, 2.0], stage="one")
        metrics.log(2, loss=2.25, answer="é\nü")
    first, second = read_metrics(path)
    assert first["step"] == 1
    assert first["mtp_loss"] == [1.0, 2.0]
    assert before - 1 <= first["time"] <= time.time() + 1
    assert second["answer"] == "é\nü"


def test_a_line_is_readable_before_the_writer_is_closed(tmp_path: Path) -> None:
    metrics = MetricsWriter(tmp_path / "m.jsonl")
    metrics.log(1)
    assert steps(tmp_path / "m.jsonl") == [1]
    metrics.close()


def test_numpy_numbers_and_non_finite_values(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    with MetricsWriter(path) as metrics:
        metrics.log(1, a=np.float32(0.5), b=math.nan, c=[math.inf], d={"e": np.int64(3)})
    record = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert (record["a"], record["b"], record["c"], record["d"]) == (0.5, None, [None], {"e": 3})


def test_without_resume_the_file_starts_empty(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    for _ in range(2):
        with MetricsWriter(path) as metrics:
            metrics.log(1)
    assert steps(path) == [1]


@given(last=st.integers(0, 20), checkpoint=st.integers(0, 20), torn=st.integers(0, 30))
def test_resume_keeps_each_step_once(
    tmp_path_factory: pytest.TempPathFactory, last: int, checkpoint: int, torn: int
) -> None:
    path = tmp_path_factory.mktemp("resume") / "m.jsonl"
    with MetricsWriter(path) as metrics:
        for step in range(1, last + 1):
            metrics.log(step, loss=1.0)
    if torn:
        with path.open("ab") as file:
            file.write(b'{"step": 21, "time": 1.0, "loss": 1}'[:torn])
    assert steps(path) == list(range(1, last + 1))  # reading alone tolerates the torn line

    checkpoint = min(checkpoint, last)
    with MetricsWriter(path, resume_step=checkpoint) as metrics:
        for step in range(checkpoint + 1, 23):
            metrics.log(step, loss=2.0)
    assert steps(path) == list(range(1, 23))
    assert [r["loss"] for r in read_metrics(path)].count(1.0) == checkpoint


def test_a_broken_line_in_the_middle_is_not_hidden(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match="Expecting value"):
        read_metrics(path)


def test_a_missing_file_has_no_records(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_kill_while_writing_then_resume(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    code = (
        "import sys, itertools; from openmimo.metrics import MetricsWriter\n"
        "m = MetricsWriter(sys.argv[1])\n"
        "for step in itertools.count(1): m.log(step, text='x' * 500)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)])
    deadline = time.monotonic() + 20
    while not (path.exists() and path.stat().st_size > 50_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    written = steps(path)
    assert written == list(range(1, len(written) + 1))
    MetricsWriter(path, resume_step=10).close()
    assert steps(path) == list(range(1, 11))


def test_resuming_a_damaged_file_says_what_to_remove(tmp_path: Path) -> None:
    path = tmp_path / "sft" / "m.jsonl"
    path.parent.mkdir()
    for damage in ('{"step": 1}\nnonsense\n', '{"steps": 1}\n', "[]\n", '{"step": null}\n'):
        path.write_text(damage)
        with pytest.raises(UserError, match=r"m.jsonl is damaged .*: remove .*sft and repeat"):
            MetricsWriter(path, resume_step=1)
