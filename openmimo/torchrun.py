"""What a process owes to the torchrun that started it: to end with it, and to tell it why it ended.

Nothing here does anything in a process that torchrun did not start.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path

LOOKS = 0.5
"""Seconds between two looks at whether torchrun is there."""


def end_with_torchrun() -> None:
    """Get SIGTERM, as from torchrun itself, once torchrun has died, even by `kill -9`.

    Orphans would train on unseen and keep the run's lock. With SIGTERM they stop as with Ctrl-C,
    after a checkpoint.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(torchrun: int) -> None:
    # Not PR_SET_PDEATHSIG: the kernel sends it once for each thread that torchrun had, and a second
    # signal means to stop without a checkpoint.
    while os.getppid() == torchrun:
        time.sleep(LOOKS)
    os.kill(os.getpid(), signal.SIGTERM)


def tell_torchrun(message: str) -> None:
    """Have torchrun's summary of what failed show `message` instead of only an exit code."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        when = str(int(time.time()))
        info = {"py_callstack": message, "timestamp": when}  # the summary shows the callstack
        with contextlib.suppress(OSError):  # torchrun's folder for it may be on a full disk
            Path(path).write_text(json.dumps({"message": {"message": message, "extraInfo": info}}))
