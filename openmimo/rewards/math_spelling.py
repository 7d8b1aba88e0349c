r"""One spelling for the many ways to write an answer.

Every rule here is a decision listed in docs/rewards.md, with its reason.
"""

import re

_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2212\ufe63"
_SPACES = "\u00a0\u2002\u2003\u2007\u2009\u200a\u202f\u205f\u3000"
_INVISIBLE = "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
# Not NFKC: it turns x² into x2.
_CHARACTERS = {
    **{0xFF01 + i: chr(0x21 + i) for i in range(94)},  # full-width ASCII
    **dict.fromkeys(map(ord, _DASHES), "-"),
    **dict.fromkeys(map(ord, _SPACES), " "),
    **dict.fromkeys(map(ord, _INVISIBLE), None),
    ord("°"): "^\\circ ",
    ord("∞"): "\\infty ",
    ord("π"): "\\pi ",
    ord("×"): "\\times ",
    ord("·"): "\\cdot ",
    ord("÷"): "\\div ",
    ord("≤"): "\\le ",
    ord("≥"): "\\ge ",
    ord("≠"): "\\ne ",
    ord("≈"): "\\approx ",
}
_SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
_SUPERSCRIPT = re.compile("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_ROOT = re.compile(r"√\s*(\d+|[a-zA-Z])?")
_WRAPPER = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_MATH_MODE = re.compile(r"\\\((.*)\\\)|\\\[(.*)\\\]", re.DOTALL)
# Commands that print nothing. Not after a backslash: `\\\\ ` is the end of a matrix row.
_SILENT = re.compile(r"(?<!\\)\\(?:!\s*|\$|(?:left|right|displaystyle)(?![a-zA-Z]))")
_SPACE = re.compile(r"(?<!\\)\\(?:[,;: ]|(?:quad|qquad)(?![a-zA-Z]))|~|\s+")
_ENDING = re.compile(r"(?:[\s.,;:]|\\\\)+$")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:(?:\{,\}|,| )\d{3})+(?:\.\d+)?")
_MIXED = re.compile(r"([+-]?\d+) (\d+)/(\d+)")
_ASSIGNMENT = re.compile(r"[a-zA-Z] ?= ?([^=<>,;]+)")
_APPROXIMATELY = re.compile(r"\\approx(?![a-zA-Z])")


def normalise(answer: str) -> str:
    """The answer in one spelling of characters, spacing, fractions and thousands.

    What surrounds the answer goes: math mode, `\\text{...}` around the whole, dollar signs, final
    punctuation, and `\\approx` with what follows it.
    """
    text = answer if answer.isascii() else _to_ascii(answer)
    text = _SILENT.sub("", text)
    text = re.sub(" +", " ", _SPACE.sub(" ", text)).strip().strip("$")
    text = _ENDING.sub("", text).lstrip()
    if inner := _MATH_MODE.fullmatch(text):
        text = (inner[1] or inner[2] or "").strip()
    while (opening := _WRAPPER.match(text)) and closing_brace(text, opening.end()) == len(text) - 1:
        text = text[opening.end() : -1].strip()
    text = _exact_side(_ENDING.sub("", text))
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    if _THOUSANDS.fullmatch(text):
        return re.sub(r"[{}, ]", "", text)
    return _MIXED.sub(r"\1\\frac{\2}{\3}", text) if _MIXED.fullmatch(text) else text


def _to_ascii(answer: str) -> str:
    text = answer.translate(_CHARACTERS)
    text = re.sub(r"\d", lambda digit: str(int(digit[0])), text)  # any script's digits
    text = _SUPERSCRIPT.sub(lambda run: f"^{{{run[0].translate(_SUPERSCRIPTS)}}}", text)
    return _ROOT.sub(lambda root: f"\\sqrt{{{root[1]}}}" if root[1] else "\\sqrt", text)


def closing_brace(text: str, start: int) -> int | None:
    """Where the group that was opened before `start` is closed. None: never."""
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += (brace[0] == "{") - (brace[0] == "}")
        if depth == 0:
            return brace.start()
    return None


def squeeze(text: str) -> str:
    """Without spaces, except between two digits: `1 1/2` is not `11/2`."""
    return re.sub(r"(?<![0-9]) +| +(?![0-9])", "", text)


def value_of(text: str, other: str) -> str:
    """What a text of the form `x = value` assigns, if `other` is no equation."""
    assigned = None if "=" in other else _ASSIGNMENT.fullmatch(text)
    return assigned[1] if assigned else text


def _exact_side(text: str) -> str:
    """What stands before `\\approx`, or after it if that is nothing but a name."""
    sides = [side.strip() for side in _APPROXIMATELY.split(text, maxsplit=1)]
    return sides[-1] if re.fullmatch(r"[a-zA-Z]?", sides[0]) else sides[0]
