"""Answers to all of a set of prompts: the engine without dynamic sampling (report, Table 3)."""

from __future__ import annotations

from collections.abc import Sequence

from openmimo.rollout.driver import OnSample, RolloutDriver
from openmimo.rollout.policies import Static
from openmimo.rollout.records import Prompt, Rollout
from openmimo.rollout.scheduler import StepSettings
from openmimo.rollout.validity import every_group
from openmimo.runs import Interrupt


def answer_all(
    driver: RolloutDriver,
    prompts: Sequence[Prompt],
    on_sample: OnSample | None = None,
    interrupt: Interrupt | None = None,
    policy: Static | None = None,
) -> Rollout | None:
    """Generate and score every sample; each prompt has equally many.

    Nothing is filtered, and each sample is scored while others are still decoded.

    Args:
        on_sample: called with each sample as its verdict arrives.
        interrupt: see `RolloutDriver.collect`.
        policy: default: `Static`.

    Returns:
        None if it was interrupted.
    """
    settings = StepSettings(
        prompts_per_step=len(prompts),
        group_size=len(prompts[0].sample_seeds),
        max_running_samples=driver.slots,
        max_prompts=len(prompts),
        validity=every_group,
    )
    coming = iter(prompts)
    return driver.collect(
        settings, lambda: next(coming), policy or Static(), on_sample=on_sample, interrupt=interrupt
    )
