"""The reward of a mathematics answer, the part that is pure and instant.

A response needs its answer in a final `\\boxed{...}`: the model learns that format from the reward.
`quick_result` decides most answers without algebra; what it leaves open goes to Math-Verify, in a
killable process (`math_verifier.py`).
"""

import math
import re
from fractions import Fraction

from openmimo.judge.verdict import Status
from openmimo.rewards.verdict import RewardResult

MAX_ANSWER_CHARS = 300
_MAX_POWER_DIGITS = 1000  # of the number that a tower of powers stands for
_MAX_FACTORIAL = 1000
_MAX_DEPTH = 30

# Unicode's dashes and full-width forms (digits among them) to ASCII. Not NFKC: it turns x² to x2.
_SPELLINGS = {
    **dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2212"), "-"),
    **{0xFF01 + i: chr(0x21 + i) for i in range(94)},
}
_WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:(?:\{,\}|,)\d{3})+(?:\.\d+)?")
# Not after a backslash: `\\\\ ` is the end of a matrix row.
_SPACING = re.compile(
    r"(?<!\\)(?:\\[!,;:]|\\(?:left|right|quad|qquad|displaystyle)(?![a-zA-Z])|\\ )|~"
)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_FRACTION = re.compile(r"(-?)\\frac\{(-?\d+)\}\{(\d+)\}|(-?)\\frac(\d)(\d)")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d+)?|\.\d+)(?:/\d+)?")
# A sum, difference or product that is left to do; not 1.5 \times 10^3, which is a numeral.
_OPERATION = re.compile(
    r"[\d)}\]]\s*(?:[+*-]|\\(?:cdot|times|div)(?![a-zA-Z]|\s*10\s*\^))\s*[\d({\\.]"
    r"|\\(?:int|sum|prod)(?![a-zA-Z])"
)
_TOWER = re.compile(r"(\d+)\}?\)?\^[{(]*(\d+)\}?\)?\^[{(]*(\d+)")
_SYMBOLIC_TOWER = re.compile(r"\^[{(]*[^{}()^]*[a-zA-Z][^{}()^]*\^")
_POWER = re.compile(r"(\d+)\}?\)?\^[{(]*(\d+)")
_FACTORIAL = re.compile(r"(\d+)!")
_NESTED_FACTORIAL = re.compile(r"![})\]]*!|(?:\^|\d{4}).*[})\]]!")


def extract_answer(response: str) -> str | None:
    """The content of the last `\\boxed{...}` after the last `</think>`.

    None if there is none, or the last one is empty or never closed: a cut-off answer must not fall
    back to an earlier box.
    """
    text = response.rpartition("</think>")[2]
    marker = text.rfind("\\boxed{")
    if marker < 0:
        return None
    start = marker + len("\\boxed{")
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += (brace[0] == "{") - (brace[0] == "}")
        if depth == 0:
            return text[start : brace.start()].strip() or None
    return None


def normalise(answer: str) -> str:
    """The answer in one spelling of dashes, digits, spacing, fractions and thousands.

    A wrapper (`\\text{...}`) around the whole answer and a final dot or comma go.
    """
    text = answer.translate(_SPELLINGS).strip().strip("$").strip()
    if wrapped := _WRAPPER.fullmatch(text):
        text = wrapped[1]
    text = _SPACING.sub("", text)
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = text.strip().rstrip(".,").rstrip()
    return re.sub(r"[{},]", "", text) if _THOUSANDS.fullmatch(text) else text


def _rational(text: str) -> Fraction | None:
    text = text.replace(" ", "")
    if match := _FRACTION.fullmatch(text):
        sign, top, bottom = (match[1], match[2], match[3]) if match[3] else match.group(4, 5, 6)
        text = f"{sign}{top}/{bottom}".replace("--", "")
    if not _NUMBER.fullmatch(text) or ("/" in text and "." in text):
        return None
    try:
        return Fraction(text)
    except (ZeroDivisionError, ValueError):
        return None


def too_costly(answer: str) -> bool:
    """Whether evaluating the answer could take minutes: towers, factorials, deep nesting."""
    depth = deepest = 0
    for character in answer:
        depth += (character in "({[") - (character in ")}]")
        deepest = max(deepest, depth)
    if deepest > _MAX_DEPTH or _SYMBOLIC_TOWER.search(answer):
        return True
    for base, low, high in _TOWER.findall(answer):
        # Lengths first: int(high) may have any number of digits.
        if len(low) > 4 or len(high) > 4 or int(high) * math.log10(max(2, int(low))) > 3:
            return True
        if int(low) ** int(high) * len(base) > _MAX_POWER_DIGITS:
            return True
    for base, exponent in _POWER.findall(answer):
        if len(exponent) > 6 or int(exponent) * len(base) > 10 * _MAX_POWER_DIGITS:
            return True
    if _NESTED_FACTORIAL.search(answer):
        return True
    return any(len(n) > 4 or int(n) > _MAX_FACTORIAL for n in _FACTORIAL.findall(answer))


def quick_result(gold: str, answer: str) -> RewardResult | None:
    """Decide without algebra: equal spelling, rationals, integers, hopeless answers. None: open."""
    left, right = normalise(gold), normalise(answer)
    if left.replace(" ", "") == right.replace(" ", ""):
        return RewardResult(1.0, Status.OK, "equal text")
    first, second = _rational(left), _rational(right)
    if first is not None and first == second:
        return RewardResult(1.0, Status.OK, "equal numbers")
    # Unequal decimals stay open: Math-Verify rounds (0.333333 and 1/3).
    if first is not None and second is not None and first.denominator == second.denominator == 1:
        return RewardResult(0.0, Status.WRONG, "another integer")
    if first is not None and _OPERATION.search(right):
        # Math-Verify would work it out, and the question copied into the box would be an answer.
        return RewardResult(0.0, Status.WRONG, "an operation instead of its result")
    if len(answer) > max(MAX_ANSWER_CHARS, 2 * len(gold)):
        return RewardResult(0.0, Status.WRONG, f"an answer of {len(answer)} characters")
    if too_costly(right) and not too_costly(left):
        return RewardResult(0.0, Status.WRONG, "an answer too costly to evaluate")
    return None
