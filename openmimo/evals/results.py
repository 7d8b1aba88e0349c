"""From graded samples to the numbers of results.json, in the form that `report.load` reads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from openmimo.errors import UserError
from openmimo.evals.exam import Exam, Problem, SampleKey
from openmimo.evals.passk import pass_at_k_curve, pass_rate
from openmimo.evals.samples import Sample

TESTS_SHOWN = 3


def score_variant(exam: Exam, samples: Mapping[SampleKey, Sample]) -> dict[str, Any]:
    """A `report.load.Variant`: pass@1 with its interval, by kind of problem, and examples.

    Samples that could not be judged are counted and left out of every rate; a problem without a
    judged sample is left out as a whole. `response_length` is a mean in tokens.

    Raises:
        UserError: no sample could be judged.
    """
    every = [samples[key] for key in exam.sample_keys()]  # in the exam's order, not the judge's
    outcomes: dict[str, list[bool]] = {}
    for sample in every:
        if sample.correct is not None:
            outcomes.setdefault(sample.id, []).append(sample.correct)
    if not outcomes:
        raise UserError(
            f"none of {len(every)} samples could be judged ({every[0].status}: {every[0].detail}); "
            "mend that, and repeat the stage with --force"
        )
    problems = [exam.problems[id] for id in outcomes]

    def by(field: str) -> dict[str, Any]:
        groups = dict.fromkeys(problem[field] for problem in problems)
        return {
            group: _score([outcomes[p["id"]] for p in problems if p[field] == group])
            for group in groups
        }

    return {
        **_score(list(outcomes.values())),
        "samples": exam.settings.samples,
        "pass_at_k": pass_at_k_curve(list(outcomes.values())),
        "by_domain": by("domain"),
        "by_tier": by("tier"),
        "by_family": by("family"),
        "truncated": _mean(every, lambda sample: sample.truncated),
        "response_length": _mean(every, lambda sample: sample.tokens),
        "unscorable": sum(sample.correct is None for sample in every),
        "examples": _examples(exam, every),
    }


def _score(outcomes: list[list[bool]]) -> dict[str, Any]:
    rate = pass_rate(outcomes)
    return {"pass_at_1": rate.value, "low": rate.low, "high": rate.high, "n": rate.problems}


def _mean(samples: Collection[Sample], value: Callable[[Sample], float]) -> float:
    return sum(map(value, samples)) / len(samples)


def _examples(exam: Exam, samples: list[Sample]) -> list[dict[str, Any]]:
    """A right and a wrong answer of each domain and tier, where there are any.

    The first four differ in domain or tier, and right and wrong alternate. Which sample stands for
    its kind is no choice: the one with the lowest id, and ids are hashes.
    """
    found: dict[tuple[str, str, bool], Sample] = {}
    for sample in sorted(samples, key=lambda sample: sample.key):
        problem = exam.problems[sample.id]
        if sample.correct is not None:
            found.setdefault((problem["domain"], problem["tier"], sample.correct), sample)
    places = sorted({(domain, tier) for domain, tier, _ in found})
    kinds = [
        (domain, tier, (index + turn) % 2 == 0)
        for turn in (0, 1)
        for index, (domain, tier) in enumerate(places)
    ]
    return [
        {
            "prompt": exam.problems[sample.id]["prompt"],
            "response": sample.response,
            "answer": expected_answer(exam.problems[sample.id]),
            "correct": sample.correct,
        }
        for sample in (found[kind] for kind in kinds if kind in found)
    ]


def expected_answer(problem: Problem) -> str:
    """What is asked for, for a reader: the answer, or the first tests of a program."""
    if problem["domain"] == "math":
        return str(problem["answer"])
    tests = problem["tests"]
    lines = []
    for test in tests[:TESTS_SHOWN]:
        arguments = ", ".join(map(repr, test["args"]))
        lines.append(f"{problem['entry_point']}({arguments}) == {test['expected']!r}")
    if len(tests) > TESTS_SHOWN:
        lines.append(f"and {len(tests) - TESTS_SHOWN} more tests")
    return "\n".join(lines)
