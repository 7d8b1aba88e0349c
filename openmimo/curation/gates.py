"""The gates that need no model: deduplication, decontamination, kinds of problems.

A gate takes problems one by one, and yields each as it is if it keeps it, or as a `Drop` with the
reason: nothing is dropped silently. What it has in memory are hashes, never all texts.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openmimo.curation.formats import Problem
from openmimo.curation.journal import content_key
from openmimo.data.decontaminate import DecontaminationIndex
from openmimo.data.dedup import near_clusters
from openmimo.data.rows import batches
from openmimo.errors import UserError

QUESTIONS = 256
"""That a filter gets at once."""


@dataclass(frozen=True)
class Drop:
    """A problem that a gate dropped. `reason` is one of a few, `detail` what is particular.

    undecided: nothing was found out about it, so the gate looks at it again when it is next asked.
    """

    problem: Problem
    reason: str
    detail: str = ""
    undecided: bool = False

    def record(self) -> dict[str, Any]:
        """The JSON form."""
        names = ("id", "source", "origin", "prompt")
        shared = {name: self.problem[name] for name in names if name in self.problem}
        return shared | {"reason": self.reason, "detail": self.detail}


Sifted = Generator[Problem | Drop, None, None]
"""The problems in order, kept or dropped."""

Judgement = Callable[[Sequence[str]], Sequence[str | None]]
"""Questions in, for each the reason why it is not verifiable, or None: a model, for example."""


class _Questions:
    """The questions of problems, as often as one asks for them."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self._problems = problems

    def __iter__(self) -> Iterator[str]:
        return (_unended(problem["prompt"]) for problem in self._problems)


@dataclass(frozen=True)
class _Twin:
    """What is to be known of a problem that has near duplicates. `question`: its hash."""

    origin: str
    question: str
    answer: str | None
    golden: bool


def deduplicate(problems: Iterable[Problem], threshold: float) -> Sifted:
    """Keep one problem of each cluster of near duplicates (MinHash over word 5-grams).

    The first with a golden solution stays, else the first; earlier sources go before later ones.
    Equal questions whose answers differ leave nothing: at least one of the answers is wrong, and
    nobody knows which.

    problems: iterated over several times.
    """
    clusters = [each for each in near_clusters(_Questions(problems), threshold) if len(each) > 1]
    alike = {index for cluster in clusters for index in cluster}
    twins = {index: _twin(each) for index, each in enumerate(problems) if index in alike}
    reasons: dict[int, tuple[str, str]] = {}
    for cluster in clusters:
        reasons |= _surplus({index: twins[index] for index in cluster})
    for index, problem in enumerate(problems):
        yield Drop(problem, *reasons[index]) if index in reasons else problem


def _twin(problem: Problem) -> _Twin:
    answer = _squeezed(problem["answer"]) if "answer" in problem else None
    question = content_key(_squeezed(_unended(problem["prompt"])))
    return _Twin(problem["origin"], question, answer, bool(problem.get("golden")))


def _surplus(cluster: Mapping[int, _Twin]) -> dict[int, tuple[str, str]]:
    """Those of a cluster that do not stay, each with the reason."""
    reasons = _contradictions(cluster)
    right = [index for index in cluster if index not in reasons]
    best = min(right, key=lambda index: (not cluster[index].golden, index), default=-1)
    return reasons | {
        index: ("duplicate", f"of {cluster[best].origin}") for index in right if index != best
    }


def _contradictions(cluster: Mapping[int, _Twin]) -> dict[int, tuple[str, str]]:
    """Equal questions that have several answers, and what those are."""
    equal: dict[str, list[int]] = defaultdict(list)
    for index, twin in cluster.items():
        if twin.answer is not None:
            equal[twin.question].append(index)
    found: dict[int, tuple[str, str]] = {}
    for indices in equal.values():
        answers = sorted({str(cluster[index].answer) for index in indices})
        if len(answers) > 1:
            found |= dict.fromkeys(indices, ("duplicates with other answers", " / ".join(answers)))
    return found


def _unended(text: str) -> str:
    """A short question is another set of 5-grams without its full stop. "5!" keeps its end."""
    return text.rstrip(" .?:\n")


def _squeezed(text: str) -> str:
    return "".join(text.lower().split())


def decontaminate(problems: Iterable[Problem], items: Mapping[str, str], n: int) -> Sifted:
    """Drop problems that hold an evaluation item; see `data/decontaminate.py` for the rules.

    items: questions and assertions by name. Only their names are told, never their text.
    """
    if not items:
        yield from problems
        return
    for problem, found in DecontaminationIndex(items, n).sift(problems, _asked):
        yield Drop(problem, "evaluation item", ", ".join(list(found)[:3])) if found else problem


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


def sift_kinds(problems: Iterable[Problem], judgement: Judgement | None) -> Sifted:
    """Drop what a rule finds (`kind_by_rule`), then what `judgement` says of the others.

    Raises UserError if `judgement` does not answer each question with a text or None.
    """
    for batch in batches(problems, QUESTIONS):
        reasons = [kind_by_rule(problem) for problem in batch]
        details = ["by rule"] * len(batch)
        left = [index for index, reason in enumerate(reasons) if reason is None]
        if judgement is not None and left:
            judged = judgement([batch[index]["prompt"] for index in left])
            if len(judged) != len(left):
                raise UserError(f"the filter gave {len(judged)} answers to {len(left)} questions")
            for index, reason in zip(left, judged, strict=True):
                if reason is not None and (not isinstance(reason, str) or not reason):
                    raise UserError(f"the filter answered {reason!r}: give a reason, or None")
                reasons[index], details[index] = reason, "by the filter"
        for problem, reason, detail in zip(batch, reasons, details, strict=True):
            yield problem if reason is None else Drop(problem, str(reason), detail)
