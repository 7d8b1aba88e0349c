"""How many drafts of the MTP layers a model accepts on its own answers, with an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from openmimo.inference.engine import Engine
from openmimo.inference.protocol import EngineStats, Request
from openmimo.inference.speculative import SpeculativeDecoder
from openmimo.model.mimo import MiMo

GROUPS = 8
T_95 = 2.365
"""Quantile of Student's t for a two-sided 95 % interval from eight groups."""


def measure_acceptance(
    model: MiMo, requests: Sequence[Request], used_vocab: int, groups: int = GROUPS
) -> dict[str, Any]:
    """Answer `requests`, drafting with all MTP layers.

    The prompts are answered in groups; drafts of one answer are alike, so the interval comes from
    the spread between the groups' sums (the standard error of a ratio).

    Returns:
        acceptance: share of the drafts of each layer that was accepted, those before it included.
        low, high: its 95 % interval, layer by layer; the value itself with a single group.
        conditional: the same share where all drafts before were accepted.
        tokens_per_forward, prompts, tokens.

    Raises:
        UserError: the model has no MTP layer.
    """
    groups = min(groups, len(requests))
    stats = [_answer(model, requests[start::groups], used_vocab) for start in range(groups)]
    offered = _sums([each.drafts_offered for each in stats])
    reached = _sums([each.drafts_reached for each in stats])
    accepted = _sums([each.drafts_accepted for each in stats])
    shares = [a / max(1, o) for a, o in zip(accepted, offered, strict=True)]
    margins = [_margin(stats, layer, share) for layer, share in enumerate(shares)]
    tokens = sum(each.generated_tokens for each in stats)
    return {
        "acceptance": shares,
        "low": [max(0.0, s - m) for s, m in zip(shares, margins, strict=True)],
        "high": [min(1.0, s + m) for s, m in zip(shares, margins, strict=True)],
        "conditional": [a / max(1, r) for a, r in zip(accepted, reached, strict=True)],
        "tokens_per_forward": tokens / max(1, sum(each.row_steps for each in stats)),
        "prompts": len(requests),
        "tokens": tokens,
    }


def _answer(model: MiMo, requests: Sequence[Request], used_vocab: int) -> EngineStats:
    engine = Engine(
        SpeculativeDecoder(model, len(model.mtp_layers)),
        slots=len(requests),
        max_length=max(len(r.prompt_ids) + r.max_new_tokens for r in requests),
        used_vocab=used_vocab,
    )
    engine.run(requests)
    return engine.stats()


def _sums(counts: Sequence[Sequence[int]]) -> list[int]:
    return [sum(column) for column in zip(*counts, strict=True)]


def _margin(stats: Sequence[EngineStats], layer: int, share: float) -> float:
    """Half the 95 % interval of accepted / offered over the groups."""
    groups = len(stats)
    if groups < 2:
        return 0.0
    offered = [each.drafts_offered[layer] for each in stats]
    accepted = [each.drafts_accepted[layer] for each in stats]
    errors = [a - share * o for a, o in zip(accepted, offered, strict=True)]
    variance = sum(error**2 for error in errors) / (groups - 1)
    return T_95 * math.sqrt(variance * groups) / max(1, sum(offered))
