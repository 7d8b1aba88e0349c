"""Where and how answers are generated changes the speed of RL, not what it learns from."""

from typing import Any

import pytest

from openmimo.errors import UserError

SAME = ("prompts_trained", "valid_rate_passrate", "epoch", "easy_pool_size")
ROUNDED = ("reward_mean", "pass_rate", "response_length", "entropy")


def assert_alike(records: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    for record, other in zip(records, others, strict=True):
        assert {name: record[name] for name in SAME} == {name: other[name] for name in SAME}
        for name in ROUNDED:
            assert record[name] == pytest.approx(other[name], rel=1e-3), name


@pytest.mark.slow
def test_neither_lag_nor_drafts_change_what_is_learnt(trained: Any) -> None:
    plain = trained("plain", steps=3)
    assert_alike(trained("off", steps=3, reward_lag="off"), plain)
    assert_alike(trained("drafts", steps=3, reward_lag="off", drafts="auto"), plain)


@pytest.mark.slow  # it starts a cluster
def test_engines_on_ray_give_the_same_batches(
    trained: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray", reason="no Ray: pip install 'openmimo[ray]'")
    compute = {"rollouts": "ray", "ray_engines": 2, "ray_cpus": 0.5}
    there = trained("ray", compute=compute, steps=2, slots=16, validate_every=2)
    assert "rl.reward_lag is off" in capsys.readouterr().out
    assert_alike(there, trained("native", steps=2, validate_every=2))
    assert there[-1]["validation_samples"] == 7


def test_mtp_layers_are_refreshed_by_the_native_engine_alone(trained: Any) -> None:
    with pytest.raises(UserError, match="mtp_refresh_steps needs the native engine's hidden"):
        trained("ray", compute={"rollouts": "ray"}, drafts=1, mtp_refresh_steps=1)
