"""The tagger names clear cases, and its summary adds up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.data.documents import SOURCES, Document
from openmimo.data.tagging import DOMAINS, Signals, domain, signals, tag

CASES = {
    "mathematics": r"""The quadratic equation a x^2 + b x + c = 0 has two real roots when its
discriminant is positive. Every polynomial of degree n over the complex field has n roots, and the
sum of the roots equals -b/a. We prove the theorem by factoring: $x^2 - 5x + 6 = (x-2)(x-3)$.""",
    "code": """import os


def read(path):
    with open(path) as file:
        data = file.read()
    if not data:
        raise ValueError(path)
    return data.strip()
""",
    "reference": """numpy.block

Assemble an array from nested lists of blocks.

Parameters
----------
arrays : nested list of array_like
    If passed a single array it is returned unmodified.

Returns
-------
block_array : ndarray
    The array assembled from the given blocks.

See Also
--------
concatenate : Join a sequence of arrays along an existing axis.
""",
    "science": """A photon carries energy and momentum. The wavelength of the radiation and its
frequency fix the energy of each particle, while the spin of the electron in the magnetic field
settles how the atom absorbs it. The velocity of the wave is that of light.""",
    "prose": """The Zen of this language is a short list of principles that its author wrote down.
It says that readability counts, that there should be one obvious way to do things, and that errors
should never pass silently unless they were silenced on purpose by the person who wrote it.""",
}


@pytest.mark.parametrize("name", DOMAINS)
def test_clear_cases(name: str) -> None:
    assert domain(signals(CASES[name])) == name


def test_signals_order_texts_as_a_reader_would() -> None:
    measured = {name: signals(text) for name, text in CASES.items()}
    assert max(measured, key=lambda name: measured[name].math_density) == "mathematics"
    assert max(measured, key=lambda name: measured[name].code_density) == "code"
    assert max(measured, key=lambda name: measured[name].reference_density) == "reference"
    assert measured["prose"].prose_ratio == 1.0
    assert measured["code"].prose_ratio < 0.2


@given(st.text())
def test_any_text_has_signals_in_range_and_a_domain(text: str) -> None:
    measured = signals(text)
    assert domain(measured) in DOMAINS
    for name in Signals.__dataclass_fields__:
        value = getattr(measured, name)
        assert value >= 0
        assert value <= 1 or name == "reference_density"


@given(st.lists(st.tuples(st.sampled_from(SOURCES), st.sampled_from(sorted(CASES)))))
def test_the_summary_adds_up(chosen: list) -> None:
    documents = [Document(CASES[name], source, "", "o") for source, name in chosen]
    tagged, summary = tag(documents)
    assert [(d.source, d.domain) for d in tagged] == chosen
    assert [d.text for d in tagged] == [d.text for d in documents]
    assert set(summary) == {source for source, _ in chosen}
    for source, tags in summary.items():
        mine = [d for d in tagged if d.source == source]
        assert tags.documents == len(mine) == sum(tags.domains.values())
        assert tags.characters == sum(len(d.text) for d in mine)
        assert all(value >= 0 for value in tags.signals.values())
