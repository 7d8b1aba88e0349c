"""How many drafts of the MTP layers a model accepts on its own answers, with an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openmimo.errors import UserError
from openmimo.inference.engine import Engine
from openmimo.inference.protocol import Request
from openmimo.model.mimo import MiMo

T_95 = 2.0
"""Quantile of Student's t for a two-sided 95 % interval from about 60 prompts."""


@dataclass
class _Drafts:
    """What became of the drafts of one answer, layer by layer."""

    tokens: int
    steps: int
    accepted: list[int]


def measure_acceptance(model: MiMo, requests: Sequence[Request], used_vocab: int) -> dict[str, Any]:
    """Answer `requests`, all at once, drafting with all MTP layers.

    Drafts of one answer are alike, so the interval comes from the spread between the answers (the
    standard error of a ratio).

    Returns:
        acceptance: share of the drafts of each layer that was accepted, those before it included.
        low, high: its 95 % interval, layer by layer; the value itself with a single prompt.
        conditional: the same share where all drafts before were accepted.
        tokens_per_forward, prompts, tokens.

    Raises:
        UserError: the model has no MTP layer.
    """
    if not model.mtp_layers:
        raise UserError("this model has no MTP layer to draft with")
    engine = Engine(
        model,
        drafts=len(model.mtp_layers),
        draft_vocab=model.config.vocab_size,  # the layers are measured, not the engine
        slots=len(requests),
        max_length=max(len(r.prompt_ids) + r.max_new_tokens for r in requests),
        used_vocab=used_vocab,
    )
    answers = _answer(engine, requests, len(model.mtp_layers))
    stats = engine.stats()
    shares = stats.acceptance
    margins = [_margin(answers, layer, share) for layer, share in enumerate(shares)]
    return {
        "acceptance": shares,
        "low": [max(0.0, s - m) for s, m in zip(shares, margins, strict=True)],
        "high": [min(1.0, s + m) for s, m in zip(shares, margins, strict=True)],
        "conditional": stats.conditional_acceptance,
        "tokens_per_forward": stats.tokens_per_forward,
        "prompts": len(requests),
        "tokens": stats.generated_tokens,
    }


def _answer(engine: Engine, requests: Sequence[Request], layers: int) -> list[_Drafts]:
    """Drafts answer by answer. A step that adds n tokens has accepted n - 1 drafts."""
    engine.submit(requests)
    answers = {request.id: _Drafts(0, 0, [0] * layers) for request in requests}
    open_ids = set(answers)
    while open_ids:
        lengths = {done.request_id: len(done.token_ids) for done in engine.step()}
        for request_id in open_ids:
            answer = answers[request_id]
            length = lengths.get(request_id) or len(engine.generated(request_id).token_ids)
            if length == answer.tokens:
                continue  # its prompt is still being read
            for layer in range(layers):
                answer.accepted[layer] += length - answer.tokens > layer + 1
            answer.tokens = length
            answer.steps += 1
        open_ids -= lengths.keys()
    return list(answers.values())


def _margin(answers: Sequence[_Drafts], layer: int, share: float) -> float:
    """Half the 95 % interval of accepted / offered over the answers."""
    count = len(answers)
    if count < 2:
        return 0.0
    errors = [answer.accepted[layer] - share * answer.steps for answer in answers]
    variance = sum(error**2 for error in errors) / (count - 1)
    return T_95 * math.sqrt(variance * count) / sum(answer.steps for answer in answers)
