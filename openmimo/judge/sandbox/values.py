"""Python values as plain data: what may cross from a candidate's process, and how it is written.

Two encodings. `jsonable` is for returned values that are compared with JSON. `pack` and `unpack`
keep Python's own types apart (a tuple is not a list) and are for calls between two processes.
Neither carries code or a class of the candidate's, so neither can carry its idea of equality.
"""

import collections
import json
import sys
from collections.abc import Callable
from typing import Any


def jsonable(value: object) -> object:
    """`value` with tuples as lists; TypeError unless it is built of JSON's types exactly.

    Subclasses are refused: an `int` subclass could define its own digits. Integer keys become
    strings, as in `json.dumps`.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if _is_numpy(value):
        return jsonable(value.tolist())  # type: ignore[attr-defined]
    if kind in (list, tuple):
        return [jsonable(item) for item in value]  # type: ignore[attr-defined]
    if kind is dict:
        result = {}
        for key, item in value.items():  # type: ignore[attr-defined]
            if type(key) not in (str, int) or str(key) in result:
                raise TypeError("a dict key that is no string or integer, or not unique as one")
            result[str(key)] = jsonable(item)
        return result
    raise TypeError(f"a value of type {kind.__name__}")


def _is_numpy(value: object) -> bool:
    """Whether it is an array or a number of numpy's, which says what it holds as plain values."""
    return type(value).__module__ == "numpy" and hasattr(value, "tolist")


_PLAIN = (bool, float, str, type(None))
_LARGE_INTEGER = 1 << 64  # from here on in hexadecimal: decimal digits take quadratic time
_SEQUENCES = {"l": list, "t": tuple, "s": set, "f": frozenset, "q": collections.deque}
_MAPPINGS = (dict, collections.OrderedDict, collections.defaultdict, collections.Counter)
_TYPES = {
    kind.__name__: kind
    for kind in (bool, bytes, complex, dict, float, frozenset, int, list, set, str, tuple)
}
_TAGS: dict[type, str] = {kind: tag for tag, kind in _SEQUENCES.items()}


def pack(value: object, reference: Callable[[object], object]) -> object:
    """`value` as JSON values, containers with a tag before their items.

    What is not plain data becomes `["r", reference(value)]`.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if _is_numpy(value):
        plain = pack(value.tolist(), reference)  # type: ignore[attr-defined]
        return ["a", plain] if isinstance(plain, list) else plain
    if kind is int:
        large = abs(value) >= _LARGE_INTEGER  # type: ignore[arg-type]
        return ["i", hex(value)] if large else value  # type: ignore[arg-type]
    if kind in _TAGS:
        return [_TAGS[kind], *(pack(item, reference) for item in value)]  # type: ignore[attr-defined]
    if kind in _MAPPINGS:
        pairs = value.items()  # type: ignore[attr-defined]
        return ["d", *([pack(k, reference), pack(v, reference)] for k, v in pairs)]
    if kind in (bytes, bytearray):
        return ["b", bytes(value).decode("latin-1")]  # type: ignore[call-overload]
    if kind is complex:
        return ["c", value.real, value.imag]  # type: ignore[attr-defined]
    if isinstance(value, type):
        name = value.__name__
        return ["y", name] if _TYPES.get(name) is value else ["r", reference(value)]
    if isinstance(value, tuple) and hasattr(kind, "_fields"):  # a named tuple
        return ["t", *(pack(item, reference) for item in value)]
    return ["r", reference(value)]


def unpack(data: Any, dereference: Callable[[Any], object]) -> object:
    """The value of what `pack` gave. ValueError or TypeError for anything else."""
    if type(data) in (*_PLAIN, int):
        return data
    tag, *items = data
    if tag in _SEQUENCES:
        return _SEQUENCES[tag](unpack(item, dereference) for item in items)
    if tag == "d":
        return {unpack(k, dereference): unpack(v, dereference) for k, v in items}
    if tag == "i":
        return int(items[0], 16)
    if tag == "b":
        return items[0].encode("latin-1")
    if tag == "c":
        return complex(items[0], items[1])
    if tag == "y":
        return _TYPES[items[0]]
    if tag == "a":
        array = unpack(items[0], dereference)
        return sys.modules["numpy"].array(array) if "numpy" in sys.modules else array
    if tag == "r":
        return dereference(items[0])
    raise ValueError(f"unknown tag {tag!r}")


def dumps(value: object) -> bytes:
    """JSON text as bytes."""
    return json.dumps(value, separators=(",", ":")).encode()
