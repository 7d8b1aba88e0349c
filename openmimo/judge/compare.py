"""Comparison rules: when an output, or a returned value, is the expected one.

All pure, on bytes and on JSON values, never on a candidate's objects.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Literal, get_args

from openmimo.errors import UserError

RuleName = Literal["tokens", "lines", "exact", "floats", "unordered", "livecodebench"]
_SHOWN = 40  # characters of a token in an explanation


@dataclass(frozen=True, slots=True)
class Rule:
    """How an output is compared.

    tokens: the words, however they are spaced. lines: the lines, but for space at their ends and
    empty lines at the end. exact: every byte. floats: tokens, where a decimal number may be off by
    `absolute` or, relative to the expected one, by `relative`; whole numbers only with
    `whole_numbers`; NaN and infinity never match. unordered: lines as in `lines`, in any order.
    livecodebench: lines without the space around them, as equal decimal numbers where both are.

    For returned values: tokens, lines and exact are equality; floats gives floats their
    tolerance; unordered is floats with the items of the outermost list in any order.
    """

    name: RuleName = "tokens"
    absolute: float = 1e-9
    relative: float = 1e-6
    whole_numbers: bool = False
    ignore_case: bool = False

    def __post_init__(self) -> None:
        if self.name not in get_args(RuleName):
            known = ", ".join(get_args(RuleName))
            raise UserError(f"no comparison rule {self.name!r}: use one of {known}")
        if not (0 <= self.absolute < math.inf and 0 <= self.relative < math.inf):
            raise UserError("a comparison rule's tolerances must be numbers, 0 or more")


TOKENS, FLOATS = Rule("tokens"), Rule("floats")


def output_difference(rule: Rule, expected: bytes, actual: bytes) -> str | None:
    """Where the outputs differ under `rule`, in words; None where they match."""
    if rule.ignore_case:
        expected, actual = expected.lower(), actual.lower()
    if rule.name == "exact":
        return None if expected == actual else _first_difference(expected, actual)
    if rule.name == "livecodebench":
        return _decimal_lines_difference(expected, actual)
    if rule.name in ("lines", "unordered"):
        wanted, found = _lines(expected), _lines(actual)
        if rule.name == "unordered":
            return None if Counter(wanted) == Counter(found) else _odd_line(wanted, found)
        return None if wanted == found else _sequence_difference("line", wanted, found)
    wanted, found = expected.split(), actual.split()
    if wanted == found:
        return None
    if rule.name == "floats":
        return _sequence_difference("token", wanted, found, rule)
    return _sequence_difference("token", wanted, found)


def _lines(text: bytes) -> list[bytes]:
    lines = [line.rstrip() for line in text.split(b"\n")]
    while lines and not lines[-1]:
        del lines[-1]
    return lines


def _decimal_lines_difference(expected: bytes, actual: bytes) -> str | None:
    wanted, found = ([line.strip() for line in text.strip().split(b"\n")]
                     for text in (expected, actual))  # fmt: skip
    if len(wanted) != len(found):
        return f"{len(found)} lines, not {len(wanted)}"
    for number, (a, b) in enumerate(zip(wanted, found, strict=True), 1):
        if a != b and not _same_decimals(a, b):
            return f"line {number} is {_show(b)}, not {_show(a)}"
    return None


def _same_decimals(expected: bytes, actual: bytes) -> bool:
    try:
        wanted, found = ([Decimal(word.decode()) for word in line.split()]
                         for line in (expected, actual))  # fmt: skip
    except (InvalidOperation, UnicodeDecodeError):
        return False
    return wanted == found


def _first_difference(expected: bytes, actual: bytes) -> str:
    pairs = enumerate(zip(expected, actual, strict=False))
    place = next((i for i, (a, b) in pairs if a != b), min(len(expected), len(actual)))
    return f"differs from byte {place + 1} on"


def _odd_line(wanted: list[bytes], found: list[bytes]) -> str:
    extra, missing = Counter(found) - Counter(wanted), Counter(wanted) - Counter(found)
    if extra:
        return f"a line too many: {_show(next(iter(extra)))}"
    return f"a line is missing: {_show(next(iter(missing)))}"


def _sequence_difference(
    kind: str, wanted: Sequence[bytes], found: Sequence[bytes], tolerance: Rule | None = None
) -> str | None:
    for number, (a, b) in enumerate(zip(wanted, found, strict=False), 1):
        if a != b and not (tolerance and _close_tokens(tolerance, a, b)):
            return f"{kind} {number} is {_show(b)}, not {_show(a)}"
    if len(wanted) != len(found):
        return f"{len(found)} {kind}s, not {len(wanted)}"
    return None


def _show(token: bytes) -> str:
    text = token.decode("utf-8", "replace")
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


def _close_tokens(rule: Rule, expected: bytes, actual: bytes) -> bool:
    try:
        wanted, found = Decimal(expected.decode()), Decimal(actual.decode())
    except (InvalidOperation, UnicodeDecodeError):
        return False
    if not (wanted.is_finite() and found.is_finite()):
        return False
    try:
        if expected.lstrip(b"+-").isdigit() and not rule.whole_numbers:
            return wanted == found
        allowed = max(Decimal(rule.absolute), Decimal(rule.relative) * abs(wanted))
        return abs(wanted - found) <= allowed
    except ArithmeticError:  # an exponent beyond all bounds
        return False


def values_match(rule: Rule, expected: object, actual: object) -> bool:
    """Compare two JSON values by type: true is not 1, integers are exact.

    Where the expected value is a float, an integer is accepted too; where it is an integer, a
    float is not. NaN matches nothing. Lists are ordered, but see `Rule` for `unordered`.
    """
    if rule.name == "unordered" and isinstance(expected, list) and isinstance(actual, list):
        return len(expected) == len(actual) and _match_in_any_order(rule, expected, actual)
    return _match(rule, expected, actual)


def _match_in_any_order(rule: Rule, expected: list[object], actual: list[object]) -> bool:
    if all(type(item) in (int, float) for item in (*expected, *actual)):
        pairs = zip(sorted(expected, key=_size), sorted(actual, key=_size), strict=True)
        return all(_match(rule, wanted, found) for wanted, found in pairs)
    if not all(_match(rule, item, item) for item in (*expected, *actual)):
        return False  # NaN matches nothing, not even itself
    # What is spelled alike goes first: to try every pair of some thousands takes a minute.
    wanted_by, found_by = _by_spelling(expected), _by_spelling(actual)
    left = [item for key in found_by for item in found_by[key][len(wanted_by.get(key, ())) :]]
    for key, items in wanted_by.items():
        for wanted in items[len(found_by.get(key, ())) :]:
            place = next((i for i, value in enumerate(left) if _match(rule, wanted, value)), None)
            if place is None:
                return False
            del left[place]
    return True


def _size(number: object) -> tuple[float, bool]:
    return number, isinstance(number, float)  # type: ignore[return-value]


def _by_spelling(items: list[object]) -> dict[str, list[object]]:
    groups: dict[str, list[object]] = {}
    for item in items:
        groups.setdefault(json.dumps(item, sort_keys=True), []).append(item)
    return groups


def _match(rule: Rule, expected: object, actual: object) -> bool:
    if isinstance(expected, float):
        if type(actual) not in (int, float):
            return False
        return _close(rule, expected, actual)  # type: ignore[arg-type]
    if type(expected) is not type(actual):
        return False
    if isinstance(expected, list) and isinstance(actual, list):
        return len(expected) == len(actual) and all(
            _match(rule, a, b) for a, b in zip(expected, actual, strict=True)
        )
    if isinstance(expected, dict) and isinstance(actual, dict):
        return expected.keys() == actual.keys() and all(
            _match(rule, value, actual[key]) for key, value in expected.items()
        )
    return expected == actual


def _close(rule: Rule, expected: float, actual: float) -> bool:
    if rule.name not in ("floats", "unordered"):
        return expected == actual
    try:
        return math.isclose(expected, actual, rel_tol=rule.relative, abs_tol=rule.absolute)
    except OverflowError:  # an integer beyond the range of floats
        return False


def decode(payload: bytes) -> object:
    """The JSON value of untrusted bytes. ValueError if they hold none, or one nested absurdly."""
    try:
        return json.loads(payload)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
