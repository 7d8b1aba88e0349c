"""The numbers of metrics.jsonl in TensorBoard, trackio or Weights & Biases as well.

metrics.jsonl stays the record. A tracker that fails is left out with one warning and never stops
the training; one that is not installed is an error before the training begins.

A stage that is resumed goes on with its curve, whose key is in its `trackers.json`. The steps that
it had made after its last checkpoint are made again, with the same numbers. TensorBoard replaces
them; the others cannot take back what they have, so they are sent only what they lack.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from openmimo.errors import UserError
from openmimo.runs import atomic_write

PROJECT = "openmimo"
"""Of trackio and W&B, where WANDB_PROJECT names no other."""
RECORD = "trackers.json"
WANDB_SECONDS = 60
"""That W&B may take to log in, to start, and to upload at the end."""


@dataclass(frozen=True)
class Curve:
    """A stage of a run, to its trackers.

    Attributes:
        run: the run's folder.
        stage: the stage's name.
        key: of this attempt; another one where the stage begins anew.
        first: steps that it had done when it was resumed.
    """

    run: Path
    stage: str
    key: str
    first: int

    @property
    def name(self) -> str:
        return f"{self.run.resolve().name}-{self.stage}-{self.key}"


class Sink(Protocol):
    """An open tracker."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Take a step's numbers."""

    def close(self, failed: bool) -> None:
        """The stage ends; `failed`: with an error."""


class Trackers:
    """The trackers of a stage; a context manager.

    Args:
        names: of compute.trackers.
        run, stage: the run's folder and the stage's.
        first: steps that the stage had done when it was resumed.

    Raises:
        UserError: a tracker is not installed.
    """

    def __init__(self, names: Sequence[str], run: Path, stage: Path, first: int) -> None:
        self._sinks: dict[str, Sink] = {}
        if not names:
            return
        curve = _curve(run, stage, first)
        for name in names:
            try:
                self._sinks[name] = OPENERS[name](curve)
            except ImportError as error:
                raise UserError(
                    f"compute.trackers names {name}, which cannot be imported ({error}): "
                    f"pip install 'openmimo[{name}]', or leave it out"
                ) from error
            except Exception as error:
                _warn(name, error)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Send the numbers among a step's values; items of lists and groups as `name/item`."""
        for name in [*self._sinks]:
            self._try(name, lambda sink: sink.log(step, scalars(values)))

    def _try(self, name: str, use: Callable[[Sink], None]) -> None:
        try:
            use(self._sinks[name])
        except Exception as error:  # whatever a foreign package raises
            del self._sinks[name]
            _warn(name, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for name in [*self._sinks]:
            self._try(name, lambda sink: sink.close(failed=kind is not None))


def scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among values, lists and groups of values, with flat names."""
    flat: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, list | tuple):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, Mapping):
            flat |= {f"{key}/{item}": number for item, number in scalars(value).items()}
        elif type(value) in (int, float) and math.isfinite(value):  # a bool is no number here
            flat[key] = value
    return flat


def _curve(run: Path, stage: Path, first: int) -> Curve:
    """The curve that the stage had, if it is resumed, else a new one."""
    key = secrets.token_hex(4)
    try:
        if first:
            key = str(json.loads((stage / RECORD).read_text())["key"])
    except (OSError, ValueError, LookupError, TypeError):
        pass  # there were no trackers before: the curve begins here
    atomic_write(stage / RECORD, json.dumps({"key": key}))
    return Curve(run, stage.name, key, first)


def _warn(name: str, error: Exception) -> None:
    what = f"{type(error).__name__}: {error}".split("\n")[0]
    print(
        f"warning: {name} failed ({what}); the run goes on without it, and metrics.jsonl has "
        "everything",
        file=sys.stderr,
        flush=True,
    )


class _TensorBoard:
    """Event files in RUN/tensorboard/<stage>: `tensorboard --logdir RUN/tensorboard`."""

    def __init__(self, curve: Curve) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Readers drop what earlier files have from `purge_step` on.
        folder = curve.run / "tensorboard" / curve.stage
        self._writer = SummaryWriter(str(folder), purge_step=curve.first + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # else a process that is killed takes minutes with it

    def close(self, failed: bool) -> None:
        self._writer.close()


class _Trackio:
    """trackio's own folder on this machine (`trackio show --project openmimo`), or the server that
    its environment variables name."""

    def __init__(self, curve: Curve) -> None:
        import trackio

        run = trackio.init(PROJECT, name=curve.name, group=curve.run.resolve().name, resume="allow")
        # Its public interface does not tell how far a curve goes.
        self._trackio, self._next = trackio, getattr(run, "_next_step", 0)

    def log(self, step: int, values: dict[str, float]) -> None:
        if step >= self._next:
            self._trackio.log(values, step=step)

    def close(self, failed: bool) -> None:
        self._trackio.finish()


class _Wandb:
    """Weights & Biases, with files in RUN/wandb. WANDB_MODE=offline keeps them there, to be sent by
    `wandb sync` later; then nothing tells how far the curve goes, and the files of a resumed run
    overlap."""

    def __init__(self, curve: Curve) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=f"{curve.stage}-{curve.key}",
            name=curve.name,
            group=curve.run.resolve().name,
            dir=curve.run,
            resume="allow",
            settings=wandb.Settings(
                login_timeout=WANDB_SECONDS,
                init_timeout=WANDB_SECONDS,
                finish_timeout=WANDB_SECONDS,
            ),
        )
        self._next = self._run.step

    def log(self, step: int, values: dict[str, float]) -> None:
        if step >= self._next:
            self._run.log(values, step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


OPENERS: dict[str, Callable[[Curve], Sink]] = {
    "tensorboard": _TensorBoard,
    "trackio": _Trackio,
    "wandb": _Wandb,
}
