"""Rows of known problem sets as verifiable problems.

A problem is a record as in a run's problem files (`data/problems/problem.py`): domain, prompt and
answer, or tests as `judge/records.py` reads them. `golden` is the set's own solution of a
programming problem, where it has one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Json, ValidationError

from openmimo.data.rows import Row
from openmimo.rewards.math import extract_answer

Problem = dict[str, Any]
Answer = str | int | float | None


class NotAProblem(Exception):
    """A row that cannot be used: the reason in the funnel's words, and a detail."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


class Gsm8k(BaseModel):
    """The answer follows `####`, with commas in large numbers."""

    question: str
    answer: str

    def problem(self) -> Problem:
        _, mark, answer = self.answer.rpartition("####")
        return _math(self.question, answer.strip().replace(",", "") if mark else None)


class Math(BaseModel):
    """The answer, or a solution with the answer in its last box."""

    problem_: str
    answer: Answer = None
    solution: str | None = None

    model_config = {"alias_generator": lambda name: name.rstrip("_")}

    def problem(self) -> Problem:
        boxed = extract_answer(self.solution) if self.solution else None
        return _math(self.problem_, boxed if self.answer is None else self.answer)


class Mbpp(BaseModel):
    """Assertions. The prompt ends with the first one, as it alone names the function."""

    text: str | None = None
    prompt: str | None = None
    code: str | None = None
    test_list: list[str]
    test_setup_code: str = ""
    test_imports: list[str] = []

    def problem(self) -> Problem:
        setup = "\n".join([*self.test_imports, self.test_setup_code]).replace("\r\n", "\n").strip()
        # As in MBPP+, with nothing between: else an item of both would be no common text.
        example = f"\n{self.test_list[0]}" if self.test_list else ""
        return {
            "domain": "code",
            "prompt": (self.text or self.prompt or "") + example,
            "tests": [{"code": test, "setup": setup} for test in self.test_list],
            "golden": self.code,
        }


class Cases(BaseModel):
    """Inputs and outputs of programs, in one order."""

    inputs: list[str] = []
    outputs: list[str] = []
    input: list[str] = []
    output: list[str] = []

    def pairs(self) -> list[tuple[str, str]]:
        inputs, outputs = self.inputs + self.input, self.outputs + self.output
        if len(inputs) != len(outputs):
            raise NotAProblem("tests without output", f"{len(inputs)} inputs, {len(outputs)}")
        return list(zip(inputs, outputs, strict=True))


class Solutions(BaseModel):
    """Programs; language 3 is Python 3."""

    language: list[int] = []
    solution: list[str] = []


class CodeContests(BaseModel):
    """DeepMind's own fields, or `problem` and `tests`."""

    problem_: str | None = None
    description: str | None = None
    tests: Cases = Cases()
    public_tests: Cases = Cases()
    private_tests: Cases = Cases()
    generated_tests: Cases = Cases()
    solutions: Solutions = Solutions()

    model_config = {"alias_generator": lambda name: name.rstrip("_")}

    def problem(self) -> Problem:
        kinds = (self.tests, self.public_tests, self.private_tests, self.generated_tests)
        pairs = dict(pair for cases in kinds for pair in cases.pairs())
        known = zip(self.solutions.language, self.solutions.solution, strict=False)
        return {
            "domain": "code",
            "prompt": self.problem_ or self.description or "",
            "tests": [{"stdin": given, "stdout": wanted} for given, wanted in pairs.items()],
            "golden": next((text for language, text in known if language == 3), None),
        }


class Named(BaseModel):
    """Our own names; a row with tests is a programming problem. Parquet holds tests as JSON."""

    prompt: str
    answer: Answer = None
    tests: list[dict[str, Any]] | Json[list[dict[str, Any]]] | None = None
    golden: str | None = None
    entry_point: str | None = None
    levels: list[list[int]] | Json[list[list[int]]] | None = None
    level_scores: list[float] | Json[list[float]] | None = None

    def problem(self) -> Problem:
        if self.tests is None:
            return _math(self.prompt, self.answer)
        levels = {"levels": self.levels, "level_scores": self.level_scores}
        return {
            "domain": "code",
            "prompt": self.prompt,
            "tests": self.tests,
            "golden": self.golden,
            **({"entry_point": self.entry_point} if self.entry_point else {}),
            **{name: value for name, value in levels.items() if value},
        }


FORMATS: dict[str, type[Gsm8k | Math | Mbpp | CodeContests | Named]] = {
    "gsm8k": Gsm8k,
    "math": Math,
    "mbpp": Mbpp,
    "code_contests": CodeContests,
    "problems": Named,
}


def to_problem(row: Row, format_name: str, fields: Mapping[str, str]) -> Problem:
    """A row as a problem. Raises NotAProblem.

    fields: the row's names for ours, where they differ.
    """
    for name, column in fields.items():
        row = row | {name: row.get(column)}
    try:
        content = FORMATS[format_name].model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise NotAProblem("another form", f"{where}: {first['msg']}") from error
    problem = content.problem()
    prompt = problem["prompt"].replace("\r\n", "\n").strip()
    if not re.search(r"\w", prompt):
        raise NotAProblem("no question")
    if problem.get("tests") == []:
        raise NotAProblem("no tests")
    try:
        json.dumps(problem, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError) as error:
        raise NotAProblem("no JSON value", str(error)) from error
    # The id that a run's problems have: a hash of the prompt.
    name = hashlib.blake2b(prompt.encode(), digest_size=8).hexdigest()
    return {"id": name, "tier": "train", **problem, "prompt": prompt}


def question_of(row: Row) -> str | None:
    """The question of an evaluation item, by the usual names; None if it has none."""
    for name in ("prompt", "problem", "question", "text"):
        if isinstance(row.get(name), str) and re.search(r"\w", row[name]):
            return str(row[name])
    return None


def assertions(text: str) -> list[str]:
    """The lines of a text that are assertions.

    They tell a programming problem when its words were changed, as MBPP+ did with every second one.
    """
    return [line.strip() for line in text.splitlines() if line.strip().startswith("assert ")]


def _math(prompt: str, answer: Answer) -> Problem:
    """With the reference as text: 27.0 of a JSON file is the integer 27."""
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    text = "" if answer is None else str(answer).strip()
    if not text:
        raise NotAProblem("no answer")
    return {"domain": "math", "prompt": prompt, "answer": text}
