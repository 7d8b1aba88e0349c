"""Trace files: what a run wrote is replayed; what is wrong is named."""

import json
from pathlib import Path

import pytest

from openmimo.errors import UserError
from openmimo.rollout.policies import Naive, Ours
from openmimo.rollout.simulator.engine import EngineSpeed
from openmimo.rollout.simulator.simulate import Cluster, simulate
from openmimo.rollout.simulator.trace import TraceWriter, read_trace


def write(path: Path) -> None:
    with TraceWriter(path, prompts_per_step=2, group_size=2) as writer:
        writer.write(0, "a", [5, 6], [0.0, 1.0], [0.1, 0.2])
        writer.write(0, "b", [7, 8], [1.0, 1.0], [0.1, 0.2])
        writer.write(0, "c", [7, 8], [0.0, None], [0.1, 0.2])
        writer.write(1, "a", [9, 9], [0.0, 0.5], [0.1, 0.2])
        writer.write(1, "d", [3, 4], [0.0, 1.0], [0.1, 0.2])


def test_a_trace_comes_back_with_what_earlier_steps_knew(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl")
    first, second = read_trace(tmp_path / "t.jsonl")
    assert [prompt.key for prompt in first.prompts] == ["a", "b", "c", "a", "d"]
    assert [prompt.key for prompt in second.prompts] == ["a", "d", "a", "b", "c"]
    assert first.prompts[2].scores == (0.0, None)
    assert first.history is None
    assert first.prompts[0].prospect.tokens is None
    again = second.prompts[0].prospect
    assert (again.passed, again.failed, again.tokens) == (1, 1, 5.5)
    assert second.history is not None
    assert second.history.groups == 5  # a to d hold two valid groups only with the second step's d
    cluster = Cluster(1, EngineSpeed(0.01, 0.001, 4))
    for policy in (Naive(), Ours()):
        assert simulate(first, policy, cluster).done.selected == (0, 4)


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        (1, {"format": "other"}, "no rollout trace"),
        (1, {"group_size": 0}, "line 1: group_size is 0"),
        (2, {"tokens": [1]}, "line 2: tokens must be a list of 2"),
        (3, {"tokens": [0, 1]}, "line 3: tokens must be whole numbers"),
        (3, {"scores": [0.0, "x"]}, "line 3: scores has 'x'"),
        (4, {"reward_seconds": [0.0, None]}, "line 4: reward_seconds has None"),
        (4, {"step": -1}, "line 4: step is -1"),
        (6, {"step": 0}, "line 6: step 0 after step 1"),
    ],
)
def test_a_wrong_line_is_named(
    tmp_path: Path, line: int, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "t.jsonl"
    write(path)
    lines = path.read_text().splitlines()
    lines[line - 1] = json.dumps({**json.loads(lines[line - 1]), **change})
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=message):
        read_trace(path)


def test_what_is_no_trace_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with pytest.raises(UserError, match="cannot read"):
        read_trace(path)
    path.write_text("")
    with pytest.raises(UserError, match="no rollout trace"):
        read_trace(path)
    path.write_text("{nothing")
    with pytest.raises(UserError, match="line 1: not JSON"):
        read_trace(path)
    TraceWriter(path, 1, 1).close()
    with pytest.raises(UserError, match="no prompts"):
        read_trace(path)
    with TraceWriter(path, 1, 2) as writer, pytest.raises(ValueError, match="2 samples"):
        writer.write(0, "a", [1], [1.0], [0.0])
