"""Deduplication against brute force, and properties any deduplication must have."""

import random
import re
from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.data.dedup import (
    deduplicate,
    document_shingles,
    drop_exact,
    drop_near,
    minhash,
    near_clusters,
)
from openmimo.data.documents import Document
from openmimo.errors import UserError


def documents_of(texts: list[str]) -> list[Document]:
    return [Document(text, "general", "", f"o{i:04d}") for i, text in enumerate(texts)]


def edited_texts(seed: int, originals: int = 10, copies: int = 5) -> list[str]:
    """Random texts, each with copies in which more and more words were replaced."""
    rng = random.Random(seed)
    texts = []
    for _ in range(originals):
        words = [rng.choice("abcdefghij") * rng.randint(1, 9) for _ in range(rng.randint(3, 120))]
        for edits in range(copies):
            changed = list(words)
            for _ in range(edits):
                changed[rng.randrange(len(words))] = f"w{rng.randrange(1000)}"
            texts.append(" ".join(changed))
        texts.append(texts[-1].upper())
    rng.shuffle(texts)
    return texts


def plain_shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    size = min(5, len(words))
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)} if words else set()


def plain_kept(documents: list[Document], threshold: float) -> set[str]:
    """Origins that all-pairs Jaccard and a plain graph search keep."""
    shingles = [plain_shingles(document.text) for document in documents]
    neighbours: dict[int, set[int]] = {i: {i} for i in range(len(documents))}
    for a, b in combinations(range(len(documents)), 2):
        union = shingles[a] | shingles[b]
        if union and len(shingles[a] & shingles[b]) / len(union) >= threshold:
            neighbours[a].add(b)
            neighbours[b].add(a)
    kept, seen = set(), set()
    for start in neighbours:
        if start in seen:
            continue
        component, todo = set(), [start]
        while todo:
            node = todo.pop()
            if node not in component:
                component.add(node)
                todo += neighbours[node]
        seen |= component
        best = min(component, key=lambda i: (-len(documents[i].text), documents[i].origin))
        kept.add(documents[best].origin)
    return kept


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.7, 0.8, 1.0])
def test_near_duplicates_are_those_of_brute_force(seed: int, threshold: float) -> None:
    documents = documents_of(edited_texts(seed))
    # 40 x 3: a pair of similarity 0.7 is missed once in ten million.
    kept, sizes = drop_near(documents, threshold, bands=40, rows=3)
    assert {document.origin for document in kept} == plain_kept(documents, threshold)
    assert sum(sizes) - len(sizes) == len(documents) - len(kept)
    assert len(kept) < len(documents)


def test_signatures_agree_as_often_as_the_sets_do() -> None:
    rng = np.random.default_rng(0)
    for overlap in (0, 100, 300, 500):
        values = rng.integers(0, 2**64, 1000, dtype=np.uint64)
        left, right = values[:500], values[500 - overlap : 1000 - overlap]
        one, two = minhash([left, right], 2000)
        assert np.mean(one == two) == pytest.approx(overlap / (1000 - overlap), abs=0.04)


WORDS = st.lists(st.sampled_from(["a", "b", "c", "+", "-", " ", "  ", "\n", "B"]), max_size=14)
CORPORA = st.lists(st.builds("".join, WORDS), max_size=12).map(documents_of)


@given(CORPORA, st.randoms(use_true_random=False))
def test_what_is_kept_does_not_depend_on_order(
    documents: list[Document], rng: random.Random
) -> None:
    shuffled = rng.sample(documents, len(documents))
    kept, report = deduplicate(documents)
    other, other_report = deduplicate(shuffled)
    assert set(kept) == set(other)
    assert report == other_report


@given(CORPORA)
def test_deduplication_is_idempotent_and_keeps_input_order(documents: list[Document]) -> None:
    kept, report = deduplicate(documents)
    again, second = deduplicate(kept)
    assert again == kept
    assert second.exact_removed == second.near_removed == second.clusters == 0
    origins = [document.origin for document in kept]
    assert origins == sorted(origins)
    assert report.documents - report.exact_removed - report.near_removed == len(kept)
    assert sum(report.removed_per_source.values()) == len(documents) - len(kept)


@given(CORPORA, st.data())
def test_copies_never_stay(documents: list[Document], data: st.DataObject) -> None:
    if not documents:
        return
    original = data.draw(st.sampled_from(documents))
    copy = Document(f"  {original.text.upper()}\n", "code", "", "z")
    kept = drop_exact([*documents, copy])
    forms = [" ".join(document.text.lower().split()) for document in kept]
    assert len(forms) == len(set(forms))
    assert set(forms) == {" ".join(document.text.lower().split()) for document in documents}


def test_the_longest_stays_and_each_source_is_counted() -> None:
    text = " ".join(f"w{i}" for i in range(200))
    documents = [
        Document(text, "math", "", "b"),
        Document(text + " and more", "code", "", "c"),
        Document(text.upper(), "math", "", "a"),
        Document("another", "general", "", "d"),
    ]
    kept, report = deduplicate(documents)
    assert [document.origin for document in kept] == ["c", "d"]
    assert report.removed_per_source == {"math": 2}
    assert (report.exact_removed, report.near_removed) == (1, 1)
    assert (report.clusters, report.largest_cluster) == (1, 2)


def test_texts_without_words_and_operators_are_told_apart() -> None:
    texts = ["", "3 + 4 =", "3 * 4 =", "+", "-", "四 五", "四 六"]
    assert len(deduplicate(documents_of(texts))[0]) == len(texts)


def test_a_large_cluster_is_cheap() -> None:
    base = [f"w{i}" for i in range(400)]
    texts = [" ".join([*base, f"end{i}"]) for i in range(1500)]
    kept, sizes = drop_near(documents_of(texts))
    assert (len(kept), sizes) == (1, [1500])


def test_shingles_are_sorted_sets() -> None:
    for values, text in zip(document_shingles(edited_texts(0)), edited_texts(0), strict=True):
        assert len(values) == len(plain_shingles(text))
        assert np.all(values[1:] > values[:-1])


@pytest.mark.parametrize("bad", [{"threshold": 0.0}, {"threshold": 1.1}, {"bands": 0}, {"rows": 0}])
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(UserError):
        deduplicate([], **bad)


def test_more_texts_than_are_hashed_together() -> None:
    texts = ["", *(f"number {n} is not {n * n}" for n in range(2100)), "", "number 0 is not 0"]
    clusters = near_clusters(Again(texts), 1.0)
    assert sorted(index for cluster in clusters for index in cluster) == list(range(len(texts)))
    assert [cluster for cluster in clusters if len(cluster) > 1] == [[1, len(texts) - 1]]


class Again:
    """Texts that can be iterated over twice, and nothing else, as a file's."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)
