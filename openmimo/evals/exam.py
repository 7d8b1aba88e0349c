"""What every variant is asked: the held-out problems, and how an answer is to be sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openmimo.config.schema import EvalConfig
from openmimo.data.documents import read_records
from openmimo.errors import UserError
from openmimo.inference.protocol import Request
from openmimo.inference.sampling import sample_seed
from openmimo.rollout.engines import EngineSettings
from openmimo.tokenizer import Tokenizer

Problem = Mapping[str, Any]
"""A record of a problem file."""

SampleKey = tuple[str, int]
"""Id of a problem, and which of its samples; from 0."""

_SHARED: dict[str, type] = {"id": str, "family": str, "tier": str, "prompt": str}
_FIELDS: dict[str, dict[str, type]] = {
    "math": {**_SHARED, "answer": str},
    "code": {**_SHARED, "entry_point": str, "tests": list},
}


@dataclass(frozen=True)
class Exam:
    """The same questions, settings and seeds for every variant.

    problems: by id, in the order of the file.
    seed: the run's; with it, a problem's id and a sample's number a sample's seed is fixed.
    """

    problems: dict[str, Problem]
    tokenizer: Tokenizer
    settings: EvalConfig
    seed: int

    def sample_keys(self) -> list[SampleKey]:
        """Every sample that a variant gives; those of one problem follow each other."""
        return [(problem, n) for problem in self.problems for n in range(self.settings.samples)]

    def request(self, key: SampleKey, context: int) -> Request:
        """The request of one sample; its id is `key` as one string (see `key_of`).

        Args:
            context: the model's longest sequence, in tokens. The answer may be as long as fits.

        Raises:
            UserError: the prompt alone is too long.
        """
        problem, number = key
        prompt = self.tokenizer.chat_prompt(self.problems[problem]["prompt"])
        room = context - len(prompt)
        if room < 1:
            raise UserError(
                f"held-out problem {problem} has {len(prompt)} tokens, which leaves no room for an "
                f"answer in the model's context of {context} (max_position_embeddings)"
            )
        return Request(
            id=f"{problem}/{number}",
            prompt_ids=prompt,
            max_new_tokens=min(self.settings.max_new_tokens, room),
            temperature=self.settings.temperature,
            top_p=self.settings.top_p,
            seed=sample_seed(self.seed, "eval", problem, number),
            stop_ids=(self.tokenizer.eos_id, self.tokenizer.doc_end_id),
        )

    def engine_settings(self, requests: Sequence[Request], drafts: int = 0) -> EngineSettings:
        """Of engines just large enough for `requests`."""
        return EngineSettings(
            slots=min(self.settings.slots, len(requests)),
            max_length=max(len(r.prompt_ids) + r.max_new_tokens for r in requests),
            used_vocab=self.tokenizer.vocab_size,
            drafts=drafts,
        )

    def spread(self, count: int) -> list[str]:
        """Ids of at most `count` problems, evenly spaced, so that every kind is among them."""
        ids = list(self.problems)
        count = min(count, len(ids))
        return [ids[index * len(ids) // count] for index in range(count)]


def key_of(request_id: int | str) -> SampleKey:
    """The sample that a request of `Exam.request` is for."""
    problem, _, number = str(request_id).rpartition("/")
    return problem, int(number)


def read_problems(path: Path) -> dict[str, Problem]:
    """The problems of a file, by id.

    Raises:
        UserError: the file cannot be read or is empty, an id occurs twice, or a field is missing
            or of another type.
    """
    problems: dict[str, Problem] = {}
    for line, record in read_records(path):
        domain = str(record.get("domain"))
        if domain not in _FIELDS:
            raise UserError(f"{path}:{line}: the domain is {domain}, which has no verifier")
        for name, kind in _FIELDS[domain].items():
            if not isinstance(record.get(name), kind):
                raise UserError(f"{path}:{line}: {name!r} is missing or no {kind.__name__}")
        if record["id"] in problems:
            raise UserError(f"{path}:{line}: the id {record['id']!r} occurs twice")
        problems[record["id"]] = record
    if not problems:
        raise UserError(f"{path} holds no problems: there is nothing to evaluate on")
    return problems
