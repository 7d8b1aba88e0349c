"""What took long to find out, by what it was found out about: kept through kills and changed sets.

A journal is a file of JSON lines in OUT/journals. A line is written as soon as its answer is known,
and its key is a hash of everything that the answer depends on. So whatever is asked again later is
not worked out again: after a kill, in another order, or among other problems.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from openmimo.data.documents import cut_torn_line, read_records
from openmimo.errors import UserError


class Journal:
    """An append-only file of answers; a context manager.

    Args:
        path: made if it is not there. A torn last line, as a kill leaves it, is removed.
        names: the fields of an answer that `get` gives. The others (a model's whole response, say)
            stay on disk alone. If a key was answered twice, the later answer counts.

    Raises:
        UserError: another line cannot be read.
    """

    def __init__(self, path: Path, *names: str) -> None:
        self._names = names
        self._known: dict[str, tuple[Any, ...]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            cut_torn_line(path)
            for line, record in read_records(path, "key"):
                if not record.keys() >= set(names):
                    raise UserError(f"{path}:{line} lacks one of {', '.join(names)}: remove it")
                self._remember(record)
        self._file = path.open("ab", buffering=0)

    def get(self, key: str) -> tuple[Any, ...] | None:
        """The answer's values of `names`, in order; None if there is no answer."""
        return self._known.get(key)

    def add(self, key: str, **answer: Any) -> None:
        """Keep an answer, in one write."""
        record = {"key": key, **answer}
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._remember(record)

    def _remember(self, record: dict[str, Any]) -> None:
        self._known[record["key"]] = tuple(record[name] for name in self._names)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def content_key(*parts: Any) -> str:
    """A hash of JSON values."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def problem_key(problem: dict[str, Any], fields: Sequence[str]) -> str:
    """A hash of some fields of a problem; one that is None counts as missing."""
    return content_key({name: problem[name] for name in fields if problem.get(name) is not None})
