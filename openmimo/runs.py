"""A run is a folder: its lock, its stages that are done once, and writes that are whole or absent.

    RUN/config.toml
    RUN/stages/<stage>/            everything the stage wrote
    RUN/stages/<stage>/state.json  which settings it is running with, and its clock so far
    RUN/stages/<stage>/done.json   written last: the stage is finished

A process may die at any instruction. What it left is either a whole file under its own name or a
``.tmp`` name that the next process replaces.

Where several processes train together, rank 0 alone writes and decides; the others follow.
"""

import contextlib
import fcntl
import json
import os
import resource
import secrets
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from openmimo.errors import UserError
from openmimo.units import size
from openmimo.world import World


class Run:
    """The folder of one run, made if it is not there.

    As a context manager it holds the folder's lock and turns Ctrl-C into `interrupt`.

    Args:
        folder: on a file system that all ranks see.
        world: the ranks that work on it, each with a `Run` of its own; `stage`, `Stage.is_done` and
            `Stage.finish` are then called on all of them.
    """

    def __init__(self, folder: Path | str, world: World | None = None) -> None:
        self.dir = Path(folder)
        self.world = world or World()
        self.interrupt = Interrupt(speaks=self.world.main)
        self._lock_file: Any = None
        self._running: list[Stage] = []
        if not self.world.main:
            return
        try:
            self.dir.mkdir(parents=True, exist_ok=True)
            names = {path.name for path in self.dir.iterdir()}
        except OSError as error:
            raise UserError(f"cannot use {self.dir} as a run folder: {error.strerror}") from error
        if names and not names & {".lock", "config.toml", "stages"}:
            raise UserError(
                f"{self.dir} holds other files and is no run folder; name another --out"
            )
        (self.dir / ".lock").touch()

    def __enter__(self) -> Self:
        if self.world.main:
            self._lock()
        self.interrupt.__enter__()
        return self

    def _lock(self) -> None:
        # Not flock: a forked worker would inherit that lock and keep it after its parent's death.
        self._lock_file = (self.dir / ".lock").open("r+")
        try:
            fcntl.lockf(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = self._lock_file.read().strip() or "unknown"
            self._lock_file.close()
            raise UserError(f"{self.dir} is in use by process {pid}") from None
        self._lock_file.truncate(0)
        self._lock_file.write(str(os.getpid()))
        self._lock_file.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.interrupt.__exit__(kind, error, trace)
        for stage in self._running:
            with contextlib.suppress(OSError):  # a full disk must not hide the first error
                stage.save_clock()
        if self._lock_file is not None:
            self._lock_file.close()

    def stage(self, name: str, config_hash: str) -> "Stage":
        """The stage's folder, ready to run or to resume with the settings of ``config_hash``.

        A folder made with other settings is moved to ``<name>.old``, with a line that says so.
        """
        stage = Stage(self.dir / "stages" / name, config_hash, self.world)
        if self.world.main:
            self._prepare(stage)
        self.world.barrier()
        return stage

    def _prepare(self, stage: "Stage") -> None:
        # An empty folder is what a kill left between making it and its first file.
        used = stage.dir.exists() and any(stage.dir.iterdir())
        if used and stage.hash_on_disk() != stage.config_hash:
            reason = "its settings, or those of a stage before it, have changed"
            self.set_aside(stage.dir.name, reason)
        stage.dir.mkdir(parents=True, exist_ok=True)
        if not stage.done_on_disk():
            stage.start_clock()
            self._running.append(stage)

    def done(self, name: str) -> dict[str, Any] | None:
        """What a finished stage wrote into ``done.json``; None if it is not finished."""
        return _read_json(self.dir / "stages" / name / "done.json") or None

    def require(self, name: str) -> str:
        """The config hash of an earlier stage; raises `UserError` if that one is not finished."""
        done = self.done(name)
        if done is None or "config_hash" not in done:
            verb = name.replace("_", "-")
            raise UserError(
                f"the {name} stage of {self.dir} is not finished: run `mimo {verb}` on it first"
            )
        return str(done["config_hash"])

    def set_aside(self, name: str, reason: str) -> None:
        """Move a stage's folder to ``<name>.old``, so that the stage starts over."""
        folder = self.dir / "stages" / name
        if folder.exists():
            old = folder.with_name(f"{name}.old")
            if (old / "done.json").exists() and not (folder / "done.json").exists():
                shutil.rmtree(folder)  # a finished result is worth more than what was half done
            else:
                shutil.rmtree(old, ignore_errors=True)
                folder.rename(old)
            print(f"{name}: starting over, because {reason}; the last one is kept in {old}")


class Stage:
    """One stage's folder, its clock, and the marker that says it is finished. From `Run.stage`."""

    def __init__(self, folder: Path, config_hash: str, world: World) -> None:
        self.dir = folder
        self.config_hash = config_hash
        self._world = world
        self._seconds_before = 0.0
        self._memory_before = 0.0
        self._started = time.monotonic()

    def is_done(self) -> bool:
        """Whether this stage finished with the same settings, and its files are still there."""
        return self._world.from_main(self._world.main and self.done_on_disk())

    def done_on_disk(self) -> bool:
        """`is_done` as this process sees it."""
        done = _read_json(self.dir / "done.json")
        here = all((self.dir / name).exists() for name in done.get("holds", ()))
        return here and done.get("config_hash") == self.config_hash

    def hash_on_disk(self) -> str | None:
        """The settings that the folder's contents were made with."""
        record = _read_json(self.dir / "done.json") or _read_json(self.dir / "state.json")
        return record.get("config_hash")

    def start_clock(self) -> None:
        state = _read_json(self.dir / "state.json")
        self._seconds_before = state.get("seconds", 0.0)
        self._memory_before = state.get("peak_memory_gb", 0.0)
        self.save_clock()

    def save_clock(self) -> None:
        """Keep the time and memory used so far. Call it with every checkpoint: after ``kill -9``
        the clock then goes on from where the work goes on. Rank 0's clock counts."""
        if self._world.main:
            atomic_write(self.dir / "state.json", _to_json(self._usage()))

    def finish(self, **info: Any) -> None:
        """Mark the stage as done. ``seconds`` add up over resumes, ``peak_memory_gb`` is the
        largest; ``info`` is kept beside them."""
        if self._world.main:
            self._finish(info)
        self._world.barrier()

    def _finish(self, info: dict[str, Any]) -> None:
        finished = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        holds = sorted(path.name for path in self.dir.iterdir() if path.name != "checkpoints")
        record = {**info, **self._usage(), "finished": finished, "holds": holds}
        atomic_write(self.dir / "done.json", _to_json(record))

    def _usage(self) -> dict[str, Any]:
        seconds = self._seconds_before + time.monotonic() - self._started
        return {
            "config_hash": self.config_hash,
            "seconds": round(seconds, 3),
            "peak_memory_gb": round(max(self._memory_before, peak_memory_gb()), 3),
        }


class Interrupt:
    """Ctrl-C and SIGTERM as a flag that a stage looks at once a step.

    The first signal sets `requested`, so that the stage can write a checkpoint; the second one
    raises `KeyboardInterrupt` where the program stands.
    """

    def __init__(self, speaks: bool = True) -> None:
        self.requested = False
        self._speaks = speaks
        self._owner = 0
        self._previous: dict[int, Any] = {}

    def check(self) -> None:
        """Raise `KeyboardInterrupt` if a stop was requested. For places with nothing to save."""
        if self.requested:
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        self._owner = os.getpid()
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a forked worker: it has nothing to save
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self.requested:
            raise KeyboardInterrupt
        else:
            self.requested = True
            if self._speaks:
                # Not print(): the signal may have come in the middle of one.
                os.write(2, b"\nStopping after this step; once more stops at once.\n")


def peak_memory_gb() -> float:
    """Largest resident memory of this process so far plus that of its largest finished child, in
    1e9 B. The two peaks need not have been at the same time; children that still run are left out.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    users = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(resource.getrusage(user).ru_maxrss for user in users) * unit / 1e9


def require_space(folder: Path | str, needed: int) -> None:
    """Raise `UserError` unless ``needed`` bytes are free where ``folder`` lies."""
    available = shutil.disk_usage(folder).free
    if available < needed:
        raise UserError(f"no space in {folder}: {size(needed)} needed, {size(available)} free")


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or not at all, even after a power cut."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync(path.parent)


@contextlib.contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """A folder to fill that takes the name ``path`` once the block ends without an error.

    An existing ``path`` is replaced. A process that dies between the two renames leaves neither,
    so what must survive (checkpoints) goes under new names.
    """
    temporary = path.with_name(path.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with _filling(temporary, path):
        yield temporary
        publish(temporary, path)


def publish(temporary: Path, path: Path) -> None:
    """Give a filled folder the name ``path`` once it is on disk; an existing one is replaced."""
    _sync_inside(temporary)
    if path.exists():
        shutil.rmtree(path)
    os.replace(temporary, path)
    _sync(path.parent)


def check_new(path: Path) -> None:
    """Raise `UserError` unless nothing but an empty folder has the name ``path``."""
    try:
        free = not os.path.lexists(path) or (
            path.is_dir() and not path.is_symlink() and not any(path.iterdir())
        )
    except (OSError, ValueError) as error:
        raise UserError(f"cannot use the name {path}: {error}") from error
    if not free:
        raise UserError(f"{path} exists already: name another target, or remove it first")


@contextlib.contextmanager
def new_dir(path: Path) -> Iterator[Path]:
    """A folder to fill that takes the new name ``path`` once the block ends without an error.

    Unlike `atomic_dir` it replaces nothing, whatever a user has there, and two processes with one
    target do not meet: the second one to end fails. A process that is killed leaves
    ``.<name>.<random>.tmp`` beside the target.

    Raises:
        UserError: the name is taken, at the beginning or at the end, or cannot be made.
    """
    path = Path(os.path.abspath(path))
    check_new(path)
    temporary = path.parent / f".{path.name[:200]}.{secrets.token_hex(4)}.tmp"
    with _filling(temporary, path):
        yield temporary
        _sync_inside(temporary)
        check_new(path)
        os.rename(temporary, path)  # over an empty folder it works, over anything else it fails
        _sync(path.parent)


@contextlib.contextmanager
def _filling(temporary: Path, path: Path) -> Iterator[None]:
    """The folder ``temporary``, which is to become ``path``; it is gone afterwards."""
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror}") from error
    try:
        yield
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync_inside(folder: Path) -> None:
    for item in folder.rglob("*"):
        _sync(item)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _to_json(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=2) + "\n"


def _read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``; empty if there is none, or none that can be read."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
