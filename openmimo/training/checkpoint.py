"""Training checkpoints: weights, optimiser moments and integers, sharded as the model is.

    <folder>/step-000000200/__<rank>_<n>.distcp  a rank's shards (torch.distributed.checkpoint)
    <folder>/step-000000200/.metadata            which file holds what
    <folder>/step-000000200/state.json           step, data position, counters, digests of the rest

Saving copies the shards to the CPU; a thread writes them while training goes on. A checkpoint gets
its name once all ranks' files are on disk, so it is there whole or not at all. One written by any
number of ranks is read by any number.

Read your own checkpoints only: `.metadata` is a pickle.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from openmimo.errors import UserError
from openmimo.runs import publish, require_space
from openmimo.world import RankError, World

# One process without a process group is what is meant, not a mistake.
warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)

DIGESTS = "sha256"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
STATE = "state.json"


class Checkpoints:
    """The checkpoints of one stage. All methods are called on every rank.

    As a context manager it waits for what is still being written.

    Args:
        folder: where they lie, on a file system that all ranks see.
        world: the ranks.
        keep: how many are kept, the latest ones.
        saved: called on every rank, in the writing thread, when one is complete.
    """

    def __init__(
        self, folder: Path, world: World, keep: int = 2, saved: Callable[[], None] | None = None
    ) -> None:
        self.folder, self._world, self._keep, self._saved = folder, world, keep, saved
        self._group = world.group()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self._mesh: DeviceMesh | None = None  # of CPUs

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            # After an error other ranks may be gone: what the thread waits for has a time limit.
            self._thread.shutdown(wait=self._world.size == 1)

    @property
    def failed(self) -> bool:
        """Whether the last one could not be written; `wait` raises why."""
        written = self._writing
        return written is not None and written.done() and written.exception() is not None

    def wait(self) -> None:
        """Return when nothing is being written any more.

        Raises:
            UserError, OSError: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def save(
        self, step: int, model: nn.Module, optimizer: torch.optim.AdamW, state: dict[str, Any]
    ) -> None:
        """Copy the state of `step` and begin to write it; `state` must be JSON.

        One that is still being written is waited for, and its errors are raised.
        """
        self.wait()
        record = json.dumps({"step": step, **state})
        tensors: dict[str, dict[str, Tensor]] = {
            "model": dict(model.named_parameters()),
            "optimizer": _moments(model, optimizer),
        }
        size = sum(t.numel() * t.element_size() for part in tensors.values() for t in part.values())
        copies = {
            kind: {name: self._copy(tensor) for name, tensor in part.items()}
            for kind, part in tensors.items()
        }
        self._writing = self._thread.submit(self._write, step, copies, record, size)

    def load(self, model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Any] | None:
        """Restore the latest checkpoint in place and return its state; None if there is none.

        Raises:
            UserError: the checkpoint is damaged or belongs to another model, or another rank did
                not answer.
        """
        found = self._world.from_main(self._complete() if self._world.main else [])
        if not found:
            return None
        latest = found[-1]
        try:
            record: dict[str, Any] = json.loads((latest / STATE).read_bytes())
            digests: dict[str, str] = record.pop(DIGESTS)
            names = sorted(digests)[self._world.rank :: self._world.size]
            self._world.together(lambda: _verify(latest, digests, names))
            with self._world.waiting():
                _restore(latest, model, optimizer, self._world, self._group)
        except RankError:
            raise
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError,
                CheckpointException, UserError) as error:  # fmt: skip
            raise UserError(
                f"the checkpoint {latest} is damaged ({str(error).splitlines()[0]}): delete this "
                "folder and repeat the command, it goes on from the checkpoint before"
            ) from error
        return record

    def _copy(self, tensor: Tensor) -> Tensor:
        """A copy on the CPU; a shard stays a shard of the same whole."""
        if not isinstance(tensor, DTensor):
            return tensor.detach().to("cpu", copy=True)
        if self._mesh is None:
            self._mesh = init_device_mesh("cpu", (self._world.size,))
        return DTensor.from_local(
            tensor.to_local().detach().to("cpu", copy=True),
            self._mesh,
            tensor.placements,
            run_check=False,
            shape=tensor.shape,
            stride=tensor.stride(),
        )

    def _complete(self) -> list[Path]:
        """Complete checkpoints, the latest one last; what a killed process left is removed."""
        for half in self.folder.glob("step-*.tmp"):
            shutil.rmtree(half)
        return sorted(self.folder.glob("step-*"))

    def _write(self, step: int, copies: dict[str, Any], record: str, size: int) -> None:
        """In the thread: write the copies, and make them a checkpoint once all ranks have."""
        target = self.folder / f"step-{step:09d}"
        partial = target.with_name(target.name + ".tmp")
        together, main = self._world.together, self._world.main

        def begin() -> None:
            if main:
                self.folder.mkdir(parents=True, exist_ok=True)
                require_space(self.folder, size)
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()

        def write() -> dict[str, str]:
            _save(copies, partial, self._world.size, self._group)
            mine = list(partial.glob(f"__{self._world.rank}_*"))
            if main:
                mine.append(partial / ".metadata")
            return {path.name: digest(path) for path in mine}

        def end() -> None:
            if main:
                digests = {name: value for part in parts for name, value in part.items()}
                (partial / STATE).write_text(json.dumps(json.loads(record) | {DIGESTS: digests}))
                publish(partial, target)
                for old in sorted(self.folder.glob("step-*"))[: -self._keep]:
                    shutil.rmtree(old)

        together(begin, self._group)
        parts = together(write, self._group)
        together(end, self._group)
        if self._saved is not None:
            self._saved()


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(folder: Path, digests: dict[str, str], names: Iterable[str]) -> None:
    for name in names:
        if digest(folder / name) != digests[name]:
            raise ValueError(f"{name} has changed since it was written")


def _moments(model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """AdamW's moments as `<parameter>.exp_avg` and so on."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {
        f"{names[parameter]}.{key}": values[key]
        for parameter, values in optimizer.state.items()
        for key in MOMENTS
    }


def _save(copies: dict[str, Any], folder: Path, size: int, group: Any) -> None:
    """Write this rank's files and, on rank 0, the metadata."""
    writer = dcp.FileSystemWriter(folder)  # it syncs its files
    try:
        dcp.save(copies, storage_writer=writer, process_group=group, no_dist=size == 1)
    except CheckpointException as error:
        # Not an Exception, and its text is a traceback: the first rank's own error says more.
        raise next(iter(error.failures.values()))[0] from None


def _restore(
    folder: Path, model: nn.Module, optimizer: torch.optim.AdamW, world: World, group: Any
) -> None:
    """Read the shards into parameters and moments, in place."""
    reader = dcp.FileSystemReader(folder)
    stored = {
        name: getattr(entry, "size", None)
        for name, entry in reader.read_metadata().state_dict_metadata.items()
    }
    parameters = dict(model.named_parameters())
    weights = {name for name in stored if name.startswith("model.")}
    if weights != {f"model.{name}" for name in parameters}:
        raise KeyError("it holds other tensors than this model")
    for name, parameter in parameters.items():
        if stored[f"model.{name}"] != parameter.shape:
            raise ValueError(f"{name} has another shape")
    moments = {
        name: {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
        for name, parameter in parameters.items()
        if f"optimizer.{name}.step" in stored
    }
    state = {
        "model": {name: parameter.detach() for name, parameter in parameters.items()},
        "optimizer": {
            f"{n}.{key}": t for n, values in moments.items() for key, t in values.items()
        },
    }
    dcp.load(state, storage_reader=reader, process_group=group, no_dist=world.size == 1)
    for name, values in moments.items():
        optimizer.state[parameters[name]] = {
            key: state["optimizer"][f"{name}.{key}"].detach() for key in values
        }
