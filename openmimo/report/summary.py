"""The numbers of a run in one plain dictionary: what report.json holds and both pages print."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, TypeGuard

from openmimo.report.load import STAGES, Run, Score

VARIANTS = {"base": "Base", "rl_zero": "RL-Zero", "sft": "SFT", "rl": "RL"}
CLAIMS = (("base", "sft", "rl"), ("base", "rl_zero"))
"""Orderings that the recipe promises, worst first."""

SCHEDULE = ("seq_len", "rope_base", "batch_tokens", "lr", "mtp_weight")
INCIDENTS = ("loss_spikes", "norm_spikes", "skipped")

Rows = list[dict[str, Any]]
"""Records of a metrics file, in step order."""


def summarise(run: Run) -> dict[str, Any]:
    """Every number of the report, JSON-ready; what the run lacks is null, empty, or in ``missing``.

    Fixed keys: ``variants.{base,rl_zero,sft,rl}.{pass_at_1,low,high,n}``, ``mtp_acceptance``
    (layer 0 first, on RL's answers), ``seconds`` (sum over stages) and ``peak_memory_gb``.
    """
    results = run.results
    variants = results.variants if results else {}
    mtp = results.mtp if results else {}
    return {
        "seed": seed if isinstance(seed := run.config.get("seed"), int) else None,
        "seconds": sum(done.seconds for done in run.done.values()),
        "peak_memory_gb": max((done.peak_memory_gb for done in run.done.values()), default=None),
        "variants": {
            name: variants[name].model_dump(exclude={"examples"}) if name in variants else None
            for name in VARIANTS
        },
        "claims": [*(judge_claim(chain, variants) for chain in CLAIMS), judge_best(variants)],
        "mtp_acceptance": mtp["rl"].acceptance if "rl" in mtp else [],
        "mtp": {name: record.model_dump() for name, record in mtp.items()},
        "sampling": results.sampling if results else {},
        "training": training_phases(run),
        "rl": {stage: rl_ends(run.metrics[stage]) for stage in ("rl_zero", "rl")},
        "data": run.stats.model_dump() if run.stats else None,
        "mixture": {name: mixture.model_dump() for name, mixture in run.mixture.items()},
        "stages": {name: run.done[name].model_dump() for name in STAGES if name in run.done},
        "missing": run.missing(),
    }


def judge_claim(chain: tuple[str, ...], scores: Mapping[str, Score]) -> dict[str, Any]:
    """Does each variant of ``chain`` beat the one before it, with 95 % intervals that do not meet?

    ``held`` is None when a variant was not evaluated. Intervals that do not overlap are a stricter
    test than a 5 % one on the difference; ``differences`` are in points.
    """
    title = " < ".join(VARIANTS[name] for name in chain)
    absent = [VARIANTS[name] for name in chain if name not in scores]
    if absent:
        text = f"not evaluated yet: {', '.join(absent)}"
        return {"claim": title, "held": None, "differences": [], "text": text}
    held, differences, steps = True, [], []
    for below, above in pairwise(chain):
        worse, better = scores[below], scores[above]
        apart = worse.high < better.low or better.high < worse.low
        held &= worse.high < better.low
        differences.append(100 * (better.pass_at_1 - worse.pass_at_1))
        steps.append(
            f"{VARIANTS[above]} − {VARIANTS[below]} = {differences[-1]:+.1f} points, "
            f"intervals {'apart' if apart else 'overlap'}"
        )
    return {"claim": title, "held": held, "differences": differences, "text": "; ".join(steps)}


def judge_best(scores: Mapping[str, Score]) -> dict[str, Any]:
    """Is RL ahead of every other variant? Unlike in `judge_claim` intervals may overlap."""
    title = "RL is the best of the four"
    absent = [text for key, text in VARIANTS.items() if key not in scores]
    if absent:
        text = f"not evaluated yet: {', '.join(absent)}"
        return {"claim": title, "held": None, "differences": [], "text": text}
    rival = max(VARIANTS.keys() - {"rl"}, key=lambda name: (scores[name].pass_at_1, name))
    ours, theirs = scores["rl"], scores[rival]
    difference = 100 * (ours.pass_at_1 - theirs.pass_at_1)
    apart = ours.low > theirs.high or theirs.low > ours.high
    text = (
        f"RL − {VARIANTS[rival]}, the best of the others, = {difference:+.1f} "
        f"points, intervals {'apart' if apart else 'overlap'}"
    )
    return {"claim": title, "held": difference > 0, "differences": [difference], "text": text}


def training_phases(run: Run) -> Rows:
    """One row a phase: each pre-training stage, then the MTP layers, then SFT."""
    files = [
        [(f"stage {name}", rows) for name, rows in split_stages(run.metrics["pretrain"])],
        [("MTP layers", run.metrics["mtp_heads"])],
        [("SFT", run.metrics["sft"])],
    ]
    phases = []
    for file in files:
        before: dict[str, Any] = {}  # counters go on over the phases of a file
        for name, rows in file:
            if rows:
                phases.append(_phase(name, rows, before))
                before = rows[-1]
    return phases


def split_stages(rows: Rows) -> list[tuple[str, Rows]]:
    """Pre-training records by their ``stage`` (written 1 or "stage1"), in order of appearance."""
    stages: dict[str, Rows] = {}
    for row in rows:
        stages.setdefault(str(row.get("stage")).removeprefix("stage").strip(" _"), []).append(row)
    return list(stages.items())


def _phase(name: str, rows: Rows, before: Mapping[str, Any]) -> dict[str, Any]:
    loss = [value for _, value in series(rows, "loss")]
    peak = series(rows, "mfu") or series(rows, "peak_share")
    return {
        "phase": name,
        "updates": len(rows),
        "tokens_at_end": rows[-1].get("tokens"),
        **{key: [rows[0].get(key), rows[-1].get(key)] for key in SCHEDULE},
        "loss": [_mean(loss[:10]), _mean(loss[-10:])],
        **{
            key: [
                _mean([value for _, value in series(rows, key, layer)[-10:]])
                for layer in range(mtp_layers(rows, key))
            ]
            for key in ("mtp_loss", "mtp_acceptance")
        },
        "tokens_per_second": _mean([value for _, value in series(rows, "tokens_per_second")]),
        "peak_share": _mean([value for _, value in peak]),
        **{key: _gain(key, rows[-1], before) for key in INCIDENTS},
    }


def _gain(key: str, last: Mapping[str, Any], before: Mapping[str, Any]) -> int | None:
    """How far a counter went between two records; None where it was not kept."""
    ends = last.get(key), before.get(key, 0)
    return ends[0] - ends[1] if all(isinstance(end, int) for end in ends) else None


RL_METRICS = {
    "reward_mean": "mean reward",
    "pass_rate": "pass rate",
    "pass_rate_math": "pass rate, mathematics",
    "pass_rate_code": "pass rate, code",
    "valid_rate_passrate": "groups with a pass rate between 0 and 1",
    "valid_rate_std": "groups with a reward spread",
    "easy_pool_share": "draws from the easy pool",
    "easy_pool_size": "prompts in the easy pool",
    "response_length": "response length (tokens)",
    "truncated": "responses cut off",
    "entropy": "entropy (nats a token)",
    "clip_high": "ratios clipped above",
    "clip_low": "ratios clipped below",
    "time_rollout": "rollout (s a step)",
    "time_update": "update (s a step)",
}
RL_SHARES = (
    "pass_rate", "pass_rate_math", "pass_rate_code", "valid_rate_passrate", "valid_rate_std",
    "easy_pool_share", "truncated", "clip_high", "clip_low",
)  # fmt: skip
RL_COUNTS = ("prompts_launched", "prompts_aborted", "unscorable")


def rl_ends(rows: Rows) -> dict[str, Any] | None:
    """Steps, means over the first and the last ten steps of every metric, totals of the counts."""
    if not rows:
        return None
    ends = {}
    for key in RL_METRICS:
        values = [value for _, value in series(rows, key)]
        ends[key] = [_mean(values[:10]), _mean(values[-10:])]
    totals = {key: sum(value for _, value in series(rows, key)) for key in RL_COUNTS}
    return {"steps": len(rows), **ends, **totals}


def series(
    rows: Rows, key: str, item: int | None = None, x: str = "step"
) -> list[tuple[float, float]]:
    """The points (row[x], row[key]) or (row[x], row[key][item]); rows without such numbers, as a
    loss that was not finite, are left out."""
    points = []
    for row in rows:
        where, value = row.get(x), row.get(key)
        if item is not None:
            value = value[item] if isinstance(value, list) and item < len(value) else None
        if _finite(where) and _finite(value):
            points.append((where, value))
    return points


def mtp_layers(rows: Rows, key: str = "mtp_loss") -> int:
    """How many MTP layers the records give a loss, or another number, for."""
    lists = [row[key] for row in rows if isinstance(row.get(key), list)]
    return max(map(len, lists), default=0)


def _finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
