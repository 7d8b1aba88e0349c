"""A helper process spoken to in messages over its standard input and output, with deadlines."""

import os
import select
import struct
import subprocess
import time
from collections.abc import Mapping, Sequence

_LENGTH = struct.Struct("<I")


class PipeProcess:
    """A child process and its two pipes. Every wait has a deadline; `kill` always reaps.

    Started by `subprocess` (no fork of a threaded parent), in its own session so that Ctrl-C in a
    terminal reaches the parent only. Both pipes close when the parent dies, however it dies.
    """

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(environment),
            bufsize=0,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._input, False)
        os.set_blocking(self._output, False)
        self._writable, self._readable = select.poll(), select.poll()
        self._writable.register(self._input, select.POLLOUT)
        self._readable.register(self._output, select.POLLIN)

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, data: bytes, seconds: float) -> None:
        """Write all of `data`. TimeoutError after `seconds`; OSError if the process is gone."""
        deadline = time.monotonic() + seconds
        view = memoryview(data)
        while view:
            _wait(self._writable, deadline)
            view = view[os.write(self._input, view) :]

    def receive(self, seconds: float) -> bytes:
        """Read one message (`<I` length, then that many bytes).

        TimeoutError after `seconds`; EOFError if the process ended.
        """
        deadline = time.monotonic() + seconds
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size, deadline))
        return bytes(self._read(length, deadline))

    def _read(self, size: int, deadline: float) -> bytearray:
        data = bytearray()
        while len(data) < size:
            _wait(self._readable, deadline)
            chunk = os.read(self._output, size - len(data))
            if not chunk:
                raise EOFError("the process ended")
            data += chunk
        return data

    def interrupt(self) -> None:
        """End the process at once, and leave the pipes to the thread that may be reading them."""
        self._process.kill()

    def kill(self) -> None:
        """End the process at once, reap it and close the pipes. May be called more than once."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            pipe.close()


def _wait(poll: select.poll, deadline: float) -> None:
    milliseconds = max(0.0, deadline - time.monotonic()) * 1000
    if not poll.poll(milliseconds):
        raise TimeoutError("no answer within the deadline")
