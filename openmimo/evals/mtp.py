"""What the MTP layers are worth: how many drafts are accepted, and that greedy output stays."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from openmimo.evals.exam import Exam
from openmimo.inference.protocol import EngineStats, Request
from openmimo.model.mimo import MiMo


def measure_mtp(model: MiMo, exam: Exam) -> dict[str, Any]:
    """A `report.load.Acceptance` of the model's own answers, drafting with all its MTP layers.

    Acceptance is measured with the exam's sampling settings. Then the same prompts are answered
    greedily without and with drafts, `batch` at a time in both cases: `identical` says whether all
    tokens are equal, `plain_seconds` and `speculative_seconds` are the two wall times.

    Raises:
        UserError: the model has no MTP layer, or a prompt does not fit it.
    """
    context = model.config.max_position_embeddings
    sampled = [
        exam.request((problem, 0), context) for problem in exam.spread(exam.settings.mtp_prompts)
    ]
    greedy = [replace(request, temperature=0.0) for request in sampled]
    drafts = len(model.mtp_layers)
    # This pass is not timed, and warms up what the next two need.
    _, stats, _ = _answer(model, drafts, sampled, exam)
    plain, _, plain_seconds = _answer(model, 0, greedy, exam)
    fast, _, speculative_seconds = _answer(model, drafts, greedy, exam)
    return {
        "acceptance": stats.acceptance,
        "conditional": stats.conditional_acceptance,
        "tokens_per_forward": stats.tokens_per_forward,
        "prompts": len(sampled),
        "batch": stats.slots,
        "plain_seconds": plain_seconds,
        "speculative_seconds": speculative_seconds,
        "identical": plain == fast,
    }


def _answer(
    model: MiMo, drafts: int, requests: Sequence[Request], exam: Exam
) -> tuple[list[list[int]], EngineStats, float]:
    """The answers' tokens, the engine's counters and the seconds it took, prefill included."""
    engine = exam.engine_settings(requests, drafts).native(model)
    began = time.perf_counter()
    completions = engine.run(requests)
    seconds = time.perf_counter() - began
    return [c.token_ids.tolist() for c in completions], engine.stats(), seconds
