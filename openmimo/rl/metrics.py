"""What one RL step logs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from openmimo.config.schema import RLConfig
from openmimo.errors import UserError
from openmimo.inference.protocol import EngineStats, InferenceEngine
from openmimo.rl.stream import Draw
from openmimo.rollout.records import Group, Rollout


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _pass_rate(groups: Sequence[Group], domain: str | None = None) -> float | None:
    """Share of scored samples that are fully right, before any filter."""
    return _mean(
        [
            float(result.correct)
            for group in groups
            if domain in (None, group.prompt.problem["domain"])
            for result in group.results
            if result is not None and result.score is not None
        ]
    )


def step_metrics(
    rollout: Rollout, draws: Sequence[Draw], updates: Sequence[dict[str, float]], config: RLConfig
) -> dict[str, Any]:
    """Metrics over all committed groups (not only the valid ones) and the mean over updates."""
    groups, stats = rollout.groups, rollout.done.stats
    completions = [c for group in groups for c in group.completions if c is not None]
    scores = [s for group in groups for s in group.scores if s is not None]
    values: dict[str, Any] = {
        "reward_mean": _mean(scores),
        "pass_rate": _pass_rate(groups),
        "pass_rate_math": _pass_rate(groups, "math"),
        "pass_rate_code": _pass_rate(groups, "code"),
        "valid_rate_passrate": stats.valid_passrate / stats.committed,
        "valid_rate_std": stats.valid_reward_std / stats.committed,
        "easy_pool_share": _mean([float(draw.from_pool) for draw in draws[: stats.committed]]),
        "response_length": _mean([float(len(c.token_ids)) for c in completions]),
        "truncated": _mean([float(c.finish_reason == "length") for c in completions]),
        "unscorable": stats.unscorable_samples,
        "prompts_launched": stats.launched,
        "prompts_aborted": stats.aborted,
        "prompts_trained": len(rollout.done.selected),
        "surplus_valid": stats.surplus_valid,
        "decode_steps": rollout.decode_steps,
        "time_reward_wait": rollout.reward_wait_seconds,
        "time_event_loop_lag": rollout.loop_lag,
    }
    for key in ("entropy", "clip_low", "clip_high", "approx_kl", "grad_norm"):
        values[key] = _mean([update[key] for update in updates])
    values["ratio_max"] = max((update["ratio_max"] for update in updates), default=None)
    return values


Counters = list[tuple[InferenceEngine, EngineStats]]


def counters(engines: Sequence[InferenceEngine]) -> Counters:
    """The counters of the engines that are there."""
    found: Counters = []
    for engine in engines:
        try:
            found.append((engine, engine.stats()))
        except UserError:  # it is dead, which the driver sees to
            continue
    return found


def draft_metrics(before: Counters, after: Counters) -> dict[str, float]:
    """What the drafts of a step were worth, by layer; empty if nothing was drafted.

    An engine that was started again meanwhile is left out.
    """
    offered: dict[int, int] = defaultdict(int)
    accepted: dict[int, int] = defaultdict(int)
    for engine, then in before:
        for other, now in after:
            if other is engine:
                for layer, count in enumerate(then.drafts_offered):
                    offered[layer] += now.drafts_offered[layer] - count
                    accepted[layer] += now.drafts_accepted[layer] - then.drafts_accepted[layer]
    return {
        f"acceptance_{layer}": accepted[layer] / drafts
        for layer, drafts in offered.items()
        if drafts
    }
