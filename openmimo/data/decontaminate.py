"""Find training text that holds evaluation items (report, section 3.1: 16-gram overlap).

A text is split at white space into lower-case words. It holds an evaluation item when the two share
an n-gram of words, 16 by default. Three rules go beyond the report, each measured to matter:

- An item shorter than n words, which has no n-gram, is held by a text in which its whole sequence
  of words occurs. About a fifth of public benchmark items are that short.
- An n-gram that stands in many items is boilerplate ("relatively prime positive integers. Find
  m+n") and says nothing about any one of them, so it does not count.
- An item with nothing but boilerplate is held by a text that has every one of its n-grams.

Only 64-bit hashes of the items are kept.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from openmimo.data.ngrams import Hashes, WordHasher, growing_ngrams
from openmimo.data.rows import batches
from openmimo.errors import UserError

Record = TypeVar("Record")

_EDGES = ".,;:!?\"'`()[]"
_BATCH = 2048  # texts hashed together: large enough to amortise numpy's overhead


def normalised_words(text: str) -> list[str]:
    """Lower-case, NFKC-normalised words split at white space, without punctuation at their edges.

    The edges go so that "Compute 3*4." is found in "Compute 3*4 and explain".
    """
    words = (word.strip(_EDGES) for word in unicodedata.normalize("NFKC", text).lower().split())
    return [word for word in words if word]


@dataclass(frozen=True)
class Contamination:
    """One dropped record: its position among the input, and the shared n-grams of each item."""

    record: int
    items: dict[str, int]


@dataclass(frozen=True)
class DecontaminationReport:
    """What a filter saw and dropped, record by record.

    boilerplate_ngrams: n-grams that were not counted because too many items have them.
    """

    n: int
    items: int
    short_items: int
    boilerplate_ngrams: int
    records: int
    dropped: tuple[Contamination, ...]

    @property
    def hits_per_item(self) -> dict[str, int]:
        """For each item found at all, the number of records that hold it."""
        counts: dict[str, int] = defaultdict(int)
        for contamination in self.dropped:
            for item in contamination.items:
                counts[item] += 1
        return dict(sorted(counts.items()))


class DecontaminationIndex:
    """An index over evaluation items that finds them inside other texts.

    items: the text of each item by its id.
    n: words in an n-gram.
    boilerplate: an n-gram in at least this many items does not count; 0 counts every n-gram.

    Raises UserError for n below 1, a boilerplate of 1 (nothing could match) or a negative one, and
    an item without words.
    """

    def __init__(self, items: Mapping[str, str], n: int = 16, boilerplate: int = 3) -> None:
        if n < 1:
            raise UserError(f"decontamination needs n-grams of at least one word, got n = {n}")
        if boilerplate < 0 or boilerplate == 1:
            raise UserError(f"boilerplate must be 0 or at least 2 items, got {boilerplate}")
        self.n = n
        self._hash = WordHasher()
        self._ids = list(items)
        # For each length up to n: hash of an n-gram -> the items (by position) that have it.
        self._owners: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        ngrams_of = [self._index(position, items[name]) for position, name in enumerate(items)]
        self._common = {
            ngram: owners
            for ngram, owners in self._owners[n].items()
            if boilerplate and len(owners) >= boilerplate
        }
        # Items that are boilerplate throughout: position -> all of their n-grams.
        self._whole = {
            position: ngrams
            for position, ngrams in enumerate(ngrams_of)
            if ngrams and ngrams <= self._common.keys()
        }
        self._sorted = {
            length: np.sort(np.fromiter(owners, dtype=np.uint64, count=len(owners)))
            for length, owners in self._owners.items()
            if owners
        }
        self._short_items = sum(not ngrams for ngrams in ngrams_of)

    def _index(self, position: int, text: str) -> set[int]:
        """Enter one item; return its n-grams of full length, none for a short item."""
        words = self._hash(normalised_words(text))
        if not len(words):
            raise UserError(f"evaluation item {self._ids[position]!r} has no words")
        length = min(self.n, len(words))
        ngrams: set[int] = set()
        for size, hashes in growing_ngrams(words, length):
            if size == length:
                ngrams.update(hashes.tolist())
        for ngram in ngrams:
            self._owners[length][ngram].append(position)
        return ngrams if length == self.n else set()

    def hits(self, text: str) -> list[str]:
        """Return the ids of the items that the text holds, sorted."""
        return sorted(self._matches([text])[0])

    def filter(
        self, records: Iterable[Record], text_of: Callable[[Record], str]
    ) -> tuple[list[Record], DecontaminationReport]:
        """Return the records that hold no item, in order, and a report of those that do."""
        kept: list[Record] = []
        dropped: list[Contamination] = []
        seen = 0
        for record, found in self.sift(records, text_of):
            if found:
                dropped.append(Contamination(seen, found))
            else:
                kept.append(record)
            seen += 1
        report = DecontaminationReport(
            n=self.n,
            items=len(self._ids),
            short_items=self._short_items,
            boilerplate_ngrams=len(self._common),
            records=seen,
            dropped=tuple(dropped),
        )
        return kept, report

    def sift(
        self, records: Iterable[Record], text_of: Callable[[Record], str]
    ) -> Iterator[tuple[Record, dict[str, int]]]:
        """Yield each record with the items that it holds, sorted, and the n-grams shared with each;
        a batch of them is in memory at a time."""
        for batch in batches(records, _BATCH):
            found = self._matches([text_of(record) for record in batch])
            for record, items in zip(batch, found, strict=True):
                yield record, dict(sorted(items.items()))

    def _matches(self, texts: Sequence[str]) -> list[dict[str, int]]:
        """For each text, the items it holds and the number of shared n-grams (1 if short)."""
        words = [self._hash(normalised_words(text)) for text in texts]
        joined = np.concatenate(words) if words else np.empty(0, dtype=np.uint64)
        owner = np.repeat(np.arange(len(texts)), [len(w) for w in words])
        found: list[dict[str, int]] = [{} for _ in texts]
        for length, hashes in growing_ngrams(joined, self.n):
            if length not in self._sorted:
                continue
            inside = owner[: len(hashes)] == owner[length - 1 :]  # not across two texts
            positions = np.flatnonzero(inside & _is_in(hashes, self._sorted[length]))
            shared: dict[int, set[int]] = defaultdict(set)
            for position in positions.tolist():
                shared[int(owner[position])].add(int(hashes[position]))
            for text, ngrams in shared.items():
                self._count(length, ngrams, found[text])
        return found

    def _count(self, length: int, shared: set[int], found: dict[str, int]) -> None:
        """Add to `found` the items that own the shared n-grams of one length."""
        for ngram in shared:
            owners = self._owners[length][ngram]
            common = length == self.n and ngram in self._common
            for position in owners:
                name = self._ids[position]
                if not common:
                    found[name] = found.get(name, 0) + 1
                elif position in self._whole and self._whole[position] <= shared:
                    found[name] = len(self._whole[position])


def _is_in(values: Hashes, ordered: Hashes) -> np.ndarray:
    """Which values occur in a sorted array, bool[len(values)]."""
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return ordered[places] == values
