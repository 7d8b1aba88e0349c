"""One step of RL: rollout -> rewards -> advantages -> updates, and its numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from openmimo.config.schema import RLConfig
from openmimo.model.mimo import MiMo
from openmimo.rl.curriculum import Curriculum
from openmimo.rl.metrics import counters, draft_metrics, step_metrics
from openmimo.rl.update import grpo_update
from openmimo.rl.validation import Validation
from openmimo.rollout.driver import RolloutDriver
from openmimo.rollout.records import Rollout
from openmimo.rollout.scheduler import StepSettings
from openmimo.rollout.validity import valid_by_passrate, valid_by_reward_std
from openmimo.training.loop import constant_with_warmup
from openmimo.training.online_mtp import OnlineMTP


@dataclass(frozen=True)
class Learner:
    """A model that learns from its own answers.

    validate: makes the validation of a step (its index given); None in steps without one.
    used_vocab: ids from this one on are never sampled.
    """

    model: MiMo
    optimizer: torch.optim.AdamW
    config: RLConfig
    curriculum: Curriculum
    driver: RolloutDriver
    online: OnlineMTP
    validate: Callable[[int], Validation | None]
    used_vocab: int

    def step(self, index: int) -> tuple[dict[str, Any], Rollout]:
        """Step number `index` (the first is 0): its numbers, and what was sampled.

        Raises:
            UserError: see `Curriculum.commit` and `RolloutDriver.collect`.
        """
        began = time.monotonic()
        rollout, validation, drafts = self._sample(index)
        draws = self.curriculum.commit(rollout)
        rolled = time.monotonic()
        updates = self._update(rollout, index)
        _, mtp_losses = self.online.refresh()
        values = step_metrics(rollout, draws, updates, self.config)
        values |= drafts | {f"mtp_loss_{layer}": loss for layer, loss in enumerate(mtp_losses)}
        values |= validation.metrics() if validation is not None else {}
        values |= self.curriculum.metrics()
        values["time_rollout"] = rolled - began
        values["time_update"] = time.monotonic() - rolled
        return values, rollout

    def _sample(self, index: int) -> tuple[Rollout, Validation | None, dict[str, float]]:
        self.model.eval()
        # A new mapping says that the weights are new ones.
        self.driver.update_weights(dict(self.model.state_dict()))
        before = counters(self.driver.engines)
        validation = self.validate(index)
        rollout = self.driver.collect(
            step_settings(self.config, self.driver.slots),
            self.curriculum.draw,
            history=self.curriculum.rates,
            background=validation.background if validation is not None else None,
        )
        assert rollout is not None  # nothing interrupts it
        return rollout, validation, draft_metrics(before, counters(self.driver.engines))

    def _update(self, rollout: Rollout, index: int) -> list[dict[str, float]]:
        """One update for every `prompts_per_update` prompts of the batch, in stream order."""
        self.model.train()
        batch, size = rollout.batch, self.config.prompts_per_update
        first = index * (self.config.prompts_per_step // size)
        rate, warmup = self.config.learning_rate, self.config.warmup_updates
        return [
            grpo_update(
                self.model,
                self.optimizer,
                batch[start : start + size],
                self.config,
                constant_with_warmup(first + number, rate, warmup),
                self.used_vocab,
            )
            for number, start in enumerate(range(0, len(batch), size))
        ]


def step_settings(config: RLConfig, slots: int) -> StepSettings:
    """The scheduler's view of the settings; `slots`: of all engines."""
    validity: Callable[[Sequence[float | None]], bool] = (
        valid_by_passrate if config.validity == "passrate" else valid_by_reward_std
    )
    return StepSettings(
        prompts_per_step=config.prompts_per_step,
        group_size=config.group_size,
        max_running_samples=slots,
        max_prompts=config.max_prompts,
        validity=validity,
    )
