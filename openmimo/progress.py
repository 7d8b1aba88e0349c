"""Where a stage stands: a line a step, and on a terminal a bar with the time left below them."""

import datetime
import sys
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Reports the steps of one stage on standard output.

    ``start`` is the last step that a resumed stage had done. A line is printed for every
    ``every``-th step and for the last one; the bar moves with each step.
    """

    def __init__(self, name: str, total: int, start: int = 0, every: int = 1) -> None:
        self.name, self.total, self.start, self.every = name, total, start, every
        self._began = time.monotonic()
        self._bar: Bar | None = None
        if sys.stdout.isatty():
            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            console = Console(highlight=False, soft_wrap=True)
            self._bar = Bar(TextColumn(name), *columns, console=console, transient=True)
            self._bar.add_task(name, total=total, completed=start)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, step: int, **values: Any) -> None:
        """Step number ``step`` (the first one is 1) is done, with these numbers to show."""
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=step)
        if step % self.every and step != self.total:
            return
        per_step = (time.monotonic() - self._began) / max(1, step - self.start)
        line = format_line(self.name, step, self.total, values, per_step * (self.total - step))
        if self._bar:
            self._bar.console.print(line, markup=False)
        else:
            print(line, flush=True)  # a log file should show the latest step


def format_line(
    name: str, step: int, total: int, values: dict[str, Any], seconds_left: float
) -> str:
    """``rl 12/200  reward 0.31  lr 1e-06  left 0:03:20``"""
    shown = [f"{key} {format_value(value)}" for key, value in values.items()]
    left = datetime.timedelta(seconds=round(seconds_left))
    return "  ".join([f"{name} {step}/{total}", *shown, f"left {left}"])


def format_value(value: Any) -> str:
    """Four significant digits for fractions; everything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
