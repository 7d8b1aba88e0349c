"""Numbers as people read them."""

from __future__ import annotations

_SCALES = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))
_TIMES = ((86_400 * 365.25, "years"), (86_400, "days"), (3_600, "hours"), (60, "minutes"))


def tokens(count: int) -> str:
    """84B, 10.284T, 8,192: five digits at most from ten thousand on."""
    for scale, letter in _SCALES:
        if count >= max(scale, 10_000):
            return f"{count / scale:.5g}{letter}"
    return f"{count:,}"


def size(count: float) -> str:
    """Bytes in decimal units, as data sheets count them."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


def duration(seconds: float) -> str:
    """In the largest unit of which there are at least two."""
    for unit, name in _TIMES:
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:.3g} seconds"
