"""The problems that RL trains on: the data stage's, or a set of the user's (`rl.problems`).

Such a set is what `mimo curate` writes (docs/curation.md), or the same rows as JSON Lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Json, ValidationError

from openmimo.data.documents import read_records
from openmimo.data.rows import digest, locate, read_rows
from openmimo.errors import UserError
from openmimo.judge.records import parse_test
from openmimo.rewards.grading import check_levels, scaled_scores
from openmimo.runs import Run
from openmimo.tokenizer import Tokenizer

Problem = dict[str, Any]

SETTING = "rl.problems"
COLUMNS = (
    "the columns are prompt, and answer (mathematics) or tests (code); id, domain, tier, "
    "entry_point, levels and level_scores may be there (docs/curation.md)"
)


class _Row(BaseModel):
    """A row of the file. Parquet holds values of many kinds as JSON."""

    prompt: str
    id: str | None = None
    domain: Literal["math", "code"] | None = None
    tier: Literal["train", "hard"] = "train"
    answer: str | None = None
    tests: list[dict[str, Any]] | Json[list[dict[str, Any]]] | None = None
    entry_point: str | None = None
    levels: list[list[int]] | Json[list[list[int]]] | None = None
    level_scores: list[float] | Json[list[float]] | None = None

    def problem(self) -> Problem:
        """As in the data stage's files. Raises UserError for what cannot be rewarded."""
        domain = self.domain or ("math" if self.tests is None else "code")
        # As the data stage names problems.
        name = self.id or hashlib.blake2b(self.prompt.encode(), digest_size=8).hexdigest()
        shared = {"id": name, "domain": domain, "tier": self.tier, "prompt": self.prompt}
        if domain == "math":
            if not self.answer:
                raise UserError(f"no answer; {COLUMNS}")
            return shared | {"answer": self.answer}
        if not self.tests:
            raise UserError(f"no tests; {COLUMNS}")
        self._check_tests(self.tests)
        values = {
            "tests": self.tests,
            "entry_point": self.entry_point,
            "levels": self.levels,
            "level_scores": self.level_scores,
        }
        return shared | {name: value for name, value in values.items() if value}

    def _check_tests(self, tests: Sequence[dict[str, Any]]) -> None:
        for test in tests:
            parse_test(test, self.entry_point)
        if self.levels:
            check_levels(self.levels, len(tests))
            scaled_scores(len(self.levels), self.level_scores or ())
        elif self.level_scores:
            raise UserError("level_scores without levels")


def fingerprint(problems: str | None) -> str | None:
    """A hash of the content of the setting's files; None without the setting.

    Raises UserError if there is no such file.
    """
    if problems is None:
        return None
    return " ".join(digest(path) for path in _files(problems))


def read_problems(problems: str | None, run: Run) -> list[Problem]:
    """The problems of the setting, or else those of the run's data stage.

    Raises:
        UserError: no such file, or a row is no problem that can be rewarded, or one id is there
            twice.
    """
    if problems is None:
        file = run.dir / "stages" / "data" / "problems" / "rl.jsonl"
        return [problem for _, problem in read_records(file, "id", "domain", "prompt")]
    found: dict[str, Problem] = {}
    for path in _files(problems):
        for number, row in read_rows(path):
            where = f"{SETTING}: {path}:{number}"
            problem = _read(row, where)
            if problem["id"] in found:
                raise UserError(f"{where}: the id {problem['id']!r} occurs twice")
            found[problem["id"]] = problem
    if not found:
        raise UserError(f"{SETTING}: {problems} holds no problems")
    return list(found.values())


def check_unchanged(problems: str | None, done: dict[str, Any] | None) -> None:
    """Raise UserError if the setting's file is another than the difficulty stage has read.

    done: what that stage said when it finished. A file that is gone is not needed any more.
    """
    if problems is None or done is None:
        return
    try:
        now = fingerprint(problems)
    except UserError:
        return
    if done.get("problems_from") != now:
        raise UserError(
            f"{SETTING}: {problems} has changed since the difficulty stage read it: repeat "
            "`mimo difficulty`, then this"
        )


def fitting(
    problems: list[Problem], tokenizer: Tokenizer, context: int, most: int | None
) -> list[Problem]:
    """The problems whose prompts are not too long, and a line about the others.

    Args:
        context: the model's longest sequence, in tokens.
        most: rl.max_prompt_tokens.

    Raises:
        UserError: without `most`, a prompt leaves no room for an answer; or none is left.
    """
    lengths = [len(tokenizer.chat_prompt(problem["prompt"])) for problem in problems]
    longest = max(lengths)
    if most is None and longest >= context:
        name = problems[lengths.index(longest)]["id"]
        raise UserError(
            f"the prompt of problem {name} has {longest} tokens and the model's context only "
            f"{context}: leave long prompts out with rl.max_prompt_tokens"
        )
    limit = context - 1 if most is None else min(most, context - 1)
    kept = [each for each, length in zip(problems, lengths, strict=True) if length <= limit]
    if not kept:
        raise UserError(
            f"no problem is left: the shortest prompt has {min(lengths)} tokens, and "
            f"rl.max_prompt_tokens is {most}, the model's context {context}"
        )
    if len(kept) < len(problems):
        print(
            f"problems: {len(kept):,} of {len(problems):,} have at most {limit} prompt tokens",
            flush=True,
        )
    return kept


def _files(problems: str) -> list[Path]:
    try:
        return locate(problems)
    except UserError as error:
        raise UserError(f"{SETTING}: {error}") from error


def _read(row: dict[str, Any], where: str) -> Problem:
    given = {name: value for name, value in row.items() if value is not None}
    try:
        return _Row.model_validate(given).problem()
    except ValidationError as error:
        first = error.errors()[0]
        column = first["loc"][0] if first["loc"] else "row"
        raise UserError(f"{where}: {column}: {first['msg']}; {COLUMNS}") from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
