"""Mathematics problems whose working moves in small steps, one lookup each.

A tiny model learns running totals in minutes and never learns to add six numbers in one jump, so a
response is either *worked* (one step a line) or *direct* (the answer alone, as answer keys print
it). Which of the two a model prefers is up to it; reinforcement learning finds out.

The terms of one problem differ from each other, so "what comes after the term I just used" has
one answer in the prompt.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import reasoning_gym

from openmimo.data.problems.problem import Problem, Teacher, Tier

Line = Callable[[int, int, int], str]  # (index of the step, total before, total after) -> text


def _running_total(
    first: str, terms: Sequence[int], line: Line, teacher: Teacher, rng: random.Random
) -> str:
    """Add up terms one line each; a slip makes one total wrong and is carried on.

    `first` is a line to begin with, or empty; terms[0] is where the total starts.
    """
    if rng.random() < teacher.direct:
        return f"\\boxed{{{sum(terms)}}}"
    lines = [first] if first else []
    total = terms[0]
    for index, term in enumerate(terms[1:]):
        result = total + term
        if rng.random() < teacher.slip:
            result += rng.choice((-1, 1))
        lines.append(line(index, total, result))
        total = result
    steps = "\n".join(lines)
    return f"<think>\n{steps}\n</think>\n\\boxed{{{total}}}"


def _sum_problem(
    family: str, tier: Tier, prompt: str, terms: list[int], line: Line, first: str = ""
) -> Problem:
    """A problem whose answer is the sum of `terms`, read off the prompt in this order."""
    return Problem(
        domain="math",
        family=family,
        tier=tier,
        prompt=prompt,
        answer=str(sum(terms)),
        respond=lambda teacher, rng: _running_total(first, terms, line, teacher, rng),
    )


def chain_sum(rng: random.Random, tier: Tier) -> Problem:
    """reasoning-gym's chain_sum with one-digit terms: 2 to 4 of them, 5 or 6 in the hard tier."""
    low, high = (2, 4) if tier == "train" else (5, 6)
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
        words = entry["metadata"]["expression"].split()
        signs, digits = ["+", *words[1::2]], words[::2]
        if len(set(digits)) == len(digits):
            break
    terms = [int(f"{sign}{digit}") for sign, digit in zip(signs, digits, strict=True)]

    def line(index: int, total: int, result: int) -> str:
        return f"{total} {signs[index + 1]} {digits[index + 1]} = {result}"

    problem = _sum_problem("chain_sum", tier, entry["question"], terms, line)
    if problem.answer != entry["answer"]:
        raise AssertionError(f"reasoning-gym and the working disagree: {entry['question']!r}")
    return problem


PEOPLE = ("Ann", "Ben", "Eva", "Ivo", "Mia", "Tom")
THINGS = ("apples", "books", "coins", "eggs", "pens", "stamps")
GAINS = ("buys {}", "finds {}", "gets {} more", "wins {}")
LOSSES = ("gives away {}", "loses {}", "sells {}", "drops {}")


def story(rng: random.Random, tier: Tier) -> Problem:
    """A word problem: somebody has some things, then gains and loses a few of them."""
    count = rng.randint(1, 3) if tier == "train" else rng.randint(4, 5)
    gains, losses = rng.sample(GAINS, len(GAINS)), rng.sample(LOSSES, len(LOSSES))
    terms = [rng.randint(2, 9)]
    events = []
    for _ in range(count):
        size = rng.randint(1, 9)
        lose = size <= sum(terms) and losses and (rng.random() < 0.5 or not gains)
        if not lose and not gains:
            break
        terms.append(-size if lose else size)
        events.append((losses if lose else gains).pop().format(size))
    person, thing = rng.choice(PEOPLE), rng.choice(THINGS)
    prompt = (
        f"{person} has {terms[0]} {thing}. {person} {', then '.join(events)}. "
        f"How many {thing} does {person} have now?"
    )

    def line(index: int, total: int, result: int) -> str:
        return f"{events[index]}: {result}"

    return _sum_problem("story", tier, prompt, terms, line, f"has {terms[0]}")


KINDS: dict[str, Callable[[int, int], bool]] = {
    "even": lambda number, bound: number % 2 == 0,
    "odd": lambda number, bound: number % 2 == 1,
    "above": lambda number, bound: number > bound,
    "below": lambda number, bound: number < bound,
}


def counting(rng: random.Random, tier: Tier) -> Problem:
    """How many numbers of a list are even, odd, above or below a bound."""
    count = rng.randint(2, 4) if tier == "train" else rng.randint(5, 6)
    numbers = rng.sample(range(10), count)
    kind, bound = rng.choice(list(KINDS)), rng.randint(2, 7)
    wanted = f"{kind} {bound}" if kind in ("above", "below") else kind
    hits = [int(KINDS[kind](number, bound)) for number in numbers]
    prompt = f"How many of the numbers {' '.join(map(str, numbers))} are {wanted}?"

    def line(index: int, total: int, result: int) -> str:
        return f"{numbers[index]} {'no' if result == total else 'yes'} {result}"

    return _sum_problem("counting", tier, prompt, [0, *hits], line)


FAMILIES = (chain_sum, story, counting)
