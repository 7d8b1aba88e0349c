"""Soft, strict and all-or-nothing rewards on the hard tier of the programming problems.

    python benchmarks/reward_schemes.py RUN --seeds 0 1 2 --steps 25 --json -

RUN is a finished speedrun. From its SFT model, reinforcement learning on hard programming problems
alone is repeated with each scheme and seed for the same number of steps; pass@1 (all tests) is
measured on the held-out hard programming problems, the same for all. Differences between schemes
are paired by seed; with few seeds their interval is wide, and it is printed. `--validity passrate`
(nano's) keeps groups with a right and a wrong program, `reward_std` those whose rewards differ.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from openmimo.config.load import load_config
from openmimo.config.schema import Recipe
from openmimo.evals.exam import Exam, read_problems
from openmimo.evals.results import score_variant
from openmimo.evals.samples import SampleFile
from openmimo.evals.sampling import sample_missing
from openmimo.model.checkpoint import load_model
from openmimo.rewards.code import program_limits
from openmimo.rewards.grading import ALL_TESTS
from openmimo.rewards.pool import RewardPool
from openmimo.rl.train import load_problems, train
from openmimo.runs import Run
from openmimo.tokenizer import Tokenizer

SCHEMES = ("all", "strict", "soft")
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
"""Student's t for a 95 % interval over that many seeds."""


def hard_code_exam(source: Path, recipe: Recipe, tokenizer: Tokenizer) -> Exam:
    """The held-out hard programming problems, sampled as the recipe's evaluation does."""
    problems = read_problems(source / "stages" / "data" / "problems" / "heldout.jsonl")
    hard = {k: p for k, p in problems.items() if p["domain"] == "code" and p["tier"] == "hard"}
    return Exam(hard, tokenizer, recipe.eval, recipe.seed)


def score(run: Run, name: str, folder: Path, exam: Exam) -> float:
    """pass@1 of the model in `folder`."""
    model = load_model(folder, dtype=torch.float32)
    with (
        RewardPool(grading=ALL_TESTS, judge=program_limits()) as pool,
        SampleFile(run.dir / f"{name}.jsonl", exam.sample_keys()) as file,
    ):
        sample_missing(name, model, exam, file, pool, run.interrupt)
        run.interrupt.check()
        return float(score_variant(exam, file.samples)["pass_at_1"])


def learn(run: Run, source: Path, recipe: Recipe, scheme: str, seed: int, exam: Exam) -> float:
    """Train with one scheme and seed; the result's pass@1."""
    config = recipe.rl.model_copy(update={"reward": scheme})
    problems = load_problems(source / "stages" / "difficulty" / "problems.jsonl", config)
    model = load_model(source / "stages" / "sft" / "model", dtype=torch.float32)
    name = f"{scheme}_{seed}"
    stage = run.stage(name, "benchmark")
    recipe = recipe.model_copy(update={"rl": config, "seed": seed})
    if not train(run, stage, recipe, model, exam.tokenizer, problems):
        raise KeyboardInterrupt
    return score(run, name, stage.dir / "model", exam)


def paired(rows: list[dict[str, Any]], scheme: str) -> dict[str, float]:
    """Mean difference soft - scheme over the seeds, in points, and its 95 % interval."""
    gaps = [100 * (row["soft"] - row[scheme]) for row in rows]
    mean = statistics.mean(gaps)
    if len(gaps) not in T_95:
        return {"mean": round(mean, 1)}
    half = T_95[len(gaps)] * statistics.stdev(gaps) / len(gaps) ** 0.5
    return {"mean": round(mean, 1), "low": round(mean - half, 1), "high": round(mean + half, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="a finished speedrun")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=SCHEMES)
    parser.add_argument("--validity", choices=("reward_std", "passrate"), default="reward_std")
    parser.add_argument("--json", required=True, metavar="FILE")
    options = parser.parse_args()
    overrides = [f"rl.steps={options.steps}", 'rl.domains=["code"]', 'rl.tiers=["hard"]']
    overrides.append(f"rl.validity={options.validity}")
    recipe = load_config(Recipe, str(options.run / "config.toml"), overrides)
    tokenizer = Tokenizer.load(options.run / "stages" / "data" / "tokenizer")
    exam = hard_code_exam(options.run, recipe, tokenizer)
    with tempfile.TemporaryDirectory() as scratch, Run(Path(scratch) / "run") as run:
        start = score(run, "sft", options.run / "stages" / "sft" / "model", exam)
        rows = []
        for seed in options.seeds:
            row: dict[str, Any] = {"seed": seed}
            for scheme in options.schemes:
                row[scheme] = learn(run, options.run, recipe, scheme, seed, exam)
            print(row, file=sys.stderr, flush=True)
            rows.append(row)
    result = {
        "steps": options.steps,
        "validity": options.validity,
        "problems": len(exam.problems),
        "samples": recipe.eval.samples,
        "sft": start,
        "runs": rows,
    }
    if "soft" in options.schemes:
        others = [scheme for scheme in options.schemes if scheme != "soft"]
        result |= {f"soft_minus_{scheme}": paired(rows, scheme) for scheme in others}
    text = json.dumps(result, indent=2)
    print(text) if options.json == "-" else Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
