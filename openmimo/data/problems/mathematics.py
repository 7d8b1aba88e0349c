"""Mathematics problems whose working moves in small steps, one lookup each.

A tiny model learns running totals in minutes and never learns to add six numbers in one jump, so a
response is either *worked* (a line for each term: the term and the total so far) or *direct* (the
answer alone, as answer keys print it). Which of the two a model prefers is up to it; reinforcement
learning finds out.

The terms of one problem differ from each other, so "what comes after the term I just used" has one
answer in the prompt, and digits stand without spaces, so that the token before a digit says
something: both are what a model of this size needs to learn to copy at all.
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
        """A line for each term, and the result; a slip makes one total wrong and is carried on."""
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

CHAIN_SIZES: dict[Tier, Sizes] = {"train": (2, 5), "hard": (6, 7)}
DIGITS_SIZES: dict[Tier, Sizes] = {"train": (2, 5), "hard": (6, 7)}
DRILL_SIZES: Sizes = (2, 7)


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


KINDS: dict[str, Callable[[int, int], bool]] = {
    "even": lambda digit, bound: digit % 2 == 0,
    "odd": lambda digit, bound: digit % 2 == 1,
    "above": lambda digit, bound: digit > bound,
    "below": lambda digit, bound: digit < bound,
}


def _counting(rng: random.Random, sizes: Sizes) -> Sum:
    kind, bound = rng.choice(list(KINDS)), 4
    wanted = f"{kind} {bound}" if kind in ("above", "below") else kind
    return _count(_digits(rng, sizes), kind, bound, wanted)


def _count(digits: list[int], kind: str, bound: int, wanted: str) -> Sum:
    labels = list(map(str, digits))
    written = "".join(labels)
    hits = [int(KINDS[kind](digit, bound)) for digit in digits]
    prompt = f"How many digits of {written} are {wanted}?"
    return Sum(f"Digits that are {wanted}", written, labels, hits, prompt, width=1)


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
    """reasoning-gym's chain_sum with one-digit terms: 3 to 5 of them, 6 in the hard tier.

    Only expressions with different digits and without negative totals are taken.
    """
    return _problem("chain_sum", tier, _chain(rng, CHAIN_SIZES[tier]))


def digit_sum(rng: random.Random, tier: Tier) -> Problem:
    """The sum of a number's digits: 3 to 5 of them, 6 or 7 in the hard tier."""
    return _problem("digit_sum", tier, _digit_sum(rng, DIGITS_SIZES[tier]))


def counting(rng: random.Random, tier: Tier) -> Problem:
    """How many digits of a number are even, odd, above or below a bound; sizes as in digit_sum."""
    return _problem("counting", tier, _counting(rng, DIGITS_SIZES[tier]))


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
