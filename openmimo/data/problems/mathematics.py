"""Mathematics problems whose working moves in small steps, one lookup each.

A tiny model learns a running total in minutes and never learns to add six numbers in one jump, so
a response is either *worked* (one step a line) or *direct* (the answer alone, as answer keys
print it). Which of the two a model prefers is up to it; reinforcement learning finds out.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import reasoning_gym

from openmimo.data.problems.problem import Problem, Teacher, Tier

Step = tuple[int, str, int]  # left operand, "+" or "-", right operand


def worked(lines: list[str], answer: int) -> str:
    """A response with its working; `<think>` is ordinary text, as in MiMo."""
    return "<think>\n" + "\n".join(lines) + f"\n</think>\n\\boxed{{{answer}}}"


def _running_total(start: int, terms: list[int], teacher: Teacher, rng: random.Random) -> str:
    """Write a sum as running totals; a slip changes one total and is carried on."""
    total = start + sum(terms)
    if rng.random() < teacher.direct:
        return f"\\boxed{{{total}}}"
    lines, running = [], start
    for term in terms:
        result = running + term
        if rng.random() < teacher.slip:
            result += rng.choice((-2, -1, 1, 2))
        lines.append(f"{running} {'+' if term >= 0 else '-'} {abs(term)} = {result}")
        running = result
    return worked(lines, running)


def _total_problem(family: str, tier: Tier, prompt: str, start: int, terms: list[int]) -> Problem:
    return Problem(
        domain="math",
        family=family,
        tier=tier,
        prompt=prompt,
        answer=str(start + sum(terms)),
        respond=lambda teacher, rng: _running_total(start, terms, teacher, rng),
    )


def chain_sum(rng: random.Random, tier: Tier) -> Problem:
    """reasoning-gym's chain_sum with one-digit terms: 3 to 6 of them, 7 to 9 in the hard tier."""
    low, high = (3, 6) if tier == "train" else (7, 9)
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
    terms = [int(f"{sign}{number}") for sign, number in zip(words[1::2], words[2::2], strict=True)]
    problem = _total_problem("chain_sum", tier, entry["question"], int(words[0]), terms)
    if problem.answer != entry["answer"]:
        raise AssertionError(f"reasoning-gym and the working disagree: {entry['question']!r}")
    return problem


PEOPLE = ("Ann", "Ben", "Eva", "Ivo", "Mia", "Tom")
THINGS = ("apples", "books", "coins", "eggs", "pens", "stamps")
GAINS = ("buys {}", "finds {}", "gets {} more")
LOSSES = ("gives away {}", "loses {}", "sells {}")


def story(rng: random.Random, tier: Tier) -> Problem:
    """A word problem: somebody has some things, then gains and loses a few of them."""
    count = rng.randint(2, 4) if tier == "train" else rng.randint(5, 7)
    start, terms, running = rng.randint(2, 9), [], 0
    running = start
    for _ in range(count):
        size = rng.randint(1, 9)
        term = -size if size <= running and rng.random() < 0.5 else size
        terms.append(term)
        running += term
    person, thing = rng.choice(PEOPLE), rng.choice(THINGS)
    events = [rng.choice(GAINS if term > 0 else LOSSES).format(abs(term)) for term in terms]
    prompt = (
        f"{person} has {start} {thing}. {person} {', then '.join(events)}. "
        f"How many {thing} does {person} have now?"
    )
    return _total_problem("story", tier, prompt, start, terms)


KINDS: dict[str, Callable[[int, int], bool]] = {
    "even": lambda number, bound: number % 2 == 0,
    "odd": lambda number, bound: number % 2 == 1,
    "above": lambda number, bound: number > bound,
    "below": lambda number, bound: number < bound,
}


def counting(rng: random.Random, tier: Tier) -> Problem:
    """How many numbers of a list are even, odd, above or below a bound."""
    count = rng.randint(4, 6) if tier == "train" else rng.randint(8, 11)
    numbers = [rng.randint(0, 9) for _ in range(count)]
    kind, bound = rng.choice(list(KINDS)), rng.randint(2, 7)
    wanted = f"{kind} {bound}" if kind in ("above", "below") else kind
    listed = " ".join(map(str, numbers))

    def respond(teacher: Teacher, rng: random.Random) -> str:
        total = sum(KINDS[kind](number, bound) for number in numbers)
        if rng.random() < teacher.direct:
            return f"\\boxed{{{total}}}"
        lines, running = [], 0
        for number in numbers:
            hit = KINDS[kind](number, bound)
            if rng.random() < teacher.slip:
                hit = not hit
            running += hit
            lines.append(f"{number} {'yes' if hit else 'no'} {running}")
        return worked(lines, running)

    return Problem(
        domain="math",
        family="counting",
        tier=tier,
        prompt=f"How many of the numbers {listed} are {wanted}?",
        answer=str(sum(KINDS[kind](number, bound) for number in numbers)),
        respond=respond,
    )


FAMILIES = (chain_sum, story, counting)
