"""Domain and quality tags from transparent features.

The report tags documents with small fine-tuned language models. At nano scale, where the corpus
is documentation and source code, countable features tell the domains apart well enough, and a
reader can check each decision; this is the whole tagger of the nano run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from openmimo.data.documents import Document

DOMAINS = ("mathematics", "code", "reference", "science", "prose")

_WORD = re.compile(r"[A-Za-z]{2,}")
_MATH_SYMBOLS = re.compile(r"[+*/^=<>|\u2200-\u22ff±×÷π]|\\[a-zA-Z]+|\b\d+(?:\.\d+)?\b")
_MATH_WORDS = frozenset(
    _WORD.findall(
        """algebra algebraic arithmetic bound calculus coefficient coefficients complex cubic degree
    denominator derivative determinant differential digits divides divisor eigenvalue eigenvalues
    equation equations euler exponent factor factorial factorization finite fraction gamma geometry
    group ideal inequality infinity integer integers integral integrals integrate irreducible
    limit linear logarithm mathematical mathematics matrices matrix modulo monomial numerator
    permutation polynomial polynomials prime primes probability product proof quadratic quotient
    rational real roots series sine solve square sum symbolic theorem triangle variance vector
    zeta"""
    )
)
_SCIENCE_WORDS = frozenset(
    _WORD.findall(
        """acceleration angular atom atomic biology charge chemistry electric electron energy
    entropy force frequency gravity hamiltonian kinetic lens magnetic mass mechanics molecule
    momentum optics orbital particle particles photon physical physics planet quantum radiation spin
    temperature thermal velocity voltage wave wavelength"""
    )
)
_CODE_LINE = re.compile(
    r"^\s*(?:(?:def|class|if|elif|for|while|with|try|except|return|import|from|raise|else|assert"
    r"|yield|@\w+)\b.*|[\w.\[\]'\"]+(?:, [\w.]+)* [-+*/|&]?= .+|[\w.]+\(.*\)|[)\]}]+,?|#.*"
    r"|>>> .*|\.\.\. .*)$"
)
_REFERENCE_MARKS = re.compile(
    r"^\s*(?:Parameters|Returns|Raises|Yields|Arguments|Args|See Also|Examples?|Notes|Attributes"
    r"|References|Methods)\s*:?$|^\s*[-=~*]{4,}$|:(?:param|type|return|rtype|func|meth|class)\b"
    r"|^ *\|  |\*\*\w+\*\*|^\s*\w+ : \w|\.\. \w+::|``",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Signals:
    """Cheap properties of a text, each in [0, 1] unless said otherwise.

    math_density: mathematical symbols and numbers for each word.
    math_words, science_words: share of words from the field's vocabulary.
    code_density: share of lines that look like code.
    reference_density: marks of reference documentation for each line; may exceed 1.
    prose_ratio: share of lines with six or more words and no look of code.
    """

    math_density: float
    math_words: float
    science_words: float
    code_density: float
    reference_density: float
    prose_ratio: float


def signals(text: str) -> Signals:
    """Measure a text; an empty one measures 0 throughout."""
    lines = [line for line in text.splitlines() if line.strip()]
    words = _WORD.findall(text.lower())
    code = [bool(_CODE_LINE.match(line)) for line in lines]
    prose = sum(
        not is_code and len(line.split()) >= 6 for line, is_code in zip(lines, code, strict=True)
    )
    symbols = len(_MATH_SYMBOLS.findall(text))
    per_word, per_line = 1 / max(1, len(words)), 1 / max(1, len(lines))
    return Signals(
        math_density=symbols / max(1, symbols + len(words)),
        math_words=sum(word in _MATH_WORDS for word in words) * per_word,
        science_words=sum(word in _SCIENCE_WORDS for word in words) * per_word,
        code_density=sum(code) * per_line,
        reference_density=len(_REFERENCE_MARKS.findall(text)) * per_line,
        prose_ratio=prose * per_line,
    )


def domain(measured: Signals) -> str:
    """Name the domain of a text from its signals: the first rule that holds."""
    if measured.code_density > 0.5 and measured.math_words < 0.06:
        return "code"
    if measured.science_words > 0.025 and measured.science_words > measured.math_words:
        return "science"
    if measured.math_words > 0.03 or (measured.math_density > 0.4 and measured.math_words > 0.01):
        return "mathematics"
    if measured.reference_density > 0.08:
        return "reference"
    return "prose" if measured.code_density < 0.4 else "code"


@dataclass(frozen=True)
class SourceTags:
    """One source's tags: documents and characters, documents of each domain, mean signals."""

    documents: int
    characters: int
    domains: dict[str, int]
    signals: dict[str, float]


def tag(documents: Iterable[Document]) -> tuple[list[Document], dict[str, SourceTags]]:
    """Set the domain of every document, and summarise the tags of each source.

    Means weigh each document by its characters, as training will.
    """
    tagged: list[Document] = []
    counts: dict[str, int] = Counter()
    characters: dict[str, int] = Counter()
    domains: dict[str, Counter[str]] = {}
    sums: dict[str, Counter[str]] = {}
    for document in documents:
        measured = signals(document.text)
        tagged.append(replace(document, domain=domain(measured)))
        source, size = document.source, len(document.text)
        counts[source] += 1
        characters[source] += size
        domains.setdefault(source, Counter())[tagged[-1].domain] += 1
        total = sums.setdefault(source, Counter())
        for name in Signals.__dataclass_fields__:
            total[name] += getattr(measured, name) * size
    summary = {
        source: SourceTags(
            documents=counts[source],
            characters=characters[source],
            domains={name: domains[source][name] for name in DOMAINS if domains[source][name]},
            signals={
                name: round(value / max(1, characters[source]), 4)
                for name, value in sums[source].items()
            },
        )
        for source in sorted(counts)
    }
    return tagged, summary
