"""Agreement with labelled answers: GSM8K's model solutions, MATH-500's reference answers."""

import json
import runpy
from pathlib import Path

import pytest

from openmimo.rewards import MathVerifier, verify_math_batch

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "verify_math.py"
MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def final_answer(solution):
    """What follows the last `A:`, as GSM8K writes its answers."""
    return solution.rpartition("A:")[2].strip()


def test_gsm8k_labels_are_reproduced(data_file):
    lines = data_file("gsm8k/example_model_solutions.jsonl").read_bytes().split(b"\n")
    pairs, labels = [], []
    for row in map(json.loads, filter(None, lines)):
        gold = final_answer(row["ground_truth"])
        for model in MODELS:
            answer = final_answer(row[model]["solution"])
            pairs.append((f"{row[model]['solution']}\n\\boxed{{{answer}}}", gold))
            labels.append(row[model]["is_correct"])
    verdicts = verify_math_batch(pairs)
    wrong = [p for p, v, label in zip(pairs, verdicts, labels, strict=True) if v.correct != label]
    assert wrong == []
    assert len(labels) == 5276
    assert all(verdict.score is not None for verdict in verdicts)


@pytest.mark.slow
def test_math500_has_no_false_negative_that_math_verify_has_not(data_file):
    lines = data_file("math500/test.jsonl").read_bytes().split(b"\n")
    golds = [json.loads(line)["answer"] for line in lines if line]
    benchmark = runpy.run_path(str(BENCHMARK))
    with MathVerifier(seconds=10.0) as verifier:
        table = benchmark["agreement"](verifier, golds)
    rejects = table.pop("rejects")
    assert len(table) == 11
    for name, row in table.items():
        assert row["answers"] == 500
        assert (name, row["only_raw"], row["undecided"]) == (name, [], 0)
        assert row["ours"] >= 495 or name == "assignment"  # `x = (3,4]` is no assignment
    assert table["itself"]["ours"] == 500
    assert rejects["only_ours"] == []
