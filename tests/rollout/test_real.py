"""Real steps under several policies: the same batches, and a trace that can be replayed."""

import json
from pathlib import Path
from typing import Any

import pytest

from openmimo.model.checkpoint import save_model
from openmimo.model.mimo import MiMo
from openmimo.rollout.real import RealSettings, measure_real
from openmimo.rollout.simulator.trace import read_trace
from openmimo.tokenizer import Tokenizer

Taught = tuple[MiMo, Tokenizer, list[dict[str, Any]]]


@pytest.mark.slow
def test_all_policies_take_the_same_batches_and_the_trace_is_what_happened(
    taught: Taught, tmp_path: Path
) -> None:
    model, tokenizer, problems = taught
    save_model(model, tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    settings = RealSettings(prompts=2, group=4, max_tokens=16, slots=16, steps=2)
    rows = measure_real(tmp_path / "model", file, settings, tmp_path / "trace.jsonl")
    assert list(rows) == ["naive", "report", "ours", "ours_mtp"]
    assert rows["naive"]["rollout_speedup"] == rows["naive"]["validation_speedup"] == 1
    for row in rows.values():
        assert row["same_batches"] is True
        assert len(row["seconds"]) == len(row["validation_seconds"]) == 2
        assert 0 <= row["idle"] <= 1
        assert 0 <= row["validation_idle"] <= 1
    steps = read_trace(tmp_path / "trace.jsonl")
    assert [step.prompts_per_step for step in steps] == [2, 2]
    for step in steps:
        selected, end = step.oracle()
        assert len(selected) == 2
        assert end <= len(step.prompts)
        assert all(seconds >= 0 for prompt in step.prompts for seconds in prompt.reward_seconds)
        assert max(tokens for prompt in step.prompts for tokens in prompt.tokens) <= 16
