"""The verdict on a mathematics answer, the part that is pure and instant.

A response needs its answer in a final `\\boxed{...}`: the model learns that format from the reward.
`quick_verdict` decides most answers without algebra; what it leaves open goes to Math-Verify, in a
killable process (`math_verifier.py`). docs/rewards.md lists the decisions and their reasons.
"""

import re
from fractions import Fraction

from openmimo.rewards.math_cost import too_costly
from openmimo.rewards.math_spelling import closing_brace, normalise, squeeze, value_of
from openmimo.rewards.math_units import unit
from openmimo.rewards.verdict import Verdict, right, unparseable, wrong

MAX_ANSWER_CHARS = 300

_BOX = re.compile(r"\\boxed\s*\{")
_FRACTION = re.compile(r"([+-]?)(\d*)\\frac(?:\{([+-]?\d+)\}\{(\d+)\}|(\d)(\d))")
_REPEATING = re.compile(r"([+-]?)(\d*)\.(\d*)\\overline\{(\d+)\}")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d+)?|\.\d+)(?:/\d+)?")
# A sum, difference or product that is left to do; not 1.5 \times 10^3, which is a numeral.
_OPERATION = re.compile(
    r"[\d)}\]]\s*(?:[+*-]|\\(?:cdot|times|div)(?![a-zA-Z]|\s*10\s*\^))\s*[\d({\\.]"
    r"|\\(?:int|sum|prod)(?![a-zA-Z])"
)
_EQUALITY = re.compile(r"=(?![^{]*\})")  # not the one of \sum_{i=1}
_BASED = re.compile(r"(\d[\da-fA-F]*)_(?:\{(\d+)\}|(\d+))")
_PERCENT = re.compile(r"\s*\\?%$")
_WORDS = re.compile(r"[a-zA-Z][a-z'-]{3,}(?: [a-zA-Z'-]+)*")
_LAST_TEXT = re.compile(r"\\(?:text|textbf|textrm|mathrm|mbox)\s*\{([^{}]*)\}$")
_HEDGE = re.compile(
    r"\b(?:or|nor|and|not|no|but|is|if|unless|maybe|perhaps|possibly|probably|about|approximately"
    r"|roughly|so|than|wrong|incorrect|guess)\b",
    re.IGNORECASE,
)


def extract_answer(response: str) -> str | None:
    """The content of the last `\\boxed{...}` after the last `</think>`.

    None if there is none, or the last one is empty or never closed: a cut-off answer must not fall
    back to an earlier box.
    """
    text = response.rpartition("</think>")[2]
    start = max((box.end() for box in _BOX.finditer(text)), default=None)
    end = None if start is None else closing_brace(text, start)
    return None if end is None else text[start:end].strip() or None


def too_long(gold: str, answer: str) -> bool:
    """Whether the answer is longer than any that could be right."""
    return len(answer) > max(MAX_ANSWER_CHARS, 2 * len(gold))


def quick_verdict(gold: str, answer: str) -> Verdict | None:
    """Decide without algebra: equal spelling, rationals, integers, hopeless answers. None: open."""
    if answer == gold and gold.strip():
        return right("equal text")
    if too_long(gold, answer):
        return wrong(f"an answer of {len(answer)} characters")
    expected, given = normalise(gold), normalise(answer)
    if not given:
        return unparseable("an empty answer")
    expected, given = value_of(expected, given), value_of(given, expected)
    if squeeze(expected) == squeeze(given):
        return right("equal text")
    return (
        _compare_numbers(expected, given)
        or _compare_words(expected, given)
        or _reject(expected, given)
    )


def _compare_numbers(expected: str, given: str) -> Verdict | None:
    first, second = rational(expected), rational(given)
    if first is not None and second is not None:
        if first == second:
            return right("equal numbers")
        if first.denominator == second.denominator == 1:
            return wrong("another integer")
        if "overline" in expected + given:  # which Math-Verify cannot read
            same = round(first, 6) == round(second, 6)
            return right("equal to 6 decimals") if same else wrong("another number")
        return None  # Math-Verify rounds: 0.333333 and 1/3
    # A percent sign is a unit that the question may have stated, where the number can be one of
    # percent: a probability of 0.5 is not 0.5 %.
    first, second = (rational(_PERCENT.sub("", text)) for text in (expected, given))
    if first is not None and first == second and abs(first) >= 1:
        return right("equal numbers but for a percent sign")
    if (one := _BASED.fullmatch(expected)) and (other := _BASED.fullmatch(given)):
        base, other_base = one[2] or one[3], other[2] or other[3]
        if base != other_base:
            return wrong(f"in base {other_base}, not {base}")
    return None


def _compare_words(expected: str, given: str) -> Verdict | None:
    """Math-Verify reads a word as a product of letters, in any order: listen equals silent."""
    if _WORDS.fullmatch(expected) and _WORDS.fullmatch(given):
        same = expected.casefold() == given.casefold()
        return right("equal words") if same else wrong("another word")
    return None


def _reject(expected: str, given: str) -> Verdict | None:
    """Answers that Math-Verify would read as something that they do not say."""
    if rational(expected) is not None and _OPERATION.search(_EQUALITY.split(given)[-1]):
        # Else the question copied into the box would be an answer.
        return wrong("an operation instead of its result")
    units = unit(expected), unit(given)
    if None not in units and units[0] != units[1]:
        return wrong("another unit")
    ending = _LAST_TEXT.search(given)
    new_ending = ending and ending.start() > 0 and not expected.endswith(ending[0])
    if ending and new_ending and _HEDGE.search(ending[1]):
        return wrong("text after the answer that changes it")
    if re.search("[0-9] [0-9]", given) and not re.search("[0-9] [0-9]", expected):
        return wrong("numbers side by side")
    if too_costly(given) and not too_costly(expected):
        return wrong("an answer too costly to evaluate")
    return None


def rational(text: str) -> Fraction | None:
    """The number that a normalised answer spells: 3, 0.5, 1/2, 1\\frac12, 0.1\\overline{6}."""
    text = squeeze(text)
    try:
        if match := _FRACTION.fullmatch(text):
            sign, whole, top, bottom = (
                match[1],
                match[2],
                match[3] or match[5],
                match[4] or match[6],
            )
            if whole and not top.isdigit():
                return None
            value = int(whole or 0) + Fraction(int(top), int(bottom))
        elif match := _REPEATING.fullmatch(text):
            sign, whole, fixed, period = match.groups()
            head = int(f"{whole}{fixed}" or 0)
            tail = Fraction(int(period), 10 ** len(period) - 1)
            value = (head + tail) / 10 ** len(fixed)
        elif _NUMBER.fullmatch(text) and not ("/" in text and "." in text):
            sign, value = "", Fraction(text)
        else:
            return None
    except (ZeroDivisionError, ValueError):  # ValueError: more digits than Python converts
        return None
    return -value if sign == "-" else value
