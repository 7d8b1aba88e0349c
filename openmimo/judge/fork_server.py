"""A fork server as the supervisor sees it: requests, and what comes back of each."""

import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from openmimo.errors import UserError
from openmimo.judge.cases import Limits
from openmimo.judge.pipes import PipeProcess
from openmimo.judge.sandbox import server
from openmimo.judge.start import python_command

Libraries = Literal["plain", "numpy"]
_START_SECONDS = 60.0
_SLACK_SECONDS = 10.0  # beyond a test's own limits, before its server counts as hung


class NotStartedError(UserError):
    """A server that ended before it was ready. The next one may do better."""


class Outcome(NamedTuple):
    """How a child ended (`server.Result`), and the bytes that it left."""

    ending: int
    status: int
    cpu_seconds: float
    wall_seconds: float
    output: bytes
    report: bytes


class ForkServer:
    """A fork server's process. Whatever goes wrong with it raises OSError, EOFError or ValueError;
    then it is of no more use.

    `writable` is a folder that its programs may make files in; candidates have none.
    """

    def __init__(
        self, unsafe: bool, libraries: Libraries = "plain", writable: Path | None = None
    ) -> None:
        # The environment is ours alone, so nothing of the user's can leak in.
        # LD_BIND_NOW: symbols are bound at the start, not again in each child (13 page faults).
        environment = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "LD_BIND_NOW": "1"}
        if "LD_LIBRARY_PATH" in os.environ:  # an interpreter that finds its libpython by it
            environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        folders = []
        if libraries == "numpy":
            # Threads of a BLAS would not live on in forked children.
            environment |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
            folders = [_folder_of("numpy")]
        options = {
            "unsafe": unsafe,
            "folders": folders,
            "modules": ["numpy"] if folders else [],
            "writable": [str(writable)] if writable else [],
        }
        self._process = PipeProcess(python_command("serve", options), environment)

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.alive()

    def wait_until_ready(self) -> None:
        """Return when the server is locked down and waits for work. UserError if it cannot be."""
        try:
            error = json.loads(self._process.receive(_START_SECONDS))["error"]
        except (EOFError, OSError) as failure:
            raise NotStartedError(
                f"judge: the sandbox process did not start ({failure}): free some memory, or try "
                "again"
            ) from failure
        if error:
            raise UserError(
                f"judge: {error}; programs are not run unprotected. Use a Linux kernel with "
                "landlock and seccomp, or pass --unsafe-local to run them without a sandbox, at "
                "your own risk"
            )

    def interrupt(self) -> None:
        """End the server at once, from another thread than the one that waits for it."""
        self._process.interrupt()

    def kill(self) -> None:
        """End the server at once."""
        self._process.kill()

    def ask(self, kind: int, limits: Limits, blobs: Sequence[bytes]) -> Outcome:
        """One request (kinds are in `server`), and how it went."""
        sizes = [len(blob) for blob in blobs] + [0] * (server.BLOBS - len(blobs))
        header = server.REQUEST.pack(
            kind, limits.cpu_seconds, limits.wall_seconds, limits.memory_mb << 20,
            limits.output_bytes, *sizes,
        )  # fmt: skip
        self._process.send(header + b"".join(blobs), _SLACK_SECONDS)
        reply = self._process.receive(limits.wall_seconds + _SLACK_SECONDS)
        ending, status, cpu, wall, output, report = server.REPLY.unpack_from(reply)
        start = server.REPLY.size
        if len(reply) != start + output + report:
            raise ValueError("a malformed reply of the sandbox")
        files = (reply[start : start + output], reply[start + output :])
        return Outcome(ending, status, cpu, wall, *files)


def _folder_of(package: str) -> str:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"judge: a program imports {package}, which is not installed here")
    return str(Path(spec.origin).parents[1])
