"""The sets of problems of a run: held-out, RL and SFT queries, no problem in two of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from openmimo.config.schema import DataConfig
from openmimo.data.decontaminate import DecontaminationIndex
from openmimo.data.problems import mathematics, programs
from openmimo.data.problems.problem import Problem, Tier
from openmimo.errors import UserError

Family = Callable[[random.Random, Tier], Problem]

FAMILIES: dict[str, tuple[Family, ...]] = {
    "math": mathematics.FAMILIES,
    "code": programs.FAMILIES,
}

HARD_CODE_PROBLEMS = 200
"""RL problems beyond `rl_problems`: of the hard tier, for experiments with `rl.tiers`."""

MAX_REPEATS = 2_000
"""Draws in a row without a new problem after which a family counts as used up."""


@dataclass(frozen=True)
class ProblemSets:
    """rl_refused: RL candidates that overlapped with a held-out problem and were replaced."""

    heldout: list[Problem]
    rl: list[Problem]
    queries: list[Problem]
    rl_refused: int


def draw_sets(data: DataConfig, seed: int) -> tuple[ProblemSets, DecontaminationIndex]:
    """Draw all sets, and index the held-out prompts.

    Half of a set is mathematics, spread over its families, and half code. Half of each half of the
    held-out problems is of the hard tier; SFT queries are of the train tier, as are RL problems
    but for HARD_CODE_PROBLEMS. RL problems hold no held-out problem by the index's rules; SFT
    queries are filtered together with their responses. Raises UserError if a family has too few
    distinct problems.
    """
    seen: set[str] = set()
    rng = random.Random(f"{seed}/heldout")
    heldout = [
        problem
        for domain, share in zip(FAMILIES, split_evenly(data.heldout_problems, 2), strict=True)
        for tier, part in zip(("train", "hard"), split_evenly(share, 2), strict=True)
        for problem in draw_domain(domain, tier, part, seen, rng)
    ]
    prompts = {problem.id: problem.prompt for problem in heldout}
    index = DecontaminationIndex(prompts, n=data.decontamination_ngram)

    rng = random.Random(f"{seed}/rl")
    math, code = split_evenly(data.rl_problems, 2)
    wanted = [(family, "train", n) for family, n in _shares("math", math) + _shares("code", code)]
    wanted += [(family, "hard", n) for family, n in _shares("code", HARD_CODE_PROBLEMS)]
    clean = [_draw_clean(family, tier, n, seen, rng, index) for family, tier, n in wanted]

    rng = random.Random(f"{seed}/queries")
    math, code = split_evenly(data.sft_queries, 2)
    queries = [
        *draw_domain("math", "train", math, seen, rng),
        *draw_domain("code", "train", code, seen, rng),
    ]
    rl = [problem for problems, _ in clean for problem in problems]
    return ProblemSets(heldout, rl, queries, sum(refused for _, refused in clean)), index


def draw_any(domain: str, rng: random.Random) -> Problem:
    """A problem of the train tier, of any family of a domain; it may repeat earlier ones."""
    return rng.choice(FAMILIES[domain])(rng, "train")


def draw_domain(
    domain: str, tier: Tier, count: int, seen: set[str], rng: random.Random
) -> list[Problem]:
    """`count` distinct problems, spread over the families of a domain; see `draw_distinct`."""
    return [
        problem
        for family, share in _shares(domain, count)
        for problem in draw_distinct(family, tier, share, seen, rng)
    ]


def draw_distinct(
    family: Family, tier: Tier, count: int, seen: set[str], rng: random.Random
) -> list[Problem]:
    """Draw `count` problems whose ids are not in `seen`, and add theirs to it.

    Raises UserError if the family has too few distinct problems.
    """
    problems: list[Problem] = []
    repeats = 0
    while len(problems) < count:
        problem = family(rng, tier)
        if problem.id not in seen:
            seen.add(problem.id)
            problems.append(problem)
            repeats = 0
        elif (repeats := repeats + 1) == MAX_REPEATS:
            raise UserError(
                f"the problems of {problem.family} ({tier} tier) are used up, {count} more were "
                "needed: lower data.heldout_problems, data.rl_problems or data.sft_queries"
            )
    return problems


def _draw_clean(
    family: Family,
    tier: Tier,
    count: int,
    seen: set[str],
    rng: random.Random,
    index: DecontaminationIndex,
) -> tuple[list[Problem], int]:
    """`count` new problems without overlap with the index, and how many had one."""
    clean: list[Problem] = []
    refused = 0
    while len(clean) < count:
        drawn = draw_distinct(family, tier, count - len(clean), seen, rng)
        kept, report = index.filter(drawn, lambda problem: problem.prompt)
        clean += kept
        refused += len(report.dropped)
    return clean, refused


def _shares(domain: str, count: int) -> list[tuple[Family, int]]:
    families = FAMILIES[domain]
    return list(zip(families, split_evenly(count, len(families)), strict=True))


def split_evenly(total: int, parts: int) -> list[int]:
    """`parts` whole numbers that sum to `total` and differ by at most one, larger ones first."""
    return [(total + parts - 1 - part) // parts for part in range(parts)]
