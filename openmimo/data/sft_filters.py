"""What supervised fine-tuning leaves out (report, section 3.1).

Records are mappings with "prompt" and "response" (strings) and "complete" (bool: the response
ended by itself rather than at a length limit). Removing queries that overlap with evaluation items
is `decontaminate`'s work.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from openmimo.errors import UserError

SampleRecord = Mapping[str, Any]

LATIN_WORDS_TOLERATED = 0.3
"""Share of Latin words that a text in another script may hold: names, units and terms are usual."""

_BOXED = re.compile(r"\\boxed\s*\{")
_FENCE = re.compile(r"^[ \t]*```", re.MULTILINE)
_NOT_PROSE = re.compile(
    r"^[ \t]*```.*?(?:^[ \t]*```|\Z)"  # fenced code
    r"|`[^`\n]*`"  # code in a line
    r"|\$\$.*?\$\$|\$[^$\n]*\$|\\\(.*?\\\)|\\\[.*?\\\]"  # mathematics
    r"|\\[A-Za-z]+",  # a LaTeX command outside of delimiters
    re.MULTILINE | re.DOTALL,
)
_LATIN_WORD = re.compile(r"[A-Za-z\u00c0-\u024f]{2,}")
_SCRIPTS = {
    "CJK": "han",
    "HIRAGANA": "han",
    "KATAKANA": "han",
    "HANGUL": "hangul",
    "CYRILLIC": "cyrillic",
    "ARABIC": "arabic",
    "HEBREW": "hebrew",
    "DEVANAGARI": "devanagari",
    "THAI": "thai",
}  # no Greek: its letters are mathematics in any language


@dataclass(frozen=True)
class FilterCounts:
    """How many records a filter kept, and for each reason how many it dropped."""

    kept: int
    dropped: dict[str, int] = field(default_factory=dict)


def drop_incomplete(
    records: Iterable[SampleRecord],
) -> tuple[list[SampleRecord], FilterCounts]:
    r"""Keep responses that ended by themselves and hold a final answer.

    A final answer is a \boxed{...} whose braces close or a fenced block that closes. Reasons:
    "cut off" and "no final answer". Raises UserError for a record without the needed fields.
    """

    def reason(record: SampleRecord) -> str | None:
        if not _field(record, "complete", bool):
            return "cut off"
        return None if has_final_answer(_field(record, "response", str)) else "no final answer"

    return _split(records, reason)


def drop_mixed_language(
    records: Iterable[SampleRecord],
) -> tuple[list[SampleRecord], FilterCounts]:
    """Drop responses that wander into another script than they and their prompt are written in.

    The reason counted is "mixed scripts", as `is_mixed` decides. Raises UserError for a record
    without the needed fields.
    """

    def reason(record: SampleRecord) -> str | None:
        response, prompt = (_field(record, name, str) for name in ("response", "prompt"))
        return "mixed scripts" if is_mixed(response, prompt) else None

    return _split(records, reason)


def cap_responses(
    records: Iterable[SampleRecord], per_query: int = 8
) -> tuple[list[SampleRecord], FilterCounts]:
    """Keep the first `per_query` responses of each query, in input order.

    Queries are compared without regard to white space. The reason counted is "over the cap".
    Equal responses stay: a careful answer to a simple query is the same each time, so dropping
    repeats would leave mostly the careless ones. Raises UserError for a cap below 1 or a record
    without the needed fields.
    """
    if per_query < 1:
        raise UserError(f"at least one response a query must stay, got per_query = {per_query}")
    taken: Counter[str] = Counter()

    def reason(record: SampleRecord) -> str | None:
        query = " ".join(_field(record, "prompt", str).split())
        _field(record, "response", str)
        taken[query] += 1
        return "over the cap" if taken[query] > per_query else None

    return _split(records, reason)


def has_final_answer(response: str) -> bool:
    r"""Whether a response holds a closed \boxed{...} or ends its last fenced block."""
    if any(_closes(response, match.end()) for match in _BOXED.finditer(response)):
        return True
    fences = len(_FENCE.findall(response))
    return fences >= 2 and fences % 2 == 0


def _closes(text: str, start: int) -> bool:
    """Whether the brace opened just before `start` closes, escaped braces aside."""
    depth = 1
    for brace in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return True
    return False


def is_mixed(response: str, prompt: str = "") -> bool:
    """Whether a response's prose mixes scripts that its prompt does not.

    Code, LaTeX and Greek letters do not count. A script of the prompt may appear in the response
    (translation). Latin words may make up LATIN_WORDS_TOLERATED of a text in another script; a
    single letter of another script inside Latin text, the usual sign of a model that drifts, is
    a mixture.
    """
    letters = _script_counts(response)
    if len(letters) < 2:
        return False
    main = max(sorted(letters), key=letters.__getitem__)
    asked = set(_script_counts(prompt))
    total = letters.total()
    for script, count in letters.items():
        tolerated = LATIN_WORDS_TOLERATED if script == "latin" else 0.0
        if script != main and script not in asked and count > tolerated * total:
            return True
    return False


def _script_counts(text: str) -> Counter[str]:
    """Letters of each script, and words for Latin, in prose."""
    prose = _NOT_PROSE.sub(" ", text)
    counts = Counter({"latin": len(_LATIN_WORD.findall(prose))})
    if not prose.isascii():
        for letter, times in Counter(prose).items():
            if letter.isalpha() and not letter.isascii():
                script = _SCRIPTS.get(unicodedata.name(letter, "").split(" ")[0])
                if script:
                    counts[script] += times
    return +counts


def _split(
    records: Iterable[SampleRecord], reason: Callable[[SampleRecord], str | None]
) -> tuple[list[SampleRecord], FilterCounts]:
    kept: list[SampleRecord] = []
    dropped: Counter[str] = Counter()
    for record in records:
        why = reason(record)
        if why is None:
            kept.append(record)
        else:
            dropped[why] += 1
    return kept, FilterCounts(len(kept), dict(sorted(dropped.items())))


def _field(record: SampleRecord, name: str, kind: type) -> Any:
    value = record.get(name)
    if not isinstance(value, kind):
        raise UserError(
            f"an SFT record needs {name!r} ({kind.__name__}), got {value!r}; "
            f"its fields are {', '.join(sorted(record))}"
        )
    return value
