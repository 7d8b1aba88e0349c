"""A process ends with the torchrun that started it, and says there why it failed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import openmimo
from openmimo.cli import main

CHILD = """
import os, signal, sys, time
from openmimo.torchrun import LOOKS, end_with_torchrun

signals = []
signal.signal(signal.SIGTERM, lambda *_: signals.append("SIGTERM"))
end_with_torchrun()
time.sleep(2 * LOOKS)
print(*signals, "alive", flush=True)
end = time.monotonic() + 20
while not signals and time.monotonic() < end:
    time.sleep(0.05)
time.sleep(2 * LOOKS)
open(sys.argv[1], "w").write(" ".join(signals) + "\\n")
"""
PARENT = """
import subprocess, sys, threading, time
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()  # torchrun has many
subprocess.run([sys.executable, "-c", *sys.argv[1:]])
"""


def test_one_sigterm_when_torchrun_is_killed(tmp_path: Path) -> None:
    """One: a second would stop the training without a checkpoint."""
    told = tmp_path / "told"
    environment = os.environ | {
        "TORCHELASTIC_RUN_ID": "x",
        "PYTHONPATH": str(Path(openmimo.__file__).parents[1]),
    }
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD, str(told)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "alive\n"
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    end = time.monotonic() + 30
    while not (told.exists() and told.read_text().endswith("\n")):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert told.read_text() == "SIGTERM\n"
    parent.stdout.close()


def test_torchrun_s_summary_shows_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Read by torchrun's own reader."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    monkeypatch.setenv("RANK", "1")
    assert main(["pretrain", "--out", str(tmp_path / "run"), "compute.dtype=int4"]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("mimo: error: rank 1: compute.dtype is 'int4'")
    failure = ProcessFailure(0, os.getpid(), 2, str(file))
    assert f"traceback : {line}" in ChildFailedError("openmimo", {0: failure}).format_msg()
    assert abs(failure.timestamp - time.time()) < 60
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "no" / "folder"))
    assert main(["pretrain", "--out", str(tmp_path / "run"), "compute.dtype=int4"]) == 2
