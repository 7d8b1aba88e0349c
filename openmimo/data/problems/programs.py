"""Programming problems with graded tests.

A problem is a pipeline over a list of integers. Some clauses have a careless form that people do
write (`>=` for `>`, no guard for an empty list, `set` for "remove repeats"): it passes ordinary
tests and fails boundary ones, so tests differ in difficulty, which the test difficulty driven
reward (report, section 3.3.1) needs.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from openmimo.data.problems.problem import Problem, Teacher, Tier

Transform = Callable[[list[int]], Any]


@dataclass(frozen=True)
class Clause:
    """One step: its wording, its line of code and meaning, and the careless ones if any."""

    text: str
    code: str
    run: Transform
    careless_code: str = ""
    careless_run: Transform | None = None


def _middle_clauses(k: int) -> list[Clause]:
    """Steps that turn a list into a list; k is a small number they may mention."""
    return [
        Clause(
            f"keep the numbers above {k}",
            f"xs = [x for x in xs if x > {k}]",
            lambda xs: [x for x in xs if x > k],
            f"xs = [x for x in xs if x >= {k}]",
            lambda xs: [x for x in xs if x >= k],
        ),
        Clause(
            f"keep the numbers of at least {k}",
            f"xs = [x for x in xs if x >= {k}]",
            lambda xs: [x for x in xs if x >= k],
            f"xs = [x for x in xs if x > {k}]",
            lambda xs: [x for x in xs if x > k],
        ),
        Clause(
            f"keep the numbers up to {k}",
            f"xs = [x for x in xs if x <= {k}]",
            lambda xs: [x for x in xs if x <= k],
            f"xs = [x for x in xs if x < {k}]",
            lambda xs: [x for x in xs if x < k],
        ),
        Clause(
            "remove repeats",
            "xs = list(dict.fromkeys(xs))",
            lambda xs: list(dict.fromkeys(xs)),
            "xs = sorted(set(xs))",
            lambda xs: sorted(set(xs)),
        ),
        Clause(
            "keep the even numbers",
            "xs = [x for x in xs if x % 2 == 0]",
            lambda xs: [x for x in xs if x % 2 == 0],
        ),
        Clause(
            f"add {k} to each",
            f"xs = [x + {k} for x in xs]",
            lambda xs: [x + k for x in xs],
        ),
        Clause(
            f"multiply each by {k}",
            f"xs = [x * {k} for x in xs]",
            lambda xs: [x * k for x in xs],
        ),
        Clause("reverse the list", "xs = xs[::-1]", lambda xs: xs[::-1]),
        Clause("sort the list", "xs = sorted(xs)", sorted),
        Clause("drop the first", "xs = xs[1:]", lambda xs: xs[1:]),
    ]


def _guarded(expression: str, default: int, run: Transform) -> tuple[str, Transform]:
    return (
        f"return {expression} if xs else {default}",
        lambda xs: run(xs) if xs else default,
    )


def _final_clauses(default: int) -> list[Clause]:
    """Last steps; `default` is what the guarded ones return for an empty list."""
    clauses = [
        Clause("return the list", "return xs", lambda xs: xs),
        Clause("return the sum", "return sum(xs)", sum),
        Clause("return how many are left", "return len(xs)", len),
    ]
    guarded: list[tuple[str, str, Transform]] = [
        ("largest", "max(xs)", max),
        ("smallest", "min(xs)", min),
        ("last", "xs[-1]", lambda xs: xs[-1]),
    ]
    for word, expression, run in guarded:
        code, safe = _guarded(expression, default, run)
        text = f"return the {word}, or {default} if there is none"
        clauses.append(Clause(text, code, safe, f"return {expression}", run))
    return clauses


def _run(clauses: list[Clause], careless: set[int], xs: list[int]) -> Any:
    value: Any = list(xs)
    for index, clause in enumerate(clauses):
        run = clause.careless_run if index in careless else clause.run
        assert run is not None
        value = run(value)
    return value


def _fails(clauses: list[Clause], careless: set[int], xs: list[int]) -> bool:
    try:
        return bool(_run(clauses, careless, xs) != _run(clauses, set(), xs))
    except (IndexError, ValueError):  # max(), min() or xs[-1] of an empty list
        return True


def _tests(clauses: list[Clause], count: int, rng: random.Random) -> list[dict[str, Any]] | None:
    """`count` tests of which at least one catches each careless clause; None if none can."""
    inputs = [[rng.randint(0, 12) for _ in range(rng.randint(3, 6))] for _ in range(count)]
    careless = [i for i, clause in enumerate(clauses) if clause.careless_run]
    for slot, index in enumerate(careless):
        tries = ([rng.randint(0, 12) for _ in range(rng.randint(0, 6))] for _ in range(300))
        catching = next((xs for xs in tries if _fails(clauses, {index}, xs)), None)
        if catching is None:
            return None
        if not any(_fails(clauses, {index}, xs) for xs in inputs):
            inputs[-1 - slot] = catching
    # A later catching input may have replaced the only one that caught an earlier clause.
    if not all(any(_fails(clauses, {index}, xs) for xs in inputs) for index in careless):
        return None
    return [{"args": [xs], "expected": _run(clauses, set(), xs)} for xs in inputs]


def _response(clauses: list[Clause], teacher: Teacher, rng: random.Random) -> str:
    lines = [
        clause.careless_code
        if clause.careless_code and rng.random() < teacher.sloppy
        else clause.code
        for clause in clauses
    ]
    body = "\n".join(f"    {line}" for line in lines)
    return f"```python\ndef f(xs):\n{body}\n```"


def pipeline(rng: random.Random, tier: Tier, tests: int = 8) -> Problem:
    """A pipeline of 2 or 3 clauses, 4 in the hard tier."""
    count = rng.randint(1, 2) if tier == "train" else 3
    while True:
        texts: set[str] = set()
        clauses: list[Clause] = []
        while len(clauses) < count:
            clause = rng.choice(_middle_clauses(rng.randint(2, 6)))
            if clause.text not in texts:
                texts.add(clause.text)
                clauses.append(clause)
        clauses.append(rng.choice(_final_clauses(rng.choice((0, -1)))))
        cases = _tests(clauses, tests, rng)
        if cases is not None:
            break
    return Problem(
        domain="code",
        family="pipeline",
        tier=tier,
        prompt=f"Write a Python function f(xs): {'; '.join(c.text for c in clauses)}.",
        entry_point="f",
        tests=tuple(cases),
        respond=lambda teacher, rng: _response(clauses, teacher, rng),
    )


FAMILIES = (pipeline,)
