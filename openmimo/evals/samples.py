"""A variant's graded answers: one JSON line each, appended as soon as the verdict is known."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from openmimo.data.documents import cut_torn_line, read_records
from openmimo.errors import UserError
from openmimo.evals.exam import SampleKey


@dataclass(frozen=True)
class Sample:
    """One graded answer.

    id, sample: the problem, and which of its samples.
    tokens: length of the answer, its stop token included.
    truncated: whether it was cut off at the length limit.
    correct: None where it could not be judged.
    status, detail: how the verdict came about (`rewards.verdict.Verdict`).
    passed: of a program, a digit for each test: 1 passed, 0 failed or was not run.
    """

    id: str
    sample: int
    response: str
    tokens: int
    truncated: bool
    correct: bool | None
    status: str
    detail: str = ""
    passed: str = ""

    @property
    def key(self) -> SampleKey:
        return self.id, self.sample


class SampleFile:
    """The samples of one variant, those on disk included; `add` appends.

    A process that was killed may have torn the last line: opening the file removes it, and the
    sample is made again. Every line is one `write` call on an unbuffered file.

    Raises:
        UserError: another line is broken, or holds a sample that is not among `expected`.
    """

    def __init__(self, path: Path, expected: Collection[SampleKey]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.samples: dict[SampleKey, Sample] = {}
        if path.exists():
            cut_torn_line(path)
            keys = set(expected)
            for line, record in read_records(path):
                sample = _parse(record)
                if sample is None or sample.key not in keys:
                    raise UserError(
                        f"{path}:{line} is no sample of this evaluation: remove the file, and its "
                        "samples are made again"
                    )
                self.samples[sample.key] = sample
        self._file = path.open("ab", buffering=0)

    def add(self, sample: Sample) -> None:
        """Keep one more sample."""
        line = json.dumps(asdict(sample), ensure_ascii=False)
        self._file.write(line.encode() + b"\n")
        self.samples[sample.key] = sample

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


_TYPES = {
    "id": str,
    "sample": int,
    "response": str,
    "tokens": int,
    "truncated": bool,
    "correct": bool | None,
    "status": str,
    "detail": str,
    "passed": str,
}


def _parse(record: dict[str, Any]) -> Sample | None:
    fits = record.keys() == _TYPES.keys()
    if fits and all(isinstance(record[name], kind) for name, kind in _TYPES.items()):
        return Sample(**record)
    return None
