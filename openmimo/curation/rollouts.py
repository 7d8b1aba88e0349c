"""How often a model solves each problem: sampled answers, each verified."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from openmimo.config.schema import EvalConfig
from openmimo.curation.formats import Problem
from openmimo.curation.golden import test_limits
from openmimo.curation.keep import Outcomes, Sampling
from openmimo.evals.exam import Exam
from openmimo.evals.samples import Sample, SampleFile
from openmimo.evals.sampling import sample_missing
from openmimo.judge.connect import LOCAL
from openmimo.model.checkpoint import load_model
from openmimo.rewards.grading import ALL_TESTS
from openmimo.rewards.pool import RewardPool
from openmimo.runs import Interrupt
from openmimo.tokenizer import Tokenizer


def outcomes_of(samples: Sequence[Sample]) -> Outcomes:
    """Of one problem's samples; those that could not be judged say nothing."""
    judged = [sample for sample in samples if sample.correct is not None]
    vectors = [sample.passed for sample in judged if sample.passed]
    tests = tuple(column.count("1") for column in zip(*vectors, strict=True))
    return Outcomes(len(judged), sum(bool(sample.correct) for sample in judged), tests)


def roll_out(
    name: str,
    folder: Path,
    problems: Sequence[Problem],
    sampling: Sampling,
    file: Path,
    interrupt: Interrupt,
    judge_at: str = LOCAL,
) -> dict[str, Outcomes]:
    """Let the model in a folder answer all problems; outcomes by id.

    Every answer is appended to `file` as soon as it is judged, so that a killed process goes on
    where it was. A prompt that leaves the model no room for an answer gets no rollout. `judge_at`:
    where programs are judged, see `open_judge`.

    Raises:
        UserError: no such model, or the judge cannot run here.
    """
    model, tokenizer = load_model(folder, dtype=torch.float32), Tokenizer.load(folder)
    context = model.config.max_position_embeddings
    fitting: dict[str, Mapping[str, Any]] = {
        p["id"]: p for p in problems if len(tokenizer.chat_prompt(p["prompt"])) < context
    }
    settings = EvalConfig(
        samples=sampling.rollouts,
        temperature=sampling.temperature,
        top_p=1.0,
        max_new_tokens=sampling.tokens,
    )
    exam = Exam(fitting, tokenizer, settings, sampling.seed)
    workers, limits = os.cpu_count() or 1, test_limits(sampling.test_seconds)
    with (
        RewardPool(
            workers, workers, ALL_TESTS, judge=limits, every_test=True, judge_at=judge_at
        ) as pool,
        SampleFile(file, exam.sample_keys()) as samples,
    ):
        sample_missing(name, model, exam, samples, pool, interrupt)
        interrupt.check()
        by_problem: dict[str, list[Sample]] = {each: [] for each in fitting}
        for sample in samples.samples.values():
            by_problem[sample.id].append(sample)
    return {each: outcomes_of(found) for each, found in by_problem.items()}
