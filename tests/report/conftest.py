"""A run folder with the numbers of a plausible nano run, written file by file."""

import json
import math
import random
from pathlib import Path

import pytest

PRETRAIN = ((1, 2_100_000, 256, 10_000), (2, 2_700_000, 256, 10_000), (3, 3_000_000, 512, 640_000))
SECONDS = {
    "data": 95.2, "pretrain": 402.0, "mtp_heads": 41.5, "sft": 66.0,
    "difficulty": 21.0, "rl_zero": 270.3, "rl": 268.9, "eval": 118.4, "release": 4.1,
}  # fmt: skip


def score(value: float, n: int) -> dict:
    half = 1.96 * math.sqrt(value * (1 - value) / n)
    return {"pass_at_1": value, "low": value - half, "high": value + half, "n": n}


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def pretrain_rows(rng: random.Random) -> list[dict]:
    rows, tokens, step = [], 0, 0
    for stage, until, length, base in PRETRAIN:
        while tokens < until:
            step, tokens = step + 1, tokens + 4096
            loss = 1.1 + 5.5 * math.exp(-tokens / 350_000) + rng.gauss(0, 0.06) - 0.12 * (stage - 1)
            decay = 1 if stage == 1 else 0.3 + 0.7 * max(0, (2.7e6 - tokens) / 6e5)
            rows.append({
                "step": step, "time": step * 0.55, "tokens": tokens, "stage": stage,
                "lr": 3e-3 * min(1, tokens / 100_000) * decay, "loss": loss,
                "mtp_loss": [loss * 1.15 + rng.gauss(0, 0.05)], "grad_norm": 0.8,
                "batch_tokens": 4096, "seq_len": length, "rope_base": base,
                "mtp_weight": 0.3 if tokens < 1.3e6 else 0.1, "tokens_per_second": 7400.0,
                "mtp_acceptance": [0.6 + tokens / 1e7], "peak_share": 0.41, "data_wait": 0.002,
                "loss_spikes": (step > 100) + (step > 600), "norm_spikes": 0, "skipped": 0,
            })  # fmt: skip
    return rows


def tuning_rows(rng: random.Random, layers: int, steps: int) -> list[dict]:
    return [
        {
            "step": step, "tokens": step * 4096, "stage": "tuning", "lr": 3e-4,
            "loss": 0.6 + 0.5 * math.exp(-step / 25) + rng.gauss(0, 0.03),
            "mtp_loss": [
                0.7 + 0.25 * i + (i > 0) * math.exp(-step / 30) + rng.gauss(0, 0.02)
                for i in range(layers)
            ],
            "batch_tokens": 4096, "seq_len": 512, "rope_base": 640_000, "mtp_weight": 0.1,
            "tokens_per_second": 6900.0,
            "mtp_acceptance": [0.8 - 0.1 * i for i in range(layers)],
        }
        for step in range(1, steps + 1)
    ]  # fmt: skip


def rl_rows(rng: random.Random, start: float, end: float) -> list[dict]:
    rows = []
    for step in range(1, 121):
        share = 1 - math.exp(-step / 35)
        rate = start + (end - start) * share + rng.gauss(0, 0.025)
        rows.append({
            "step": step, "reward_mean": rate - 0.02, "pass_rate": rate,
            "pass_rate_math": rate + 0.06, "pass_rate_code": rate - 0.1,
            "valid_rate_passrate": 0.7 - 0.3 * share, "valid_rate_std": 0.72 - 0.3 * share,
            "easy_pool_size": int(step * 12 * end * share),
            "easy_pool_share": 0.1 * min(1, step * end / 12),
            "response_length": 62 + 25 * share + rng.gauss(0, 2), "truncated": 0.04 - 0.03 * share,
            "entropy": 0.42 - 0.2 * share + rng.gauss(0, 0.01), "clip_low": 0.002,
            "clip_high": 0.004, "grad_norm": 0.3, "time_rollout": 1.4, "time_update": 0.7,
            "unscorable": 0, "prompts_launched": 48, "prompts_aborted": 3,
        })  # fmt: skip
    return rows


def variant(value: float) -> dict:
    examples = [
        {
            "prompt": "Add 17 + 25 + 8.",
            "response": f"17 + 25 = 42\n42 + 8 = {total}\n\\boxed{{{total}}}",
            "answer": "50",
            "correct": total == 50,
        }
        for total in (50, 40)
    ]
    return {
        **score(value, 600), "samples": 4,
        "pass_at_k": {str(k): 1 - (1 - value) ** (1 + 0.6 * math.log2(k)) for k in (1, 2, 4)},
        "by_domain": {"math": score(value + 0.05, 400), "code": score(value - 0.1, 200)},
        "by_tier": {"train": score(value + 0.04, 400), "hard": score(value - 0.08, 200)},
        "by_family": {"running_sum": score(value + 0.1, 200), "lists": score(value - 0.1, 200)},
        "truncated": 0.021, "response_length": 71.4, "unscorable": 0, "examples": examples,
    }  # fmt: skip


def results() -> dict:
    values = {"base": 0.412, "rl_zero": 0.687, "sft": 0.548, "rl": 0.781}
    return {
        "sampling": {
            "temperature": 0.6, "top_p": 0.95, "max_new_tokens": 192, "samples_per_problem": 4
        },
        "variants": {name: variant(value) for name, value in values.items()},
        "mtp": {
            "rl": {
                "acceptance": [0.91, 0.78, 0.64], "conditional": [0.91, 0.857, 0.821],
                "tokens_per_forward": 3.33, "prompts": 64, "plain_seconds": 21.4,
                "speculative_seconds": 11.9, "identical": True,
            }
        },
    }  # fmt: skip


def stats() -> dict:
    sources = ("general", "math", "code", "synthetic")
    return {
        "sources": {
            name: {"documents": 900 + 300 * i, "tokens": 700_000 - i, "characters": 2_500_000}
            for i, name in enumerate(sources)
        },
        "dedup": {"exact": 112, "near": 87},
        "domains": {"language": 400, "library": 900, "mathematics": 1300},
        "decontamination": {"documents_removed": 3},
    }


def mixture() -> dict:
    sources = ("general", "math", "code", "synthetic")
    mixtures = {
        "stage1": (0.6, 0.2, 0.2, 0.0), "stage2": (0.3, 0.35, 0.35, 0.0),
        "stage3": (0.25, 0.3, 0.3, 0.15),
    }  # fmt: skip
    return {
        "mixture": {
            name: {
                "target": dict(zip(sources, shares, strict=True)),
                "realised": {
                    source: share + (0.012 if share else 0) * (-1) ** i
                    for i, (source, share) in enumerate(zip(sources, shares, strict=True))
                },
            }
            for name, shares in mixtures.items()
        },
    }


def graded_problems() -> list[dict]:
    """One of mathematics, one whose tests are all alike, one whose tests are not."""
    rates = [0.9, 0.8, 0.85, 0.4, 0.35, 0.1, 0.0]
    return [
        {"id": "a", "domain": "math"},
        {"id": "b", "domain": "code", "pass_rates": [0.5, 0.5], "levels": [[0, 1]]},
        {"id": "c", "domain": "code", "pass_rates": rates, "levels": [[0, 1, 2], [3, 4], [5, 6]]},
    ]


def write_run(folder: Path) -> Path:
    rng, stages = random.Random(0), folder / "stages"
    for index, (stage, seconds) in enumerate(SECONDS.items()):
        (stages / stage).mkdir(parents=True)
        done = {"config_hash": "ab12", "seconds": seconds, "finished": 1.8e9}
        done["peak_memory_gb"] = 0.8 + 0.21 * index
        (stages / stage / "done.json").write_text(json.dumps(done))
    (folder / "config.toml").write_text('seed = 1\nname = "nano"\n\n[model]\nhidden_size = 192\n')
    write_lines(stages / "pretrain" / "metrics.jsonl", pretrain_rows(rng))
    write_lines(stages / "mtp_heads" / "metrics.jsonl", tuning_rows(rng, 3, 80))
    write_lines(stages / "sft" / "metrics.jsonl", tuning_rows(rng, 3, 120))
    write_lines(stages / "rl_zero" / "metrics.jsonl", rl_rows(rng, 0.4, 0.7))
    write_lines(stages / "rl" / "metrics.jsonl", rl_rows(rng, 0.54, 0.8))
    write_lines(stages / "difficulty" / "problems.jsonl", graded_problems())
    (stages / "eval" / "results.json").write_text(json.dumps(results()))
    (stages / "data" / "stats.json").write_text(json.dumps(stats()))
    (stages / "pretrain" / "mixture.json").write_text(json.dumps(mixture()))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture(scope="session")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For tests that only read what is rendered from it."""
    return write_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture
def eval_results() -> dict:
    """What the run's results.json holds, to change and to compare with."""
    return results()
