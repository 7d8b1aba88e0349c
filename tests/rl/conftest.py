"""A recipe whose settings of RL alone matter."""

from collections.abc import Callable
from typing import Any

import pytest

from openmimo.config.schema import Recipe
from openmimo.model.mimo import MiMo
from openmimo.tokenizer import Tokenizer

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

    def make_recipe(**changes: Any) -> Recipe:
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
            }
        )

    return make_recipe
