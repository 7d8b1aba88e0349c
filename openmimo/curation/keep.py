"""What stays, by how often models solve it: the report's rules (section 3.2).

They need two models: strong ones say whether a problem can be solved at all, the model to be
trained says whether it is too easy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from openmimo.curation.formats import Problem
from openmimo.curation.gates import Drop, Sifted

TOO_EASY = 0.9
"""Pass rate above which a mathematics problem is dropped (report: 90 %): 15 of 16 is, 14 is not."""


@dataclass(frozen=True)
class Outcomes:
    """What a model's answers to one problem came to.

    answers, right: those that could be judged, and the right ones among them.
    tests: of a program, how often each test passed, over the judged answers; empty if none had a
        program.
    """

    answers: int
    right: int
    tests: tuple[int, ...] = ()

    @property
    def pass_rate(self) -> float:
        return self.right / self.answers


def keep(
    problems: Iterable[Problem],
    strong: Mapping[str, Outcomes] | None,
    own: Mapping[str, Outcomes] | None,
) -> Sifted:
    """The report's rules, with each problem's pass rates added to what is kept.

    Mathematics: dropped if no strong answer is right, or more than TOO_EASY of the model's own are.
    Code: without a golden solution, dropped unless a strong answer passes some test; dropped if
    all of the model's own answers are right.

    strong, own: outcomes by problem id; None: not measured, so that its rules drop nothing, but
        for programs that no golden solution vouches for.
    """
    for problem in problems:
        found = {"strong": (strong or {}).get(problem["id"]), "own": (own or {}).get(problem["id"])}
        reason = None
        if strong is not None or own is not None:
            reason = _unmeasured(strong, own, found)
        reason = reason or _unsolved(problem, found["strong"]) or _easy(problem, found["own"])
        yield Drop(problem, *reason) if reason else problem | _measured(found)


Reason = tuple[str, str]


def _unmeasured(
    strong: Mapping[str, Outcomes] | None,
    own: Mapping[str, Outcomes] | None,
    found: Mapping[str, Outcomes | None],
) -> Reason | None:
    for name, asked in (("strong", strong), ("own", own)):
        outcomes = found[name]
        if asked is not None and outcomes is None:
            return "prompt longer than the context", f"of the {name} model"
        if outcomes is not None and not outcomes.answers:
            return "no rollout could be judged", f"of the {name} model"
    return None


def _unsolved(problem: Problem, strong: Outcomes | None) -> Reason | None:
    if problem["domain"] == "math":
        if strong is not None and not strong.right:
            return "unsolved by the strong model", f"0 of {strong.answers}"
    elif not problem.get("golden"):
        if strong is None:
            return "no golden solution", "and no rollouts of a strong model"
        if not any(strong.tests):
            return "no test was passed", f"by {strong.answers} strong answers"
    return None


def _easy(problem: Problem, own: Outcomes | None) -> Reason | None:
    if own is None:
        return None
    easy = own.pass_rate > TOO_EASY if problem["domain"] == "math" else own.right == own.answers
    return ("too easy", f"{own.right} of {own.answers}") if easy else None


def _measured(found: Mapping[str, Outcomes | None]) -> Problem:
    """What is known of a kept problem. Test pass rates are over the answers of both models."""
    values: Problem = {}
    for name, outcomes in found.items():
        if outcomes is not None:
            values[f"{name}_pass_rate"] = round(outcomes.pass_rate, 4)
            values[f"{name}_answers"] = outcomes.answers
    measured = [outcomes for outcomes in found.values() if outcomes is not None and outcomes.tests]
    if measured:
        answers = sum(outcomes.answers for outcomes in measured)
        columns = zip(*(outcomes.tests for outcomes in measured), strict=True)
        values["pass_rates"] = [round(sum(column) / answers, 4) for column in columns]
    return values
