"""Stable 64-bit hashes of words and word n-grams, computed for whole arrays at once.

The hashes depend on nothing but the words: not on the process, the machine or the order in which
texts arrive. Deduplication and decontamination both rest on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]


class WordHasher:
    """Maps words to 64-bit BLAKE2b digests and remembers those it has seen.

    Most words of a corpus repeat, so a dictionary look-up replaces most digests.
    """

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def __call__(self, words: Sequence[str]) -> Hashes:
        """Return uint64[len(words)], the hash of each word."""
        known = self._known
        for word in set(words).difference(known):
            digest = blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            known[word] = int.from_bytes(digest, "little")
        return np.fromiter(map(known.__getitem__, words), dtype=np.uint64, count=len(words))


def mix(values: Hashes) -> Hashes:
    """Scramble 64-bit values one to one (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def growing_ngrams(words: Hashes, longest: int) -> Iterator[tuple[int, Hashes]]:
    """Yield (n, hashes of the n-grams) for n = 1 .. longest, stopping at the text's length.

    `words` is uint64[W]; the hashes for n are uint64[W - n + 1], the one at i covering words
    i .. i + n - 1. Each length extends the one before, so all lengths cost one pass of `longest`.
    """
    current = mix(words + np.uint64(0x9E3779B97F4A7C15))
    for n in range(1, min(longest, len(words)) + 1):
        if n > 1:
            # Multiplying first makes the hash depend on the order of the words.
            current = mix(current[:-1] * np.uint64(0x9E3779B97F4A7C15) + words[n - 1 :])
        yield n, current
