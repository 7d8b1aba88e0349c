"""The pre-training stream: documents of a mixture, packed into rows without waste.

Rows are a pure function of the shards, the seed and the integers of `state()`; neither the batch
nor the number of ranks changes their order. A document that does not fit is continued at the
beginning of the next row, with positions that restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from openmimo.data.mixture import MixtureOrder
from openmimo.data.shards import Corpus
from openmimo.training.batch import Segment


class PackedStream:
    """Endless rows of segments.

    `tokens` counts, by source, what was read since the current mixture began.
    """

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._positions = dict.fromkeys(corpus.readers, 0)
        self._open: tuple[str, int, int] | None = None  # source, position, tokens already used
        self._mixture: dict[str, float] = {}
        self.tokens: dict[str, int] = {}

    def use(self, mixture: Mapping[Any, float]) -> None:
        """Read by these shares from now on; nothing happens if they are in use."""
        if dict(mixture) != self._mixture:
            self._mixture = dict(mixture)
            self.tokens = dict.fromkeys(mixture, 0)

    def row(self, length: int) -> list[Segment]:
        """The next row: segments that fill exactly `length` tokens."""
        segments, free = [], length
        while free:
            source, position, start = self._open or self._next_document()
            document = self._corpus.document(source, position)
            piece = np.asarray(document[start : start + free], dtype=np.int64)
            segments.append(Segment(piece))
            free -= len(piece)
            if source in self.tokens:  # else: the rest of a document of the mixture before
                self.tokens[source] += len(piece)
            end = start + len(piece)
            self._open = (source, position, end) if end < len(document) else None
        return segments

    def _next_document(self) -> tuple[str, int, int]:
        source = MixtureOrder(self._mixture).next_source(self.tokens)
        position = self._positions[source]
        self._positions[source] += 1
        return source, position, 0

    def state(self) -> dict[str, Any]:
        """JSON state for `restore`."""
        return {
            "positions": dict(self._positions),
            "open": self._open,
            "mixture": dict(self._mixture),
            "tokens": dict(self.tokens),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken."""
        self._positions = dict(state["positions"])
        self._open = tuple(state["open"]) if state["open"] else None
        self._mixture = dict(state["mixture"])
        self.tokens = dict(state["tokens"])
