"""Small problem sets, and a pipeline over them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openmimo.curation.formats import Problem
from openmimo.curation.gates import Drop, Sifted
from openmimo.curation.pipeline import Settings
from openmimo.curation.solver import Sampling

SAMPLING = Sampling(rollouts=4, tokens=40, temperature=1.0, test_seconds=2.0, seed=0)


def math(question: str, answer: object) -> dict[str, Any]:
    return {"prompt": question, "answer": answer}


def code(question: str, golden: str | None, *tests: str) -> dict[str, Any]:
    return {"prompt": question, "golden": golden, "tests": [{"code": test} for test in tests]}


LONG = "Ann has twelve red marbles and gives five of them to her friend Bob; how many are left"
ROWS = [
    math("What is 1 + 2?", 3),
    math("what is 1 +  2?", "3"),
    math("Compute 7 * 6.", 42.0),
    math("Compute 7 * 6", 41),
    math(f"{LONG} in the end? Be quick.", 7),
    math("Name an empty answer.", ""),
    math("Prove that 2 is prime.", "2"),
    math("Which of the following is even? (A) 3 (B) 4 (C) 5", "B"),
    math("What is the square root of nine?", "3"),
    code("Write f(n), the square of n.", "def f(n):\n    return n * n", "assert f(3) == 9"),
    code("Write g(n), the double of n.", "def g(n):\n    return n", "assert g(3) == 6"),
    code("Write h(n), the half of n.", None, "assert h(4) == 2"),
    code("Write k(n), twice n.", "def k(n):\n    return n + n"),
]


def split(sifted: Sifted) -> tuple[list[Problem], list[Drop]]:
    """What a gate keeps, and what it drops."""
    rows = list(sifted)
    kept = [row for row in rows if not isinstance(row, Drop)]
    return kept, [row for row in rows if isinstance(row, Drop)]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def raw(tmp_path: Path) -> str:
    """A file with a problem for each gate to drop, and three that stay."""
    return str(write_jsonl(tmp_path / "raw.jsonl", ROWS))


@pytest.fixture
def evaluation(tmp_path: Path) -> str:
    return str(write_jsonl(tmp_path / "eval.jsonl", [{"question": f"Little {LONG}?"}]))


@pytest.fixture
def settings() -> Callable[..., Settings]:
    def settings(**changes: Any) -> Settings:
        return Settings(**{"similarity": 0.8, "ngram": 16, "sampling": SAMPLING, **changes})

    return settings
