"""Which answers a computer algebra system must not be asked to evaluate."""

import math
import re

_MAX_POWER_DIGITS = 1000  # of the number that a tower of powers stands for
_MAX_FACTORIAL = 1000
_MAX_DEPTH = 20

_TOWER = re.compile(r"(\d+)\}?\)?\^[{(]*(\d+)\}?\)?\^[{(]*(\d+)")
_POWER = re.compile(r"(\d+)\}?\)?\^[{(]*(\d+)")
_FACTORIAL = re.compile(r"(\d+)!")
_NESTED_FACTORIAL = re.compile(r"![})\]]*!|(?:\d[})]*\^|\d{4}).*[})\]]!")


def too_costly(answer: str) -> bool:
    """Whether evaluating the answer could take minutes: towers, factorials, deep nesting.

    Only what is sure to: all else may use up its time and end as a timeout. For short texts only,
    as the patterns take quadratic time.
    """
    depth = deepest = 0
    for character in answer:
        depth += (character in "({[") - (character in ")}]")
        deepest = max(deepest, depth)
    if deepest > _MAX_DEPTH:
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
