"""A tiny random model, and real servers of it in processes of their own."""

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from openmimo.config.schema import ModelConfig
from openmimo.model.checkpoint import write_model
from openmimo.model.mimo import MiMo
from openmimo.tokenizer import Tokenizer

TEXTS = ["<think>\nthe cat sat on the mat\n</think>\nand looked at the naïve other cat €"] * 20
CONTEXT = 1024


class Server:
    """A `mimo serve` process: url, process, and a client for plain HTTP.

    first: code that the process runs first, to shorten a time limit or break a part.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        first: str = "",
        environment: dict[str, str] | None = None,
    ) -> None:
        code = f"{first}\nimport sys; from openmimo.cli import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", code, "serve", str(folder), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
        watchdog = threading.Timer(60, self.process.kill)
        watchdog.start()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        watchdog.cancel()
        found = re.search(r"http://\S+", line)
        if not found:
            raise AssertionError(f"{line}{self.end()}")
        self.url = found[0]
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def end(self) -> str:
        """Stop it at once; what it wrote to standard error."""
        self.process.kill()
        _, errors = self.process.communicate()
        return errors

    def metric(self, name: str) -> float:
        """The value of a metric, its labels part of the name; 0 if it was never counted."""
        text = self.client.get("/metrics").text
        found = re.search(rf"^openmimo_{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=300)


@pytest.fixture(scope="session")
def model() -> MiMo:
    model = MiMo(
        ModelConfig(
            vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            max_position_embeddings=CONTEXT, num_nextn_predict_layers=2, initializer_range=0.3,
        )
    )  # fmt: skip
    model.init_weights(torch.Generator().manual_seed(0))
    return model.eval()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, model: MiMo, tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    write_model(model, folder, torch.float32, tokenizer)
    return folder


Start = Callable[..., contextlib.AbstractContextManager[Server]]


@pytest.fixture(scope="session")
def start(folder: Path) -> Start:
    """Starts a server with more options, as a context."""

    @contextlib.contextmanager
    def started(*options: str, **more: Any) -> Iterator[Server]:
        server = Server(folder, *options, **more)
        try:
            yield server
        finally:
            server.client.close()
            server.end()

    return started


@pytest.fixture(scope="session")
def server(start: Start) -> Iterator[Server]:
    """One server for all tests that leave it as it was."""
    with start("--slots", "4", "--max-body-bytes", "100000", "--drafts", "2") as server:
        yield server
