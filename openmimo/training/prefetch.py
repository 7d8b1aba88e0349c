"""The next batches are made in a thread while the current step computes.

The order of the data does not change: one thread makes the steps one after the other, as the loop
would. Making a batch takes about a microsecond a token: nothing beside a step on a CPU, but a GPU
that trains a small model reads a million tokens in a few seconds.
"""

from __future__ import annotations

import copy
import queue
import threading
from dataclasses import dataclass
from typing import Any, Self

from openmimo.errors import UserError
from openmimo.training.source import Source, Step

AHEAD = 2
"""Steps made before they are asked for; the second one evens out batches that take longer."""
PATIENCE = 10.0
"""Seconds that `close` gives the thread to finish the batch it is making."""


@dataclass(frozen=True)
class _Made:
    index: int
    step: Step
    state: dict[str, Any]


class Prefetched:
    """A `Source` that reads another one ahead. A context manager: leaving it ends the thread.

    `state()` is the state after the last step that was taken, not after what was read ahead, so a
    checkpoint is the same as without reading ahead.

    Args:
        source: read by the thread alone, once `step` has been called.
        deadline: seconds that `step` waits for a batch.
    """

    def __init__(self, source: Source, deadline: float) -> None:
        self.total_steps = source.total_steps
        self._source, self._deadline = source, deadline
        self._made: queue.SimpleQueue[_Made | BaseException] = queue.SimpleQueue()
        self._room = threading.Semaphore(AHEAD)
        self._closing = False
        self._thread: threading.Thread | None = None
        self._taken: _Made | None = None

    def step(self, index: int) -> Step:
        """Step `index`. The first call may begin anywhere; then they follow each other.

        Raises:
            UserError: the source took longer than the deadline.
            Exception: whatever the source raised when it made this step.
        """
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._work, args=(index,), name="prefetch", daemon=True
            )
            self._thread.start()
        try:
            made = self._made.get(timeout=self._deadline)
        except queue.Empty:
            raise UserError(
                f"no data for step {index + 1} in {self._deadline:g} s: the disk or network share "
                "under the run folder does not answer. Repeat the command once it does; "
                "compute.collective_timeout sets how long to wait"
            ) from None
        if isinstance(made, BaseException):
            raise made
        if made.index != index:
            raise ValueError(f"step {index} was asked for where step {made.index} comes next")
        self._room.release()
        self._taken = made
        return made.step

    def state(self) -> dict[str, Any]:
        """JSON state after the last step taken."""
        return self._source.state() if self._taken is None else self._taken.state

    def restore(self, state: dict[str, Any]) -> None:
        """Continue after that state; only before the first step."""
        if self._thread is not None:
            raise RuntimeError("restore() comes before the first step")
        self._source.restore(state)

    def _work(self, index: int) -> None:
        try:
            while index < self.total_steps:
                self._room.acquire()
                if self._closing:
                    return
                step = self._source.step(index)
                # A copy: the source goes on changing what its state may refer to.
                self._made.put(_Made(index, step, copy.deepcopy(self._source.state())))
                index += 1
        except BaseException as error:  # raised where the loop takes the step
            self._made.put(error)

    def close(self) -> None:
        """End the thread. One that hangs in a read is left to die with the process."""
        self._closing = True
        self._room.release()
        if self._thread is not None:
            self._thread.join(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
