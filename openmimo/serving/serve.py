"""`mimo serve`: from a model folder to a listening server, and its orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from openmimo.errors import UserError
from openmimo.inference.engine import Engine
from openmimo.inference.memory import cache_bytes, check_memory, weight_bytes
from openmimo.inference.packed import compute_dtype
from openmimo.inference.protocol import InferenceEngine
from openmimo.inference.threads import use_fastest_threads
from openmimo.model.checkpoint import config_without_zeros, load_release, open_model
from openmimo.model.mimo import MiMo
from openmimo.serving.app import Parts, make_app
from openmimo.serving.calls import Limits
from openmimo.serving.service import EngineService
from openmimo.tokenizer import Tokenizer
from openmimo.web.http import Bodies
from openmimo.web.listening import Listening, bind, check_address, stop_signal, url_of

PREFILL_TOKENS = 1024
"""Prompt tokens read at once: a long prompt holds up the other answers for no longer than that."""

STOP_SECONDS = 5.0
"""For the replies to be sent, and for the engine's last step, once all requests have ended."""


@dataclass(frozen=True)
class ServeSettings:
    """How to serve a model.

    host, port: to listen at; port 0 takes a free one.
    name: of the model, for clients; None: the folder's.
    api_key: clients must send it; None: none is asked for.
    device: of the model, as torch names it.
    slots: requests generated at once.
    max_length: tokens of prompt and answer together; None: the model's context.
    max_queue: requests that may wait for a slot.
    max_samples: most `n` of a request.
    max_body_bytes: of a request.
    drafts: tokens that the MTP layers draft in each step; "auto": as many as save time.
    timeout: seconds for a whole request.
    drain: seconds that running requests get after SIGTERM or Ctrl-C.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    api_key: str | None = None
    device: str = "cpu"
    slots: int = 16
    max_length: int | None = None
    max_queue: int = 256
    max_samples: int = 16
    max_body_bytes: int = 8_000_000
    drafts: int | Literal["auto"] = "auto"
    timeout: float = 600.0
    drain: float = 30.0


def serve(folder: Path, settings: ServeSettings) -> None:
    """Serve the model in `folder` until SIGTERM or Ctrl-C.

    Running requests then get `settings.drain` seconds to end; a second signal ends the process at
    once.

    Raises:
        UserError: no such model, impossible settings, or the port is taken.
        Exception: what the engine died of.
    """
    _check(settings)
    listener = bind(settings.host, settings.port)  # first: to load a large model takes minutes
    with contextlib.closing(listener):
        length = check_model(folder, settings)
        model, tokenizer = load_release(folder, settings.device)
        use_fastest_threads(model)
        engine = build_engine(model.eval(), tokenizer, settings, length)
        name = settings.name or folder.resolve().name
        asyncio.run(_serve(engine, tokenizer, listener, name, length, settings))


def check_model(folder: Path, settings: ServeSettings) -> int:
    """Whether a model can be served like this, before its weights are read.

    Returns:
        tokens of prompt and answer together.

    Raises:
        UserError: its folder is damaged, its context or the memory too small for the settings.
    """
    wide, files = open_model(folder)
    config, device = config_without_zeros(wide, folder), torch.device(settings.device)
    length = settings.max_length or config.max_position_embeddings
    if length > config.max_position_embeddings:
        raise UserError(
            f"--max-length is {length}, but the model's context has "
            f"{config.max_position_embeddings} tokens"
        )
    drafts = config.num_nextn_predict_layers
    if settings.drafts != "auto":
        drafts = min(drafts, settings.drafts)
    dtype = compute_dtype(files.dtype, device)
    needed = weight_bytes(config, dtype, drafts)
    needed += cache_bytes(config, dtype, drafts, settings.slots, length)
    what = f"the weights and the caches of {settings.slots} slots of {length} tokens"
    check_memory(needed, device, what, "lower --slots or --max-length")
    return length


def build_engine(
    model: MiMo, tokenizer: Tokenizer, settings: ServeSettings, max_length: int
) -> InferenceEngine:
    """The native engine for these settings; it takes the model's weights with it."""
    return Engine(
        model,
        slots=settings.slots,
        max_length=max_length,
        used_vocab=tokenizer.vocab_size,
        drafts=settings.drafts,
        prefill_tokens=PREFILL_TOKENS,
        consume=True,
    )


def _check(settings: ServeSettings) -> None:
    least = {
        "slots": 1, "max_length": 2, "max_queue": 0, "max_samples": 1, "max_body_bytes": 1000,
        "drafts": 0, "timeout": 1, "drain": 0,
    }  # fmt: skip
    for name, lowest in least.items():
        value = getattr(settings, name)
        if isinstance(value, int | float) and not value >= lowest:
            option = {"max_samples": "max-n"}.get(name, name.replace("_", "-"))
            raise UserError(f"--{option} is {value}; it must be at least {lowest}")
    check_address(settings.port, settings.api_key)
    try:
        device = torch.device(settings.device)
        if device.type not in ("cpu", "cuda"):
            raise UserError(f"--device {settings.device}: use cpu or cuda")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {settings.device}: {str(error).splitlines()[0]}") from error


async def _serve(
    engine: InferenceEngine,
    tokenizer: Tokenizer,
    listener: socket.socket,
    name: str,
    length: int,
    settings: ServeSettings,
) -> None:
    service = EngineService(engine, settings.slots, settings.max_queue)
    limits = Limits(length, settings.max_samples, service.capacity)
    bodies = Bodies(settings.max_body_bytes)
    parts = Parts(name, tokenizer, service, limits, bodies, settings.timeout)
    server = Listening(make_app(parts, settings.api_key), listener, STOP_SECONDS)
    ending = asyncio.create_task(_wait_for_end(service, settings.drain))
    _announce(name, listener, length, engine.stats().cache_bytes, settings)
    await server.run_until(ending)
    service.stop(STOP_SECONDS)
    if service.error is not None:
        raise service.error


async def _wait_for_end(service: EngineService, drain: float) -> None:
    """Until the engine dies, or a signal has come and the requests have ended."""
    stop = asyncio.create_task(stop_signal("running requests"))
    died = asyncio.create_task(service.died.wait())
    await asyncio.wait({died, stop}, return_when=asyncio.FIRST_COMPLETED)
    if not died.done():
        await service.drain(drain)


def _announce(
    name: str, listener: socket.socket, length: int, cache_bytes: int, settings: ServeSettings
) -> None:
    print(f"serving {name} at {url_of(listener)}", flush=True)
    print(
        f"  context {length} tokens, {settings.slots} slots (caches of at most "
        f"{cache_bytes / 1e9:.2f} GB), queue {settings.max_queue}, "
        f"API key {'asked for' if settings.api_key else 'none'}; Ctrl-C stops",
        flush=True,
    )
