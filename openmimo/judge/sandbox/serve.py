"""Start the fork server, laid out in memory so that its children copy few pages of it."""

import gc
import importlib
import json
import sys
from collections.abc import Iterator

# What honest solutions import most: loaded once here, they cost a child nothing. The rest of the
# library still loads from its folder, unless it needs a system library: hence the last two. A
# module's pages cost each fork something, so those that few solutions import are not here: with
# `dataclasses`, `datetime`, `unicodedata` and ten more like them a test took 9 % more CPU time.
# `threading` and `random` have hooks of their own at each fork, which take as long as the fork.
_PRELOADED = (
    "_sitebuiltins", "bisect", "collections.abc", "copy", "functools", "heapq", "io", "itertools",
    "json", "math", "operator", "re", "string", "time", "typing", "decimal", "zlib",
)  # fmt: skip
# What the server imports besides.
_ITS_OWN = ("atexit", "ctypes", "marshal", "resource", "select", "signal", "stat", "struct")

# Of CPython's allocator: a pool holds blocks of one size, in steps up to the largest.
_POOL_BYTES, _POOL_HEADER, _STEP, _LARGEST = 1 << 14, 48, 16, 512
_MOST_BLOCKS = 1 << 13  # of a size, should an allocator be different


def main(arguments: list[str]) -> None:
    """Load the libraries, then the server, and serve.

    One JSON argument: {"unsafe": bool, "folders": of more libraries, "modules": to load from them,
    "writable": folders that programs may make files in}
    """
    options = json.loads(arguments[0])
    sys.path += options["folders"]
    for name in (*_ITS_OWN, *_PRELOADED, *options["modules"]):
        importlib.import_module(name)
    gc.collect()
    # With all gaps filled, what the server uses for each test lies side by side, not scattered
    # over the memory of the libraries: 29 of 355 page faults of a test less.
    fillers = list(_fill_gaps())
    from . import server

    server.main(options)
    del fillers


def _fill_gaps() -> Iterator[object]:
    """Objects that fill every pool with free blocks; the last of each size is in a new one."""
    for size in range(_STEP, _LARGEST + 1, _STEP):
        for _ in range(_MOST_BLOCKS):
            block = _block(size)
            yield block
            if id(block) % _POOL_BYTES == _POOL_HEADER:
                break


def _block(size: int) -> object:
    if size == _STEP:
        return object()
    if size == 2 * _STEP:
        return float(size)
    return bytes(size - sys.getsizeof(b""))
