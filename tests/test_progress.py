import os
import pty
import subprocess
import sys

import pytest

from openmimo.progress import Progress, format_line


def test_a_line_says_where_the_stage_stands() -> None:
    values = {"loss": 2.34567, "lr": 1e-6, "tokens": 123456, "stage": "one"}
    assert format_line("pretrain", 3, 10, values, 61.4) == (
        "pretrain 3/10  loss 2.346  lr 1e-06  tokens 123456  stage one  left 0:01:01"
    )


def test_without_a_terminal_lines_are_plain_and_throttled(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Progress("sft", total=7, start=2, every=3) as progress:
        for step in range(3, 8):
            progress.step(step, loss=1.0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["sft 3/7", "sft 6/7", "sft 7/7"]
    assert lines[-1] == "sft 7/7  loss 1  left 0:00:00"


def test_on_a_terminal_there_is_a_bar_too() -> None:
    code = (
        "from openmimo.progress import Progress\n"
        "with Progress('sft', total=2) as p: p.step(1, tag='[b]'); p.step(2)"
    )
    leader, follower = pty.openpty()
    child = subprocess.Popen([sys.executable, "-c", code], stdout=follower, stderr=follower)
    os.close(follower)
    output = b""
    try:
        while chunk := os.read(leader, 4096):
            output += chunk
    except OSError:  # Linux's way to say that the other end is closed
        pass
    assert child.wait(timeout=20) == 0
    assert b"sft 1/2  tag [b]  left" in output
    assert "━".encode() in output
