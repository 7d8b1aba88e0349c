"""Numbers from hand-written samples."""

import pytest

from openmimo.errors import UserError
from openmimo.evals.exam import Exam
from openmimo.evals.results import expected_answer, score_variant
from openmimo.evals.samples import Sample


def exam_of(problems, tokenizer, recipe):
    return Exam({p["id"]: p for p in problems}, tokenizer, recipe.eval, seed=0)


def samples_of(exam, verdicts):
    """Samples with the given verdicts by problem; answer n is n + 1 tokens long."""
    samples = [
        Sample(name, n, f"{name}/{n}", n + 1, truncated=n == 0, correct=correct, status="ok")
        for name, given in verdicts.items()
        for n, correct in enumerate(given)
    ]
    assert {sample.key for sample in samples} == set(exam.sample_keys())
    return {sample.key: sample for sample in reversed(samples)}


@pytest.fixture
def exam(problems, tokenizer, make_recipe):
    chosen = [problem for problem in problems if problem["id"] in ("m0", "m3", "c0", "c3")]
    return exam_of(chosen, tokenizer, make_recipe())


def test_unscorable_samples_leave_every_rate_and_are_counted(exam):
    score = score_variant(
        exam,
        samples_of(
            exam,
            {
                "m0": [True, True, False],
                "m3": [None, None, None],
                "c0": [None, True, False],
                "c3": [False, False, False],
            },
        ),
    )
    assert score["pass_at_1"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert score["n"] == 3
    assert score["unscorable"] == 4
    assert score["by_domain"]["math"]["n"] == 1
    assert score["by_tier"]["hard"] == score["by_domain"]["code"] | {
        "pass_at_1": 0, "n": 1,
        "low": score["by_tier"]["hard"]["low"], "high": score["by_tier"]["hard"]["high"],
    }  # fmt: skip
    assert set(score["pass_at_k"]) == {1, 2}  # one problem has but two judged samples
    assert score["truncated"] == pytest.approx(1 / 3)
    assert score["response_length"] == 2


def test_nothing_judged_is_an_error_not_a_zero(exam):
    verdicts = {name: [None] * 3 for name in exam.problems}
    with pytest.raises(UserError, match="none of 12 samples could be judged"):
        score_variant(exam, samples_of(exam, verdicts))


def test_examples_cover_domains_tiers_and_verdicts(exam):
    verdicts = {name: [False, None, True] for name in exam.problems}
    examples = score_variant(exam, samples_of(exam, verdicts))["examples"]
    assert [(e["response"], e["correct"]) for e in examples] == [
        ("c3/2", True), ("c0/0", False), ("m3/2", True), ("m0/0", False),
        ("c3/0", False), ("c0/2", True), ("m3/0", False), ("m0/2", True),
    ]  # fmt: skip


def test_expected_answers_are_readable(exam):
    assert expected_answer(exam.problems["m0"]) == "8"
    assert expected_answer(exam.problems["c0"]) == (
        "f([0, 1]) == 7\nf([1, 1]) == 7\nf([2, 1]) == 7\nand 2 more tests"
    )


@pytest.mark.parametrize(("count", "ids"), [(1, ["m0"]), (2, ["m0", "c0"]), (9, None)])
def test_mtp_prompts_are_spread_over_the_file(exam, count, ids):
    assert exam.spread(count) == (ids or list(exam.problems))
