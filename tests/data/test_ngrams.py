"""n-gram hashes: equal for equal words, different for others, the same everywhere."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from openmimo.data.ngrams import WordHasher, growing_ngrams

WORDS = st.lists(st.sampled_from("abc"), max_size=30)


@given(WORDS, st.integers(1, 6))
def test_hashes_are_equal_exactly_where_the_words_are(words: list[str], longest: int) -> None:
    lengths = []
    for n, hashes in growing_ngrams(WordHasher()(words), longest):
        lengths.append(n)
        ngrams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        assert len(hashes) == len(ngrams)
        assert len(set(hashes.tolist())) == len(set(ngrams))
        assert len(set(zip(ngrams, hashes.tolist(), strict=True))) == len(set(ngrams))
    assert lengths == list(range(1, min(longest, len(words)) + 1))


@given(WORDS, WORDS)
def test_hashes_do_not_depend_on_what_came_before(before: list[str], words: list[str]) -> None:
    used = WordHasher()
    used(before)
    assert np.array_equal(used(words), WordHasher()(words))


def test_hashes_are_fixed() -> None:
    (_, one), (_, two) = growing_ngrams(WordHasher()(["open", "mimo"]), 2)
    assert [hex(value) for value in (*one.tolist(), *two.tolist())] == [
        "0x3e95feccebdfbf4b",
        "0x4ff93cd1baece9f8",
        "0xc35eb79865ea0eed",
    ]
