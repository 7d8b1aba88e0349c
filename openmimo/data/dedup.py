"""Exact and near deduplication (report, section 2.1: MinHash over all of the corpus).

Near duplicates are found by MinHash with locality-sensitive hashing (Broder 1997) over word
5-grams: documents that agree on all rows of any band become a candidate pair, and a candidate
counts only when its true Jaccard similarity reaches the threshold. Clusters are the connected
components of such pairs. What is kept does not depend on the order of the input.

Use near deduplication on gathered text. Generated problems differ in a few numbers by design;
for them `drop_exact` is the right tool.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from openmimo.data.documents import Document
from openmimo.data.ngrams import Hashes, WordHasher, growing_ngrams
from openmimo.data.rows import batches
from openmimo.errors import UserError

SHINGLE_WORDS = 5
_BATCH = 2048  # texts hashed together

# Punctuation counts as words: "3 + 4" and "3 * 4" are different texts.
_WORDS = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class DedupReport:
    """What deduplication removed.

    clusters: groups of two or more near duplicates, each of which left one document.
    removed_per_source: documents removed, exact and near together, by their own source.
    """

    documents: int
    exact_removed: int
    near_removed: int
    clusters: int
    largest_cluster: int
    removed_per_source: dict[str, int]


def deduplicate(
    documents: Sequence[Document], threshold: float = 0.8, bands: int = 20, rows: int = 5
) -> tuple[list[Document], DedupReport]:
    """Drop exact, then near duplicates; return the kept documents in input order and a report.

    With the defaults a pair of Jaccard similarity 0.8 becomes a candidate with probability
    1 - (1 - 0.8**rows)**bands = 0.9996, one of 0.7 with 0.975. Raises UserError for a threshold
    outside (0, 1] and for bands or rows below 1.
    """
    distinct = drop_exact(documents)
    kept, sizes = drop_near(distinct, threshold, bands, rows)
    removed = Counter(document.source for document in documents)
    removed.subtract(document.source for document in kept)
    return kept, DedupReport(
        documents=len(documents),
        exact_removed=len(documents) - len(distinct),
        near_removed=len(distinct) - len(kept),
        clusters=len(sizes),
        largest_cluster=max(sizes, default=0),
        removed_per_source={source: n for source, n in sorted(removed.items()) if n},
    )


def drop_exact(documents: Sequence[Document]) -> list[Document]:
    """Keep one document of each set that differs at most in case and white space."""
    groups: dict[bytes, list[int]] = {}
    for index, document in enumerate(documents):
        normalised = " ".join(document.text.lower().split())
        key = blake2b(normalised.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        groups.setdefault(key, []).append(index)
    return _keep_best(documents, groups.values())


def drop_near(
    documents: Sequence[Document], threshold: float = 0.8, bands: int = 20, rows: int = 5
) -> tuple[list[Document], list[int]]:
    """Keep one document of each cluster of near duplicates.

    Returns the kept documents in input order and the sizes of the clusters that had more than one.
    Raises UserError as `deduplicate`.
    """
    clusters = near_clusters([document.text for document in documents], threshold, bands, rows)
    return _keep_best(documents, clusters), [len(c) for c in clusters if len(c) > 1]


def near_clusters(
    texts: Iterable[str], threshold: float = 0.8, bands: int = 20, rows: int = 5
) -> list[list[int]]:
    """Group texts into clusters of near duplicates, most of them of one text; indices, in order.

    Equal texts are in one cluster. `texts` is iterated over twice, and may come from a file: what
    stays in memory is `bands` hashes a text, and the 5-grams of those that share one of them.
    Raises UserError as `deduplicate`.
    """
    if not 0 < threshold <= 1:
        raise UserError(f"the similarity threshold must lie in (0, 1], got {threshold}")
    if bands < 1 or rows < 1:
        raise UserError(f"MinHash needs at least one band and row, got {bands} x {rows}")
    keys: list[Hashes] = []
    count = 0
    for batch in batches(texts, _BATCH):
        signatures = minhash(document_shingles(batch), bands * rows, first=count)
        keys.append(_band_keys(signatures, bands))
        count += len(batch)
    buckets = list(_buckets(np.concatenate(keys))) if keys else []
    candidates = {index for bucket in buckets for index in bucket}
    chosen = ((index, text) for index, text in enumerate(texts) if index in candidates)
    shingles = {
        index: hashes
        for batch in batches(chosen, _BATCH)
        for (index, _), hashes in zip(
            batch, document_shingles(text for _, text in batch), strict=True
        )
    }
    return _clusters(count, shingles, buckets, threshold)


def _keep_best(documents: Sequence[Document], groups: Iterable[list[int]]) -> list[Document]:
    """Keep each group's longest document, the first by origin on a tie; in input order."""

    def rank(index: int) -> tuple[int, str, str, str, str]:
        d = documents[index]
        return -len(d.text), d.origin, d.source, d.domain, d.text

    return [documents[index] for index in sorted(min(group, key=rank) for group in groups)]


def document_shingles(texts: Iterable[str]) -> list[Hashes]:
    """Return for each text the sorted distinct hashes of its word 5-grams, uint64[shingles].

    A text of one to four words is one shingle; a text without words has none.
    """
    hasher = WordHasher()
    return [_shingles(hasher(_WORDS.findall(text.lower()))) for text in texts]


def _shingles(words: Hashes) -> Hashes:
    shingles = words[:0]
    for _, ngrams in growing_ngrams(words, SHINGLE_WORDS):
        shingles = ngrams  # the last are the longest
    return np.unique(shingles)


def minhash(shingles: Sequence[Hashes], functions: int, first: int = 0) -> Hashes:
    """Return signatures, uint64[documents, functions]: the least value of each hash function.

    The functions are x -> a x + b modulo 2**64 with fixed pseudo-random odd a. A document without
    shingles gets values that no other document has, so that it never looks like a duplicate: its
    index, counted from `first`.
    """
    constants = np.random.Philox(key=20250512).random_raw(2 * functions).reshape(2, functions)
    signatures = np.empty((len(shingles), functions), dtype=np.uint64)
    factors, shifts = constants[0] | np.uint64(1), constants[1]
    for index, values in enumerate(shingles):
        if len(values):
            signatures[index] = _least(values, factors, shifts)
        else:
            signatures[index] = np.uint64(first + index)
    return signatures


def _least(values: Hashes, factors: Hashes, shifts: Hashes, block: int = 256) -> Hashes:
    """Minimum over values of factors * value + shifts, in blocks that stay in the cache."""
    parts = [
        (values[start : start + block, None] * factors + shifts).min(axis=0)
        for start in range(0, len(values), block)
    ]
    return np.minimum.reduce(parts)


def _band_keys(signatures: Hashes, bands: int) -> Hashes:
    """Return uint64[documents, bands]: one hash for the rows of each band."""
    count, functions = signatures.shape
    rows = functions // bands
    keys = np.zeros((count, bands), dtype=np.uint64)
    for row in range(rows):
        keys = (keys ^ signatures[:, row::rows]) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys


def _buckets(keys: Hashes) -> Iterable[list[int]]:
    """Yield the documents that share a band's key, for every band and key held by two or more."""
    for band in keys.T:
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.diff(band[order])) + 1
        for bucket in np.split(order, starts):
            if len(bucket) > 1:
                yield bucket.tolist()


def _clusters(
    count: int, shingles: Mapping[int, Hashes], buckets: Iterable[list[int]], threshold: float
) -> list[list[int]]:
    """Connected components of the pairs that share a bucket and are similar enough.

    Documents already in one cluster are not compared, as that could not change the components: a
    bucket of many near-identical documents costs one comparison for each.
    """
    parent = list(range(count))
    different: set[tuple[int, int]] = set()

    def similar(left: int, right: int) -> bool:
        if (left, right) in different:
            return False
        if jaccard(shingles[left], shingles[right]) >= threshold:
            return True
        different.add((left, right))
        return False

    for bucket in buckets:
        members: dict[int, list[int]] = {}  # root of a cluster -> its documents in this bucket
        for right in bucket:
            joined = members.pop(_root(parent, right), [])
            joined.append(right)
            for root, others in list(members.items()):
                if any(similar(left, right) for left in others):
                    parent[_root(parent, right)] = root
                    joined += members.pop(root)
            members[_root(parent, right)] = joined
    groups: dict[int, list[int]] = {}
    for index in range(count):
        groups.setdefault(_root(parent, index), []).append(index)
    return list(groups.values())


def _root(parent: list[int], index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = parent[index]
    return index


def jaccard(left: Hashes, right: Hashes) -> float:
    """Jaccard similarity of two sorted sets of shingles; 0 where either is empty."""
    if not len(left) or not len(right):
        return 0.0
    shared = len(np.intersect1d(left, right, assume_unique=True))
    return shared / (len(left) + len(right) - shared)
