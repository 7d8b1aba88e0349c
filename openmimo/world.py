"""The processes that train one model together: torchrun starts them, each drives one device.

A single process is a world of one, without torchrun, network or process group: nothing here then
costs anything. What ranks tell each other outside FSDP goes through gloo on the CPU and never waits
for a GPU. Every wait has a deadline, and a message that says who did not answer.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self, TypeVar

from openmimo.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup, Store

T = TypeVar("T")

ROLL_CALL = 5
"""Seconds in which every process that lives answers a roll call."""


class RankError(UserError):
    """Another rank did not answer: nothing here is at fault."""


class World:
    """This process among the others. As a context manager it meets them.

    Attributes:
        rank, size: which of how many processes.
        local_rank: which of this machine's processes, and so which of its GPUs.
        timeout: seconds that a rank waits for the others.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, timeout: int = 0) -> None:
        self.rank, self.size, self.local_rank, self.timeout = rank, size, local_rank, timeout
        self._open = False
        self._store: Store | None = None

    @classmethod
    def from_environment(cls, timeout: int) -> Self:
        """What torchrun's variables say; a world of one without them."""
        names = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
        rank, size, local = (int(os.environ.get(name, default)) for name, default in names.items())
        return cls(rank, size, local, timeout)

    @property
    def main(self) -> bool:
        """Whether this rank owns what there is once: the run folder, metrics, progress."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """This rank's GPU, or the CPU where there is none.

        Raises:
            UserError: this machine has fewer GPUs than processes.
        """
        import torch

        if not torch.cuda.is_available():
            return torch.device("cpu")
        if self.local_rank >= (gpus := torch.cuda.device_count()):
            raise UserError(
                f"this machine has {gpus} GPUs, too few for process {self.local_rank + 1}: give "
                f"torchrun --nproc-per-node {gpus}, or set CUDA_VISIBLE_DEVICES= to use the CPU"
            )
        return torch.device("cuda", self.local_rank)

    def __enter__(self) -> Self:
        if self.size > 1:
            self.open_groups()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._open and kind is None:  # after an error the others may never come to this point
            import torch.distributed as dist

            dist.destroy_process_group()
            self._open = False

    def open_groups(self) -> None:
        """Start the process groups: gloo between CPUs, NCCL between GPUs. A world of one needs
        them only where FSDP does.

        Raises:
            UserError: the others were not there in time.
        """
        if self._open:
            return
        import torch
        import torch.distributed as dist

        device, timeout = self.device, timedelta(seconds=self.timeout or 600)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        store: Store = dist.HashStore()
        with self.waiting():
            if self.size > 1:
                store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
                # After a restart torchrun's store still holds what the dead ones wrote.
                attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
                store = self._store = dist.PrefixStore(f"openmimo/{attempt}", store)
                # A clone, because a client serves one thread at a time.
                arguments = (store.clone(), self.rank)  # type: ignore[attr-defined]
                threading.Thread(target=_answer, args=arguments, daemon=True).start()
            dist.init_process_group(
                backend, store=store, rank=self.rank, world_size=self.size, timeout=timeout
            )
        self._open = True

    def group(self) -> ProcessGroup | None:
        """One more gloo group, for a thread's own collectives; None in a world of one."""
        if self.size == 1:
            return None
        import torch.distributed as dist

        with self.waiting():
            return dist.new_group(backend="gloo", timeout=timedelta(seconds=self.timeout))

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks of a small CPU tensor."""
        if self.size > 1:
            import torch.distributed as dist

            with self.waiting():
                dist.all_reduce(values)
        return values

    def any(self, *flags: bool) -> list[bool]:
        """For each flag whether it is set on some rank: all ranks decide alike."""
        if self.size == 1:
            return list(flags)
        import torch

        return [count > 0 for count in self.sum(torch.tensor(flags, dtype=torch.int64)).tolist()]

    def from_main(self, value: T) -> T:
        """Rank 0's value, on every rank; what the others pass is ignored."""
        if self.size > 1:
            import torch.distributed as dist

            box = [value]
            with self.waiting():
                dist.broadcast_object_list(box, src=0)
            value = box[0]
        return value

    def together(self, work: Callable[[], T], group: ProcessGroup | None = None) -> list[T]:
        """Do `work` on every rank; what it returned, by rank. It may not wait for other ranks.

        Args:
            work: an error in it on one rank is an error on all: none waits for what never comes.
            group: to talk in; None is the default group.

        Raises:
            Exception: what `work` raised here.
            UserError: it failed on another rank.
        """
        if self.size == 1:
            return [work()]
        import torch.distributed as dist

        mine: tuple[T | None, str]
        failure = None
        try:
            mine = work(), ""
        except Exception as error:
            mine, failure = (None, str(error) or type(error).__name__), error
        every: list[Any] = [None] * self.size
        with self.waiting():
            dist.all_gather_object(every, mine, group=group)
        if failure is not None:
            raise failure
        for rank, (_, message) in enumerate(every):
            if message:
                raise UserError(f"rank {rank}: {message}")
        return [value for value, _ in every]

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.any(False)  # an empty message would not wait

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A block that waits for other ranks; a failure of theirs becomes one clear line.

        Raises:
            RankError: a rank has died, or was not there within the time limit.
        """
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not _is_of_others(error):
                raise
            raise RankError(self._roll_call()) from error

    def _roll_call(self) -> str:
        """Who is missing, in a sentence."""
        waiting = set(range(self.size))
        end = time.monotonic() + ROLL_CALL
        try:
            assert self._store is not None
            self._store.set(CALL, "")
            while waiting and time.monotonic() < end:
                time.sleep(0.1)
                waiting = {n for n in waiting if not self._store.check([f"{CALL}/{n}"])}
        except (RuntimeError, AssertionError):  # whoever has the store has died: torchrun or rank 0
            waiting = {0}
        again = "repeat the command: it goes on from the last checkpoint"
        if waiting:
            names = ", ".join(map(str, sorted(waiting)))
            return f"no answer from rank {names}: it has died or hangs, see its last lines; {again}"
        return (
            f"a rank was not ready within compute.collective_timeout = {self.timeout} s, although "
            f"all are alive: find out what is slow, or raise it; {again}"
        )


CALL = "openmimo/roll call"


def _answer(store: Store, rank: int) -> None:
    """In a thread, so that a process that waits for another one answers too."""
    with contextlib.suppress(Exception):
        store.wait([CALL], timedelta(days=1000))
        store.set(f"{CALL}/{rank}", "")


def _is_of_others(error: RuntimeError) -> bool:
    """Whether it comes from communication; gloo's errors are plain ones that name its files."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error)
