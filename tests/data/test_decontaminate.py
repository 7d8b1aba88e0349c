"""The index finds what a plain search finds, and says what it dropped."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.data.decontaminate import DecontaminationIndex, normalised_words
from openmimo.errors import UserError

WORDS = st.lists(st.sampled_from("abcd"), min_size=1, max_size=12)
TEXTS = st.builds(" ".join, WORDS)


def numbered(start: int, count: int) -> str:
    return " ".join(f"w{i}" for i in range(start, start + count))


def plain_hits(items: dict[str, str], text: str, n: int) -> list[str]:
    """Substring search over words, a short item as a whole."""
    padded = f" {text} "
    hits = []
    for name, item in items.items():
        words = item.split()
        size = min(n, len(words))
        ngrams = [" ".join(words[i : i + size]) for i in range(len(words) - size + 1)]
        if any(f" {ngram} " in padded for ngram in ngrams):
            hits.append(name)
    return sorted(hits)


@given(st.lists(TEXTS, max_size=6), st.lists(TEXTS, max_size=6), st.integers(1, 5))
def test_hits_are_those_of_a_plain_search(items: list, texts: list, n: int) -> None:
    named = {f"item{i}": item for i, item in enumerate(items)}
    index = DecontaminationIndex(named, n, boilerplate=0)
    expected = [plain_hits(named, text, n) for text in texts]
    assert [index.hits(text) for text in texts] == expected
    # Records are hashed together; none may match across its border with the next.
    kept, report = index.filter(texts, str)
    assert kept == [text for text, hits in zip(texts, expected, strict=True) if not hits]
    assert {c.record: sorted(c.items) for c in report.dropped} == {
        i: hits for i, hits in enumerate(expected) if hits
    }
    assert report.records == len(texts) == len(kept) + len(report.dropped)


@given(st.lists(TEXTS, min_size=1, max_size=8), st.integers(1, 4), st.integers(2, 4))
def test_an_item_always_finds_itself(items: list, n: int, boilerplate: int) -> None:
    index = DecontaminationIndex({str(i): t for i, t in enumerate(items)}, n, boilerplate)
    for position, item in enumerate(items):
        assert str(position) in index.hits(item)


def test_sixteen_words_are_the_border() -> None:
    index = DecontaminationIndex({"long": numbered(0, 40)})
    assert index.hits(f"x {numbered(5, 15)} y") == []
    assert index.hits(f"x {numbered(5, 16)} y") == ["long"]
    _, report = index.filter([f"{numbered(5, 18)} y {numbered(5, 18)}"], str)
    assert report.dropped[0].items == {"long": 3}  # distinct n-grams


def test_a_short_item_is_found_whole_and_despite_punctuation() -> None:
    index = DecontaminationIndex({"short": "What is 3*4 - 2?"})
    assert index.hits("Q: what is 3*4 - 2.\nA: 10") == ["short"]
    assert index.hits("What is 3*4 + 2?") == []
    assert index.hits("What is 3*4 - 25?") == []


def test_boilerplate_does_not_count_but_whole_items_do() -> None:
    template = numbered(100, 20)
    items = {f"i{k}": f"{template} value{k} {numbered(200, 3)}" for k in range(5)}
    items |= {f"twin{k}": numbered(300, 20) for k in range(3)}
    index = DecontaminationIndex(items)
    assert index.hits(f"{template} value9 {numbered(200, 3)}") == []
    assert index.hits(items["i2"]) == ["i2"]
    assert index.hits(f"x {numbered(300, 20)}") == ["twin0", "twin1", "twin2"]
    assert index.hits(numbered(300, 19)) == []
    _, report = index.filter([], str)
    assert report.boilerplate_ngrams == 5 + 5
    assert DecontaminationIndex(items, boilerplate=0).hits(template) == [f"i{k}" for k in range(5)]


def test_the_report_counts_items_over_many_batches() -> None:
    rng = random.Random(0)
    clean = [" ".join(f"r{rng.randrange(10**6)}" for _ in range(20)) for _ in range(5000)]
    records = list(clean)
    for place in (0, 2047, 2048, 4999):
        records[place] += " " + numbered(0, 16)
    kept, report = DecontaminationIndex({"a": numbered(0, 16), "b": "never"}).filter(records, str)
    assert len(kept) == 4996
    assert [c.record for c in report.dropped] == [0, 2047, 2048, 4999]
    assert report.hits_per_item == {"a": 4}
    assert (report.items, report.short_items) == (2, 1)


def test_normalisation() -> None:
    assert normalised_words("“\uff21” (B),\u00a0 - c. ...") == ["“a”", "b", "-", "c"]


@pytest.mark.parametrize(
    ("items", "settings"),
    [({}, {"n": 0}), ({}, {"boilerplate": 1}), ({}, {"boilerplate": -1}), ({"e": " ."}, {})],
)
def test_bad_settings_and_empty_items_are_refused(items: dict, settings: dict) -> None:
    with pytest.raises(UserError):
        DecontaminationIndex(items, **settings)
