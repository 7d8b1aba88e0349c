"""When a returned value equals the expected one. Both sides are JSON values, never live objects."""

import json
import math

RELATIVE_TOLERANCE = 1e-6
ABSOLUTE_TOLERANCE = 1e-9


def matches(expected: object, actual: object) -> bool:
    """Compare two JSON values by type: true is not 1, integers are exact, floats within tolerance.

    Where the expected value is a float, an integer is accepted too; where it is an integer, a
    float is not. NaN matches nothing. Lists are ordered.
    """
    if isinstance(expected, float):
        if type(actual) not in (int, float):
            return False
        return _close(expected, actual)  # type: ignore[arg-type]
    if type(expected) is not type(actual):
        return False
    if isinstance(expected, list) and isinstance(actual, list):
        return len(expected) == len(actual) and all(map(matches, expected, actual))
    if isinstance(expected, dict) and isinstance(actual, dict):
        return expected.keys() == actual.keys() and all(
            matches(value, actual[key]) for key, value in expected.items()
        )
    return expected == actual


def _close(expected: float, actual: float) -> bool:
    try:
        return math.isclose(
            expected, actual, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE
        )
    except OverflowError:  # an integer beyond the range of floats
        return False


def decode(payload: bytes) -> object:
    """The JSON value of untrusted bytes. ValueError if they hold none, or one nested absurdly."""
    try:
        return json.loads(payload)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
