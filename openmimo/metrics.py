"""Numbers of a run as JSON lines: one object a step, appended, readable while the run goes on."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from openmimo.errors import UserError


class MetricsWriter:
    """Appends one JSON line a step to ``path``.

    A process that was killed may have logged steps after its last checkpoint, and may have torn
    its last line. Opening the file therefore repairs it: with ``resume_step=n`` only whole lines
    with ``step <= n`` are kept, so that the repeated steps appear once. Without ``resume_step``
    the file starts empty.

    Every line is one ``write`` call on an unbuffered file opened for appending, so a reader sees
    whole lines and ``kill -9`` loses at most the line being written.
    """

    def __init__(self, path: Path | str, resume_step: int | None = None) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [] if resume_step is None else _lines_up_to(self.path, resume_step)
        _replace_lines(self.path, kept)
        self._file = self.path.open("ab", buffering=0)

    def log(self, step: int, **values: Any) -> None:
        """Append ``{"step": step, "time": unix seconds, **values}``.

        NaN and infinity have no JSON spelling and are written as null. Numbers may be anything
        with ``.item()`` (numpy scalars, one-element tensors).
        """
        record = {"step": step, "time": round(time.time(), 3), **values}
        line = json.dumps(_plain(record), allow_nan=False, ensure_ascii=False)
        self._file.write(line.encode() + b"\n")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """Every whole record of a metrics file, in file order; an empty list if there is no file.

    A torn last line (its process was killed while writing) is left out. A broken line anywhere
    else raises ``ValueError``: it means that something other than ``MetricsWriter`` wrote there.
    """
    path = Path(path)
    if not path.exists():
        return []
    return [json.loads(line) for line in _whole_lines(path)]


def _whole_lines(path: Path) -> list[bytes]:
    # A line counts once its newline is on disk: what follows the last newline was torn.
    return path.read_bytes().split(b"\n")[:-1]


def _lines_up_to(path: Path, step: int) -> list[bytes]:
    if not path.exists():
        return []
    try:
        return [line for line in _whole_lines(path) if json.loads(line)["step"] <= step]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}): remove {path.parent} and repeat the command, which does "
            "this stage again"
        ) from error


def _replace_lines(path: Path, lines: list[bytes]) -> None:
    # Through a second file: a kill between truncating and rewriting must not lose the history.
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(b"".join(line + b"\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _plain(value: Any) -> Any:
    """``value`` in types that JSON knows."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
