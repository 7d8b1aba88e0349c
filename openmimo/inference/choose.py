"""One of the engines behind `protocol.InferenceEngine`, by its name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from openmimo.errors import UserError

if TYPE_CHECKING:
    from openmimo.inference.protocol import InferenceEngine

KEY_VARIABLE = "VLLM_API_KEY"
"""Holds the key of a vLLM server, for the server and for us."""


def check_engine_name(name: str) -> None:
    """Raise UserError unless it is `native`, `vllm` or the URL of a vLLM server."""
    if name not in ("native", "vllm") and not name.startswith(("http://", "https://")):
        raise UserError(f"unknown engine {name!r}: it is native, vllm, or the URL of a vLLM server")


@contextmanager
def open_engine(
    name: str, folder: Path, *, slots: int, max_length: int, used_vocab: int
) -> Iterator[InferenceEngine]:
    """An engine on a model folder, as long as the block lasts.

    Args:
        name: `native` (float32, on the CPU), `vllm` (in a process of its own, on a folder that
            `mimo export --to vllm` wrote), or the URL of a vLLM server that serves the folder
            (docs/vllm.md), whose key is in KEY_VARIABLE.
        slots, max_length, used_vocab: as of `engine.Engine`; a server has its own longest length.

    Raises:
        UserError: no such engine or model, or vLLM does not start or answer.
    """
    check_engine_name(name)
    if name == "native":
        import torch  # here: it takes seconds, and a name is checked at once

        from openmimo.inference.engine import Engine
        from openmimo.model.checkpoint import load_model

        model = load_model(folder, dtype=torch.float32)
        yield Engine(model, slots=slots, max_length=max_length, used_vocab=used_vocab, consume=True)
    elif name == "vllm":
        from openmimo.inference.vllm_engine import VllmEngine

        with VllmEngine(folder, slots=slots, max_length=max_length, used_vocab=used_vocab) as own:
            yield own
    else:
        from openmimo.inference.vllm_remote import RemoteVllm

        key = os.environ.get(KEY_VARIABLE)
        with RemoteVllm(
            name, folder=folder, slots=slots, api_key=key, used_vocab=used_vocab
        ) as server:
            yield server
