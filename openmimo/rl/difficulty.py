"""How hard each test is: the pass rates behind the test difficulty driven reward.

Several models (Base and SFT) solve every programming problem several times; a test's pass rate
over all those solutions is its difficulty, and tests of similar difficulty form a level (report,
section 3.3.1).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from openmimo.config.base import config_hash
from openmimo.config.schema import Recipe, RLConfig
from openmimo.data.documents import write_records
from openmimo.inference.sampling import sample_seed
from openmimo.model.checkpoint import load_model
from openmimo.rewards.code import program_limits
from openmimo.rewards.difficulty import choose_levels, cluster_levels, pass_rates
from openmimo.rewards.grading import ALL_TESTS
from openmimo.rewards.pool import RewardPool
from openmimo.rl.problems import fingerprint, fitting, read_problems
from openmimo.rl.requests import Requests
from openmimo.rollout.driver import Patience, RolloutDriver
from openmimo.rollout.engines import EngineSettings, open_engines
from openmimo.rollout.records import Prompt
from openmimo.rollout.validation import answer_all
from openmimo.runs import Run
from openmimo.tokenizer import Tokenizer

SOLVERS = ("mtp_heads", "sft")
"""Stages whose models solve the problems: Base and SFT."""

Vectors = dict[str, list[tuple[bool, ...]]]
"""For each problem id, the outcome of every test for every solution."""


def run(recipe: Recipe, run: Run) -> None:
    """Stage `difficulty`: the RL problems with `levels` and each test's `pass_rates`."""
    upstream = [run.require(name) for name in ("data", *SOLVERS)]
    problems_from = fingerprint(recipe.rl.problems)
    settings = {
        "levels": recipe.rl.levels,
        "clustering": recipe.rl.level_clustering,
        "samples": recipe.rl.level_samples,
        "max_new_tokens": recipe.rl.max_new_tokens,
        "test_seconds": recipe.rl.test_seconds,
        "test_memory_mb": recipe.rl.test_memory_mb,
        "max_prompt_tokens": recipe.rl.max_prompt_tokens,
        "problems": problems_from,
    }
    stage = run.stage("difficulty", config_hash(settings, str(recipe.seed), *upstream))
    if stage.is_done():
        return
    tokenizer = Tokenizer.load(run.dir / "stages" / "data" / "tokenizer")
    context = recipe.model.max_position_embeddings
    problems = read_problems(recipe.rl.problems, run)
    problems = fitting(problems, tokenizer, context, recipe.rl.max_prompt_tokens)
    code = [problem for problem in problems if problem["domain"] == "code"]
    vectors: Vectors = {problem["id"]: [] for problem in code}
    for solver in SOLVERS:
        folder = run.dir / "stages" / solver / "model"
        for problem_id, passed in _solve(recipe, run, folder, code, tokenizer):
            vectors[problem_id].append(passed)
        # Without a program there are no outcomes, and all(()) is true.
        solved = sum(bool(v) and all(v) for vs in vectors.values() for v in vs)
        print(f"difficulty: {solver} and those before solved {solved} of "
              f"{sum(map(len, vectors.values()))} attempts", flush=True)  # fmt: skip
    graded = [with_levels(problem, vectors, recipe.rl) for problem in problems]
    write_records(stage.dir / "problems.jsonl", graded)
    levels = [len(problem["levels"]) for problem in graded if problem["domain"] == "code"]
    stage.finish(
        problems=len(graded),
        mean_levels=sum(levels) / max(1, len(levels)),
        problems_from=problems_from,
    )


def with_levels(problem: dict[str, Any], vectors: Vectors, config: RLConfig) -> dict[str, Any]:
    """The problem with its tests' `pass_rates` and `levels`, easiest first.

    Levels that it has already, as the subtasks of an IOI problem, stay.
    """
    if problem["domain"] != "code":
        return problem
    tests = len(problem["tests"])
    # A response without a program fails every test.
    matrix = [passed or (False,) * tests for passed in vectors[problem["id"]]]
    rates = pass_rates(matrix)
    levels = problem.get("levels")
    if levels is None and isinstance(config.levels, int):
        levels = cluster_levels(rates, config.levels, config.level_clustering)
    elif levels is None:
        levels = choose_levels(rates, len(matrix), config.level_clustering)
    return problem | {"pass_rates": [round(rate, 4) for rate in rates], "levels": levels}


def _solve(
    recipe: Recipe, run: Run, folder: Path, problems: list[dict[str, Any]], tokenizer: Tokenizer
) -> Iterator[tuple[str, tuple[bool, ...]]]:
    """(problem id, test outcomes) of every attempt of one model, in order."""
    if not problems:
        return
    model = load_model(folder, dtype=torch.float32)
    ids_of = [tokenizer.chat_prompt(problem["prompt"]) for problem in problems]
    config, compute = recipe.rl, recipe.compute
    request = Requests(ids_of, tokenizer, config, model.config.max_position_embeddings)
    settings = EngineSettings(config.slots, request.max_length, tokenizer.vocab_size)
    prompts = [
        Prompt(
            problem,
            ids,
            [
                sample_seed(recipe.seed, "difficulty", folder.parent.name, problem["id"], n)
                for n in range(config.level_samples)
            ],
        )
        for problem, ids in zip(problems, ids_of, strict=True)
    ]
    limits = program_limits(config.test_seconds, config.test_memory_mb)
    with (
        open_engines(compute, settings, model) as seats,
        RewardPool(
            judge_workers=os.cpu_count() or 1,
            grading=ALL_TESTS,
            judge=limits,
            every_test=True,
            judge_at=compute.judge,
        ) as pool,
        RolloutDriver(
            seats,
            pool,
            tokenizer.decode,
            request,
            patience=Patience.beyond(pool.longest(problems), pool.at_once),
        ) as driver,
    ):
        driver.update_weights(dict(model.state_dict()))
        rollout = answer_all(driver, prompts, interrupt=run.interrupt)
    run.interrupt.check()
    for group in rollout.groups if rollout else []:
        for verdict in group.results:
            # A failed judgement says nothing about the tests.
            if verdict is not None and verdict.score is not None:
                yield group.prompt.problem["id"], verdict.passed
