"""A recipe whose settings of RL alone matter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from openmimo.config.schema import Recipe
from openmimo.data.documents import write_records
from openmimo.metrics import read_metrics
from openmimo.model.checkpoint import save_model
from openmimo.model.mimo import MiMo
from openmimo.rl import train
from openmimo.runs import Run
from openmimo.tokenizer import Tokenizer

CLOCKS = ("time", "time_rollout", "time_update", "time_reward_wait", "time_event_loop_lag")

RL = {
    "steps": 5, "prompts_per_step": 2, "prompts_per_update": 1, "group_size": 4,
    "learning_rate": 1e-3, "warmup_updates": 1, "max_new_tokens": 16, "max_prompts": 12,
    "slots": 32, "reward_lag": 3, "max_short_steps": 2, "checkpoint_every": 2,
}  # fmt: skip


@pytest.fixture
def make_recipe(
    taught: tuple[MiMo, Tokenizer, list[dict[str, Any]]],
) -> Callable[..., Recipe]:
    """`make_recipe(**changes)`: RL with other settings, for the taught model."""

    def make_recipe(compute: dict[str, Any] | None = None, **changes: Any) -> Recipe:
        row = {
            "stage": "s", "until": 1, "learning_rate": [0, 0], "batch": [1, 1], "length": 2,
            "rope_base": 1e4, "mtp_weight": 0, "mixture": {"math": 1},
        }  # fmt: skip
        return Recipe.model_validate(
            {
                "name": "tiny",
                "model": taught[0].config.model_dump(),
                "data": {"vocab_size": 290},
                "pretrain": {"schedule": [row]},
                "mtp_heads": {"mixture": {"math": 1}, "length": 16},
                "sft": {"length": 16},
                "rl": RL | changes,
                "compute": compute or {},
            }
        )

    return make_recipe


@pytest.fixture
def trained(
    taught: tuple[MiMo, Tokenizer, list[dict[str, Any]]],
    tmp_path: Path,
    make_recipe: Callable[..., Recipe],
) -> Callable[..., list[dict[str, Any]]]:
    """`trained(name, **changes)`: the metrics, but for clocks, of RL with these settings."""
    model, tokenizer, problems = taught

    def trained(name: str, **changes: Any) -> list[dict[str, Any]]:
        run = Run(tmp_path / name)
        stages = {name: run.stage(name, f"hash {name}") for name in ("data", "sft", "difficulty")}
        tokenizer.save(stages["data"].dir / "tokenizer")
        (stages["data"].dir / "problems").mkdir()
        held = [problem | {"id": f"held {n}"} for n, problem in enumerate(problems[:-1])]
        write_records(stages["data"].dir / "problems" / "heldout.jsonl", held)
        save_model(model, stages["sft"].dir / "model", torch.float32)
        write_records(stages["difficulty"].dir / "problems.jsonl", problems[:-1])
        for stage in stages.values():
            stage.finish()
        train.run(make_recipe(**{"steps": 4} | changes), run, "rl")
        metrics = read_metrics(run.dir / "stages" / "rl" / "metrics.jsonl")
        return [{k: v for k, v in record.items() if k not in CLOCKS} for record in metrics]

    return trained
