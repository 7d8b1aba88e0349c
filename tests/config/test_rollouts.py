"""Settings of rollouts that exclude each other, or mean nothing."""

from typing import Any

import pytest
from pydantic import ValidationError

from openmimo.config.base import config_hash
from openmimo.config.schema import ComputeConfig, RLConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drafts": "auto"}, 'needs reward_lag = "off"'),
        ({"drafts": -1}, "drafts must be at least 0"),
        ({"reward_lag": -1}, "reward_lag must be at least 0"),
        ({"reward_lag": "never"}, "reward_lag"),
    ],
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RLConfig(**settings)


@pytest.mark.parametrize(
    ("rollouts", "message"),
    [
        ("vllm", "must be"),
        ("http://a:1,b:2", "must be"),
        ("http://a:1,", "must be"),
        ("http://a:1, http://a:1", "names a server twice"),
    ],
)
def test_rollouts_that_are_refused(rollouts: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ComputeConfig(rollouts=rollouts)


def test_accepted() -> None:
    RLConfig(drafts="auto", reward_lag="off")
    for rollouts in ("native", "ray", "http://a:1", "http://a:1, https://b"):
        ComputeConfig(rollouts=rollouts)


def test_validation_is_no_reason_to_repeat_a_stage() -> None:
    assert config_hash(RLConfig()) == config_hash(RLConfig(validate_every=2, validation_problems=9))
    assert config_hash(RLConfig()) != config_hash(RLConfig(reward_lag="off"))
