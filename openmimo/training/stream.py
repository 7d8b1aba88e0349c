"""The pre-training stream: documents of a mixture, packed into rows without waste.

Rows are a pure function of the shards, the seed and the integers of `state()`; neither the batch
nor the number of ranks changes their order. A document that does not fit is continued at the
beginning of the next row, with positions that restart.

A row is planned first, from the documents' lengths alone, and read later or not at all: every rank
plans all rows, which is cheap, and reads its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from openmimo.data.mixture import MixtureOrder
from openmimo.data.shards import Corpus
from openmimo.training.batch import WHOLE, Segment, Share


@dataclass(frozen=True)
class Piece:
    """Tokens start .. end - 1 of a source's document, by the number that it is stored as."""

    source: str
    document: int
    start: int
    end: int


class PackedStream:
    """Endless rows of segments.

    `tokens` counts, by source, what was planned since the current mixture began.
    """

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._positions = dict.fromkeys(corpus.readers, 0)
        self._open: tuple[str, int, int] | None = None  # source, position, tokens already used
        self._mixture: dict[str, float] = {}
        self._order: MixtureOrder | None = None
        self.tokens: dict[str, int] = {}

    def use(self, mixture: Mapping[Any, float]) -> None:
        """Read by these shares from now on; nothing happens if they are in use."""
        if dict(mixture) != self._mixture:
            self._mixture, self._order = dict(mixture), None
            self.tokens = dict.fromkeys(mixture, 0)

    def rows(self, count: int, length: int, share: Share = WHOLE) -> list[list[Segment]]:
        """The next `count` rows of `length` tokens; those of one rank are read and returned."""
        planned = [self.plan(length) for _ in range(count)]
        return [[self._read(piece) for piece in planned[row]] for row in share.of(count)]

    def plan(self, length: int) -> list[Piece]:
        """What the next row holds: pieces that fill exactly `length` tokens."""
        pieces, free = [], length
        while free:
            source, position, start = self._open or self._next_document()
            reader = self._corpus.readers[source]
            number = reader.number(position)
            whole = reader.length(number)
            end = min(start + free, whole)
            pieces.append(Piece(source, number, start, end))
            free -= end - start
            if source in self.tokens:  # else: the rest of a document of the mixture before
                self.tokens[source] += end - start
            self._open = (source, position, end) if end < whole else None
        return pieces

    def _next_document(self) -> tuple[str, int, int]:
        if self._order is None:
            self._order = MixtureOrder(self._mixture)
        source = self._order.next_source(self.tokens)
        position = self._positions[source]
        self._positions[source] += 1
        return source, position, 0

    def _read(self, piece: Piece) -> Segment:
        document = self._corpus.readers[piece.source].stored(piece.document)
        return Segment(np.asarray(document[piece.start : piece.end], dtype=np.int64))

    @property
    def never_read(self) -> list[str]:
        """Sources of the current mixture that have a share and of which nothing was planned."""
        return [name for name, share in self._mixture.items() if share and not self.tokens[name]]

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
        self._mixture, self._order = dict(state["mixture"]), None
        self.tokens = dict(state["tokens"])
