"""A step that stands still ends with an error that says what it waits for."""

from __future__ import annotations

import asyncio
import faulthandler
import sys
import time
from collections.abc import Callable

TICK = 0.25
"""Seconds between two looks at the clock."""


class Watchdog:
    """Calls `bark` if nothing was reported for `seconds`, and measures how late the loop is.

    lag: seconds; the longest that a look at the clock came too late. Whatever blocks the event loop
        shows here.
    """

    def __init__(self, seconds: float, bark: Callable[[], None]) -> None:
        self.lag = 0.0
        self._seconds, self._bark = seconds, bark
        self._heard = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Watch, on the running event loop."""
        self._heard = time.monotonic()
        self._plan()

    def heard(self) -> None:
        """Something has happened."""
        self._heard = time.monotonic()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _plan(self) -> None:
        due = time.monotonic() + TICK
        self._timer = asyncio.get_running_loop().call_later(TICK, self._look, due)

    def _look(self, due: float) -> None:
        now = time.monotonic()
        self.lag = max(self.lag, now - due)
        if now - self._heard > self._seconds:
            self._bark()
        else:
            self._plan()


def dump_stacks() -> None:
    """What every thread of this process does, to standard error."""
    faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr)
