"""Mathematics problems whose working moves in small steps, one lookup each.

A tiny model learns running totals in minutes and never learns to add six numbers in one jump, so a
response is either *worked* (a line for each term) or *direct* (the answer alone, as answer keys
print it). Which of the two a model prefers is up to it; reinforcement learning finds out.

A line of the working repeats the term before, so that the next term follows what it follows in the
problem, and then has the total so far: 9+6-2 is worked as 9:09, 9+6:15, 6-2:13, 2=13. The terms of
one problem differ from each other, so that "what comes after this term" has one answer. Digits
stand without spaces, so that the token before a digit says something, and all totals are equally
wide. A model of this size needs all of this to learn to copy at all.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import reasoning_gym

from openmimo.data.problems.problem import Problem, Teacher, Tier


@dataclass(frozen=True)
class Sum:
    """What all families come down to.

    Attributes:
        heading: what a worksheet of such drills is called.
        written: the number or expression as the prompt writes it.
        labels: how `written` writes each term.
        terms: what each one adds to the total.
        prompt: the question.
        width: digits of a total in the working, so that every line is as long as the others and
            the next term stands in the same place relative to it.
    """

    heading: str
    written: str
    labels: Sequence[str]
    terms: Sequence[int]
    prompt: str
    width: int = 2

    def working(self, teacher: Teacher, rng: random.Random) -> tuple[list[str], int]:
        """The lines, and the result; a slip makes one total wrong and is carried on."""
        lines, total, before = [], 0, ""
        for label, term in zip(self.labels, self.terms, strict=True):
            total += term
            if rng.random() < teacher.slip:
                total += rng.choice((-1, 1))
            lines.append(f"{before}{label}:{total:0{self.width}d}")
            before = label[-1]
        return [*lines, f"{before}={total}"], total

    def respond(self, teacher: Teacher, rng: random.Random) -> str:
        """A response in MiMo's form; `<think>` is ordinary text."""
        if rng.random() < teacher.direct:
            return f"\\boxed{{{sum(self.terms)}}}"
        lines, total = self.working(teacher, rng)
        steps = "\n".join(lines)
        return f"<think>\n{steps}\n</think>\n\\boxed{{{total}}}"


Sizes = tuple[int, int]
"""Fewest and most terms of a sum."""

SIZES: dict[Tier, Sizes] = {"train": (2, 5), "hard": (6, 7)}
DRILL_SIZES: Sizes = (2, 7)
"""Bare drills reach the lengths of the hard tier; no question that is trained on does."""


def _chain(rng: random.Random, sizes: Sizes) -> Sum:
    low, high = sizes
    while True:
        entry = reasoning_gym.create_dataset(
            "chain_sum",
            size=1,
            seed=rng.getrandbits(31),
            min_terms=low,
            max_terms=high,
            min_digits=1,
            max_digits=1,
        )[0]
        expression = entry["metadata"]["expression"]
        words = expression.split()
        signs, digits = ["", *words[1::2]], words[::2]
        labels = [sign + digit for sign, digit in zip(signs, digits, strict=True)]
        terms = [int(label) for label in labels]
        totals = [sum(terms[: n + 1]) for n in range(len(terms))]
        if len(set(digits)) == len(digits) and min(totals) >= 0:
            break
    if str(totals[-1]) != entry["answer"]:
        raise AssertionError(f"reasoning-gym and the working disagree: {entry['question']!r}")
    written = "".join(labels)
    return Sum("Sums", written, labels, terms, entry["question"].replace(expression, written))


def _digits(rng: random.Random, sizes: Sizes) -> list[int]:
    return rng.sample(range(10), rng.randint(*sizes))


def _digit_sum(rng: random.Random, sizes: Sizes) -> Sum:
    digits = _digits(rng, sizes)
    labels = list(map(str, digits))
    written = "".join(labels)
    prompt = f"What is the sum of the digits of {written}?"
    return Sum("Sums of digits", written, labels, digits, prompt)


KINDS: dict[str, Callable[[int], bool]] = {
    "even": lambda digit: digit % 2 == 0,
    "odd": lambda digit: digit % 2 == 1,
    "above 4": lambda digit: digit > 4,
    "below 4": lambda digit: digit < 4,
}


def _counting(rng: random.Random, sizes: Sizes) -> Sum:
    kind = rng.choice(list(KINDS))
    digits = _digits(rng, sizes)
    labels = list(map(str, digits))
    written = "".join(labels)
    hits = [int(KINDS[kind](digit)) for digit in digits]
    prompt = f"How many digits of {written} are {kind}?"
    return Sum(f"Digits that are {kind}", written, labels, hits, prompt, width=1)


def _problem(family: str, tier: Tier, sum_: Sum) -> Problem:
    return Problem(
        domain="math",
        family=family,
        tier=tier,
        prompt=sum_.prompt,
        answer=str(sum(sum_.terms)),
        respond=sum_.respond,
    )


def chain_sum(rng: random.Random, tier: Tier) -> Problem:
    """reasoning-gym's chain_sum with one-digit terms: 2 to 5 of them, 6 or 7 in the hard tier.

    Only expressions with different digits and without negative totals are taken.
    """
    return _problem("chain_sum", tier, _chain(rng, SIZES[tier]))


def digit_sum(rng: random.Random, tier: Tier) -> Problem:
    """The sum of a number's digits: 2 to 5 of them, 6 or 7 in the hard tier."""
    return _problem("digit_sum", tier, _digit_sum(rng, SIZES[tier]))


def counting(rng: random.Random, tier: Tier) -> Problem:
    """How many digits of a number are even, odd, above 4 or below 4; sizes as in digit_sum."""
    return _problem("counting", tier, _counting(rng, SIZES[tier]))


FAMILIES = (chain_sum, digit_sum, counting)


def worksheet(
    teacher: Teacher, rng: random.Random, exclude: Collection[str] = (), drills: int = 6
) -> str:
    """A page of drills of one kind under a heading, each worked line by line.

    Drills whose prompt is in `exclude` are left out; empty if none is left.

    Such pages have many steps and few words: from them the model learns to go through a number
    digit by digit, which a page of one question teaches slowly.
    """
    make = rng.choice((_chain, _digit_sum, _counting))
    sheet = [make(rng, DRILL_SIZES) for _ in range(drills)]
    heading = sheet[0].heading
    same = [d for d in sheet if d.heading == heading and d.prompt not in exclude]
    blocks = ["\n".join([drill.written, *drill.working(teacher, rng)[0]]) for drill in same]
    return "\n\n".join([heading, *blocks]) if blocks else ""
