"""The `eval` stage: the four variants on the held-out problems, and what their MTP layers save.

RUN/stages/eval/samples/<variant>.jsonl  every graded answer, as it comes
RUN/stages/eval/mtp/<variant>.json       speculative decoding
RUN/stages/eval/results.json             the numbers of the report (`report.load.EvalResults`)
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from openmimo.config.base import config_hash
from openmimo.config.schema import EvalConfig, Recipe
from openmimo.errors import UserError
from openmimo.evals.exam import Exam, read_problems
from openmimo.evals.mtp import measure_mtp
from openmimo.evals.results import score_variant
from openmimo.evals.samples import SampleFile
from openmimo.evals.sampling import sample_missing
from openmimo.model.checkpoint import load_model
from openmimo.model.mimo import MiMo
from openmimo.rewards.code import program_limits
from openmimo.rewards.grading import ALL_TESTS
from openmimo.rewards.pool import RewardPool
from openmimo.runs import Run, atomic_write
from openmimo.tokenizer import Tokenizer

VARIANTS = {"base": "mtp_heads", "sft": "sft", "rl_zero": "rl_zero", "rl": "rl"}
"""The stage whose model each variant is. Base has its extra MTP layers."""


def run(recipe: Recipe, run: Run) -> None:
    """Sample, grade and measure every variant; write results.json.

    Interrupted or killed, it goes on from the samples that are on disk.

    Raises:
        UserError: an earlier stage has not finished or left a damaged file, nothing could be
            judged, or the judge cannot run here.
    """
    upstream = [run.require(name) for name in ("data", *VARIANTS.values())]
    stage = run.stage("eval", config_hash(recipe.eval, str(recipe.seed), *upstream))
    if stage.is_done():
        return
    data = run.dir / "stages" / "data"
    exam = Exam(
        problems=read_problems(data / "problems" / "heldout.jsonl"),
        tokenizer=Tokenizer.load(data / "tokenizer"),
        settings=recipe.eval,
        seed=recipe.seed,
    )
    variants, mtp = {}, {}
    with RewardPool(
        grading=ALL_TESTS,
        judge_workers=os.cpu_count() or 1,
        judge=program_limits(recipe.rl.test_seconds, recipe.rl.test_memory_mb),  # as in training
        judge_at=recipe.compute.judge,
    ) as pool:
        for variant, source in VARIANTS.items():
            model = load_model(run.dir / "stages" / source / "model", dtype=torch.float32)
            samples = stage.dir / "samples" / f"{variant}.jsonl"
            with SampleFile(samples, exam.sample_keys()) as file:
                name = f"eval {variant}"
                sample_missing(name, model, exam, file, pool, run.interrupt, recipe.compute)
                stage.save_clock()
                if run.interrupt.requested:
                    return
                variants[variant] = score_variant(exam, file.samples)
            mtp[variant] = _measured(stage.dir / "mtp" / f"{variant}.json", model, exam)
            stage.save_clock()
            print(_summary(variant, variants[variant], mtp[variant]), flush=True)
    results = {"sampling": _sampling(recipe.eval), "variants": variants, "mtp": mtp}
    atomic_write(stage.dir / "results.json", _to_json(results))
    stage.finish()


def _measured(path: Path, model: MiMo, exam: Exam) -> dict[str, Any]:
    """`measure_mtp`, unless a run that was cut short has done it."""
    if path.exists():
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"cannot read {path} ({error}): remove it and repeat") from error
    measured = measure_mtp(model, exam)
    path.parent.mkdir(exist_ok=True)
    atomic_write(path, _to_json(measured))
    return measured


def _sampling(settings: EvalConfig) -> dict[str, Any]:
    return {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_new_tokens": settings.max_new_tokens,
        "samples_per_problem": settings.samples,
    }


def _summary(name: str, score: dict[str, Any], mtp: dict[str, Any]) -> str:
    low, high = 100 * score["low"], 100 * score["high"]
    return (
        f"eval {name}: pass@1 {100 * score['pass_at_1']:.1f} % ({low:.1f} to {high:.1f}), "
        f"{score['response_length']:.0f} tokens an answer, "
        f"{mtp['tokens_per_forward']:.2f} tokens a forward pass with MTP"
    )


def _to_json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
