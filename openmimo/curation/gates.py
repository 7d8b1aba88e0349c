"""The gates that need no model: deduplication, decontamination, kinds of problems.

Each takes all problems and gives those it keeps and those it drops, with the reason: nothing is
dropped silently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openmimo.curation.formats import Problem
from openmimo.data.decontaminate import DecontaminationIndex
from openmimo.data.dedup import near_clusters
from openmimo.errors import UserError


@dataclass(frozen=True)
class Drop:
    """A problem that a gate dropped. `reason` is one of a few, `detail` what is particular."""

    problem: Problem
    reason: str
    detail: str = ""

    def record(self) -> dict[str, Any]:
        """The JSON form."""
        names = ("id", "source", "origin", "prompt")
        shared = {name: self.problem[name] for name in names if name in self.problem}
        return shared | {"reason": self.reason, "detail": self.detail}


Sifted = tuple[list[Problem], list[Drop]]
"""What is kept, in order, and what is dropped."""

Judgement = Callable[[Sequence[str]], Sequence[str | None]]
"""Questions in, for each the reason why it is not verifiable, or None: a model, for example."""


def deduplicate(problems: Sequence[Problem], threshold: float) -> Sifted:
    """Keep one problem of each cluster of near duplicates (MinHash over word 5-grams).

    The first with a golden solution stays, else the first; earlier sources go before later ones.
    Equal questions whose answers differ leave nothing: at least one of the answers is wrong, and
    nobody knows which.
    """
    dropped: dict[int, Drop] = {}
    for cluster in near_clusters([_unended(p["prompt"]) for p in problems], threshold):
        wrong = _contradictions([problems[index] for index in cluster])
        right = [index for index in cluster if problems[index]["origin"] not in wrong]
        best = min(right, key=lambda index: (not problems[index].get("golden"), index), default=-1)
        for index in cluster:
            problem = problems[index]
            if index not in right:
                other = wrong[problem["origin"]]
                dropped[index] = Drop(problem, "duplicates with other answers", other)
            elif index != best:
                dropped[index] = Drop(problem, "duplicate", f"of {problems[best]['origin']}")
    kept = [problem for index, problem in enumerate(problems) if index not in dropped]
    return kept, [dropped[index] for index in sorted(dropped)]


def _contradictions(cluster: Sequence[Problem]) -> dict[str, str]:
    """Origins of equal questions that have several answers, and what those are."""
    answers: dict[str, dict[str, str]] = {}
    for problem in cluster:
        if "answer" in problem:
            same = answers.setdefault(_squeezed(_unended(problem["prompt"])), {})
            same[problem["origin"]] = _squeezed(problem["answer"])
    return {
        origin: " / ".join(sorted(set(same.values())))
        for same in answers.values()
        for origin in same
        if len(set(same.values())) > 1
    }


def _unended(text: str) -> str:
    """A short question is another set of 5-grams without its full stop. "5!" keeps its end."""
    return text.rstrip(" .?:\n")


def _squeezed(text: str) -> str:
    return "".join(text.lower().split())


def decontaminate(problems: Sequence[Problem], items: Mapping[str, str], n: int) -> Sifted:
    """Drop problems that hold an evaluation item; see `data/decontaminate.py` for the rules.

    items: questions and assertions by name. Only their names are told, never their text.
    """
    if not items:
        return list(problems), []
    kept, report = DecontaminationIndex(items, n).filter(problems, _asked)
    dropped = [
        Drop(problems[each.record], "evaluation item", ", ".join(list(each.items)[:3]))
        for each in report.dropped
    ]
    return kept, dropped


def _asked(problem: Problem) -> str:
    """The question, and a programming problem's assertions."""
    tests = (test["code"] for test in problem.get("tests", ()) if "code" in test)
    return "\n".join([problem["prompt"], *tests])


_ASY = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL)  # drawings name their points A, B, C
_PROOF = re.compile(
    r"(?:^|[.:;!?,$\]]\s*|\n\s*|\b(?:and|to|then|please)\s+)(?:dis)?prove\b"
    r"|(?:^|[.:;!?$\]]\s*|\n\s*)(?:show|demonstrate|verify) that\b",
    re.IGNORECASE,
)
# Capital letters only: a problem's conditions are called a), b), c).
_CHOICE = re.compile(
    r"\(\s*A\s*\).{1,400}\(\s*B\s*\).{1,400}\(\s*C\s*\)"
    r"|^\s*A[.)].{1,400}^\s*B[.)].{1,400}^\s*C[.)]"
    r"|\bA[.)] .{1,200}\bB[.)] .{1,200}\bC[.)] .{1,200}\bD[.)] "
    r"|(?i:\bwhich (?:one )?of the following\b|\b(?:true or false|choose the correct)\b)",
    re.DOTALL | re.MULTILINE,
)
_INTERACTIVE = re.compile(r"\binteractive problem\b|\bflush(?:ing)? the (?:output|stream)\b", re.I)
_MANY = re.compile(
    r"\bif there (?:are|is|exist) (?:multiple|several|many|more than one)\b"
    r"|\b(?:print|output|return|find) any\b|\bany of them\b",
    re.IGNORECASE,
)


def kind_by_rule(problem: Problem) -> str | None:
    """Why a problem is not of a kind that a rule can verify; None if it may be."""
    text = _ASY.sub(" ", problem["prompt"])
    if problem["domain"] == "math":
        if _PROOF.search(text):
            return "proof"
        return "multiple choice" if _CHOICE.search(text) else None
    if _INTERACTIVE.search(text):
        return "interactive"
    # Only tests of input and output compare with the one output that they hold.
    if "stdin" in problem["tests"][0] and _MANY.search(text):
        return "many right outputs, no checker"
    return None


def sift_kinds(problems: Sequence[Problem], judgement: Judgement | None) -> Sifted:
    """Drop what a rule finds, then what `judgement` says; see `kind_by_rule`."""
    reasons = [kind_by_rule(problem) for problem in problems]
    details = ["by rule"] * len(problems)
    left = [index for index, reason in enumerate(reasons) if reason is None]
    if judgement is not None and left:
        judged = judgement([problems[index]["prompt"] for index in left])
        if len(judged) != len(left):
            raise UserError(f"the filter gave {len(judged)} answers to {len(left)} questions")
        for index, reason in zip(left, judged, strict=True):
            reasons[index], details[index] = reason, "by the filter"
    rows = list(zip(problems, reasons, details, strict=True))
    kept = [problem for problem, reason, _ in rows if reason is None]
    return kept, [Drop(problem, str(reason), why) for problem, reason, why in rows if reason]
