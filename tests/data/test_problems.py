"""Generated problems against answers worked out another way, from the prompt alone."""

import json
import random
import re
from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any

import pytest

from openmimo.data.problem_sets import FAMILIES
from openmimo.data.problems.mathematics import chain_sum, counting, digit_sum, worksheet
from openmimo.data.problems.problem import Problem, Teacher
from openmimo.data.problems.programs import pipeline
from openmimo.rewards.code import extract_program
from openmimo.rewards.math import extract_answer

CAREFUL = Teacher(direct=0.0, slip=0.0, sloppy=0.0)
ALL = [family for families in FAMILIES.values() for family in families]
MATH = FAMILIES["math"]
TIERS = ("train", "hard")


def drawn(family: Callable[..., Problem], tier: str, count: int = 40) -> list[Problem]:
    rng = random.Random(f"{family.__name__}/{tier}")
    return [family(rng, tier) for _ in range(count)]


def chain_sum_answer(prompt: str) -> int:
    expression = re.search(r"problem: ([\d+-]+) =", prompt)
    assert expression
    return eval(expression[1])


def digit_sum_answer(prompt: str) -> int:
    return sum(map(int, re.search(r"(\d+)\?", prompt)[1]))


def counting_answer(prompt: str) -> int:
    number, kind = re.search(r"digits of (\d+) are (.+)\?", prompt).groups()
    word, *bound = kind.split()
    test = {
        "even": lambda n: n % 2 == 0,
        "odd": lambda n: n % 2 == 1,
        "above": lambda n: n > int(bound[0]),
        "below": lambda n: n < int(bound[0]),
    }[word]
    return sum(map(test, map(int, number)))


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize(
    ("family", "solve"),
    [(chain_sum, chain_sum_answer), (digit_sum, digit_sum_answer), (counting, counting_answer)],
)
def test_math_answers_and_careful_responses_are_right(
    family: Callable[..., Problem], solve: Callable[[str], int], tier: str
) -> None:
    for problem in drawn(family, tier):
        assert problem.answer == str(solve(problem.prompt)), problem.prompt
        for direct in (0.0, 1.0):
            teacher = Teacher(direct=direct, slip=0.0, sloppy=0.0)
            response = problem.respond(teacher, random.Random(0))
            assert extract_answer(response) == problem.answer
            assert ("<think>" in response) == (direct == 0.0)


@pytest.mark.parametrize("family", MATH)
def test_one_slip_in_the_working_makes_the_answer_wrong(family: Callable[..., Problem]) -> None:
    teacher = Teacher(direct=0.0, slip=0.2, sloppy=0.0)
    wrong = 0
    for seed, problem in enumerate(drawn(family, "train")):
        careful = problem.respond(CAREFUL, random.Random(seed)).splitlines()
        slipped = problem.respond(teacher, random.Random(seed)).splitlines()
        assert len(slipped) == len(careful), "a slip changes a result, not the layout"
        wrong += extract_answer("\n".join(slipped)) != problem.answer
    assert 5 < wrong < 38


def outcome(program: str, arguments: list[Any]) -> Any:
    names: dict[str, Any] = {}
    exec(program, names)
    try:
        return names["f"](*json.loads(json.dumps(arguments)))
    except (IndexError, ValueError) as error:
        return type(error)


def passes(program: str, tests: tuple[dict[str, Any], ...]) -> bool:
    return all(outcome(program, test["args"]) == test["expected"] for test in tests)


@pytest.mark.parametrize("tier", TIERS)
def test_careful_programs_pass_and_a_single_careless_clause_is_caught(tier: str) -> None:
    caught = 0
    for problem in drawn(pipeline, tier):
        careful = extract_program(problem.respond(CAREFUL, random.Random(0)))
        assert careful
        assert passes(careful, problem.tests), problem.prompt
        for seed in range(8):
            teacher = Teacher(direct=0.0, slip=0.0, sloppy=0.4)
            sloppy = extract_program(problem.respond(teacher, random.Random(seed)))
            assert sloppy
            lines = zip(careful.splitlines(), sloppy.splitlines(), strict=True)
            if sum(ours != theirs for ours, theirs in lines) == 1:
                assert not passes(sloppy, problem.tests), sloppy
                caught += 1
    assert caught > 10


def test_careless_programs_pass_some_tests() -> None:
    """Else tests would all be equally hard, and levels of difficulty would mean nothing."""
    teacher = Teacher(direct=0.0, slip=0.0, sloppy=1.0)
    partly = 0
    for problem in drawn(pipeline, "train"):
        program = extract_program(problem.respond(teacher, random.Random(0)))
        assert program
        passed = [outcome(program, t["args"]) == t["expected"] for t in problem.tests]
        partly += any(passed) and not all(passed)
    assert partly > 5


@pytest.mark.parametrize("family", ALL)
def test_draws_repeat_and_records_are_json(family: Callable[..., Problem]) -> None:
    for tier in TIERS:
        problems = drawn(family, tier)
        again = drawn(family, tier)
        assert [p.record() for p in problems] == [p.record() for p in again]
        for problem in problems:
            record = problem.record()
            assert json.loads(json.dumps(record)) == record
            assert record["tier"] == tier
            assert problem.domain in FAMILIES
            assert ("tests" in record) == (problem.domain == "code")


def size(problem: Problem) -> int:
    """Digits or clauses of a problem."""
    if problem.domain == "code":
        return problem.prompt.count(";")
    return len(re.findall(r"\d", problem.prompt.split(" are ")[0]))


@pytest.mark.parametrize("family", ALL)
def test_every_hard_problem_is_larger_than_every_train_one(family: Callable[..., Problem]) -> None:
    train, hard = ([size(problem) for problem in drawn(family, tier)] for tier in TIERS)
    assert min(hard) > max(train)


def check_working(written: str, terms: list[int], lines: list[str]) -> None:
    """Each line has the term before, the term and the total so far; the last one the result."""
    *steps, last = lines
    labels = [step.split(":")[0] for step in steps]
    # Without the term before, a line has what stands next in the problem.
    own = [labels[0], *(label[1:] for label in labels[1:])]
    assert "".join(own) == written, "the working goes through the problem in order"
    assert all(a[-1] == b[0] for a, b in pairwise(labels))
    totals = [step.split(":")[1] for step in steps]
    assert list(map(int, totals)) == list(accumulate(terms))
    assert len(set(map(len, totals))) == 1, "all lines are equally long"
    assert last == f"{written[-1]}={sum(terms)}"


@pytest.mark.parametrize("tier", TIERS)
def test_careful_working_is_right_line_by_line(tier: str) -> None:
    for family in MATH:
        for problem in drawn(family, tier):
            lines = problem.respond(CAREFUL, random.Random(0)).splitlines()[1:-2]
            written = re.search(r"(?:of|problem:) ([\d+-]+)", problem.prompt)[1]
            terms = [int(term) for term in re.findall(r"[+-]?\d", written)]
            if family is counting:
                rest = problem.prompt.split(written)[1]
                terms = [counting_answer(f"digits of {digit}{rest}") for digit in written]
            check_working(written, terms, lines)


def test_a_worksheet_is_right_and_leaves_held_out_questions_out() -> None:
    sheets = [worksheet(CAREFUL, random.Random(seed)) for seed in range(60)]
    for heading, *drills in (sheet.split("\n\n") for sheet in sheets):
        for drill in drills:
            written, *lines = drill.splitlines()
            if heading.startswith("Sums"):
                terms = [int(term) for term in re.findall(r"[+-]?\d", written)]
                check_working(written, terms, lines)
    number = next(s for s in sheets if s.startswith("Sums of digits")).split("\n")[2]
    seed = next(s for s in range(60) if number in sheets[s].split("\n"))
    question = f"What is the sum of the digits of {number}?"
    assert number not in worksheet(CAREFUL, random.Random(seed), {question}).split("\n")


def test_ids_depend_on_the_prompt_alone() -> None:
    problem = Problem("math", "a", "train", "1 + 1 =", answer="2")
    assert problem.id == Problem("code", "b", "hard", "1 + 1 =").id
    assert problem.id != Problem("math", "a", "train", "1 + 2 =", answer="3").id
