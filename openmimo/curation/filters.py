"""A filter of the user's own, such as a model: which questions no rule can verify."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from openmimo.curation.gates import Judgement
from openmimo.curation.journal import Journal, content_key
from openmimo.data.rows import digest
from openmimo.errors import UserError


@dataclass(frozen=True)
class Filter:
    """A function by its name MODULE:FUNCTION. `version` changes with the file that defines it."""

    name: str
    version: str
    judgement: Judgement

    def remembering(self, journal: Journal) -> Judgement:
        """The same function, asked once about each question."""

        def judge(questions: Sequence[str]) -> list[str | None]:
            keys = [content_key(self.name, self.version, question) for question in questions]
            new = [i for i, key in enumerate(keys) if journal.get(key) is None]
            answers = self.judgement([questions[index] for index in new]) if new else []
            if len(answers) != len(new):
                raise UserError(
                    f"the filter {self.name} gave {len(answers)} answers to {len(new)} questions"
                )
            for index, answer in zip(new, answers, strict=True):
                journal.add(keys[index], reason=answer)
            return [known[0] for key in keys if (known := journal.get(key))]

        return judge


def load_filter(name: str) -> Filter:
    """The function that MODULE:FUNCTION names. Raises UserError if there is none."""
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"no filter {name!r} ({error}): write MODULE:FUNCTION") from error
    if not callable(found):
        raise UserError(f"the filter {name} is no function")
    try:
        version = digest(Path(inspect.getfile(inspect.unwrap(found))))
    except TypeError:  # an object that can be called, or built in: nothing tells its versions
        version = ""
    return Filter(name, version, found)
