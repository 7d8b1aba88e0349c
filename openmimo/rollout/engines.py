"""The engines that answer prompts: in this process, on a Ray cluster, or vLLM servers.

docs/rollout-engines.md says how to choose.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import torch

from openmimo.config.schema import ComputeConfig, ModelConfig
from openmimo.errors import UserError
from openmimo.inference.choose import KEY_VARIABLE
from openmimo.inference.engine import Collect, Engine
from openmimo.inference.protocol import InferenceEngine
from openmimo.model.mimo import MiMo
from openmimo.rollout.driver import EngineSeat

RESTART_SECONDS = 300.0
"""How long one restart is tried: a server, or room on a cluster, may come back late."""
_PAUSE = 2.0


@dataclass(frozen=True)
class EngineSettings:
    """What the engines must be able to do.

    slots: sequences that each decodes at once.
    max_length: longest prompt plus answer, in tokens.
    used_vocab: ids from this one on are never sampled.
    drafts: see `inference.engine.Engine`; a vLLM server drafts what it was told at its start.
    """

    slots: int
    max_length: int
    used_vocab: int
    drafts: int | Literal["auto"] = 0

    def native(self, model: MiMo, collect: Collect | None = None, consume: bool = False) -> Engine:
        """The native engine with these settings; see `inference.engine.Engine`."""
        return Engine(
            model,
            slots=self.slots,
            max_length=self.max_length,
            used_vocab=self.used_vocab,
            drafts=self.drafts,
            collect=collect,
            consume=consume,
        )


@contextmanager
def open_engines(
    compute: ComputeConfig, settings: EngineSettings, model: MiMo, collect: Collect | None = None
) -> Iterator[list[EngineSeat]]:
    """The engines of `compute.rollouts`, while the context lasts.

    Only the native one has the model's weights already: the others need
    `RolloutDriver.update_weights` before the first step.

    Args:
        model: of the shape that the engines get weights of.
        collect: for the native engine alone (`inference.engine.Engine`).

    Raises:
        UserError: an engine cannot be had as wanted; the message says why.
    """
    with ExitStack() as stack:
        if compute.rollouts == "native":
            engine = settings.native(model, collect)
            yield [EngineSeat(engine, settings.slots)]
            return
        if collect is not None:
            raise UserError(
                "rl.mtp_refresh_steps needs the native engine's hidden states: set it to 0, or "
                'compute.rollouts to "native"'
            )
        if compute.rollouts == "ray":
            places = _ray_places(compute, settings, model, stack)
        else:
            places = _server_places(compute.rollouts.split(","), settings, model, stack)
        with ThreadPoolExecutor(len(places)) as threads:  # each takes a while
            engines = list(threads.map(_Place.start, places))
        yield [
            EngineSeat(engine, settings.slots, place.restart)
            for engine, place in zip(engines, places, strict=True)
        ]


def repeatable(compute: ComputeConfig) -> bool:
    """Whether a rollout step can be repeated to the last bit: it has one engine, in this process,
    so that what happens when can be counted in its decode steps."""
    return compute.rollouts == "native"


class _Closable(InferenceEngine, Protocol):
    def close(self) -> None: ...


class _Place:
    """Where an engine is wanted, and the one that is there."""

    def __init__(self, make: Callable[[], _Closable], stack: ExitStack) -> None:
        self._make = make
        self._engine: _Closable | None = None
        self._closed = threading.Event()
        self._lock = threading.Lock()
        stack.callback(self.close)

    def start(self) -> InferenceEngine:
        """Make the engine."""
        engine = self._make()
        with self._lock:
            if not self._closed.is_set():
                self._engine = engine
                return engine
        engine.close()  # it has come too late
        raise UserError("the engines are closed")

    def restart(self) -> InferenceEngine:
        """Make another one; the last is dead."""
        self._end()
        until = time.monotonic() + RESTART_SECONDS
        while True:
            try:
                return self.start()
            except UserError:
                if time.monotonic() > until or self._closed.wait(_PAUSE):
                    raise

    def close(self) -> None:
        """End the engine, also one that is being made."""
        with self._lock:
            self._closed.set()
        self._end()

    def _end(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()


@dataclass(frozen=True)
class NativeFactory:
    """Makes a native engine in another process, on its GPU if it has one. Its weights are yet to
    come, so no disk has to be shared."""

    config: ModelConfig
    rope_base: float
    dtype: torch.dtype
    settings: EngineSettings

    def __call__(self) -> Engine:
        with torch.device("meta"):
            model = MiMo(self.config)
        model.rope_base = self.rope_base
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = model.to(self.dtype).to_empty(device=device)
        return self.settings.native(model, consume=True)


def _ray_places(
    compute: ComputeConfig, settings: EngineSettings, model: MiMo, stack: ExitStack
) -> list[_Place]:
    from openmimo.cluster import session  # Ray is an extra
    from openmimo.cluster.engine import RayEngine
    from openmimo.cluster.weights import WeightStore

    session.join(cpus=math.ceil(compute.ray_engines * compute.ray_cpus))
    stack.callback(session.leave)
    store = WeightStore()
    dtype = next(model.parameters()).dtype
    factory = NativeFactory(model.config, model.rope_base, dtype, settings)
    options = {
        "num_cpus": compute.ray_cpus,
        "num_gpus": compute.ray_gpus,
        "scheduling_strategy": "SPREAD",
    }

    def make() -> RayEngine:
        return RayEngine(factory, store=store, options=options)

    return [_Place(make, stack) for _ in range(compute.ray_engines)]


def _server_places(
    urls: Sequence[str], settings: EngineSettings, model: MiMo, stack: ExitStack
) -> list[_Place]:
    from openmimo.inference.vllm_remote import RemoteVllm

    def connect(url: str) -> RemoteVllm:
        engine = RemoteVllm(
            url,
            slots=settings.slots,
            api_key=os.environ.get(KEY_VARIABLE),
            used_vocab=settings.used_vocab,
        )
        try:
            engine.check_weights(model)
            if engine.max_length < settings.max_length:
                needed = settings.max_length
                raise UserError(
                    f"the vLLM server {url} takes {engine.max_length} tokens, but prompt and "
                    f"answer may have {needed}: start it with --max-model-len {needed}"
                )
        except BaseException:
            engine.close()
            raise
        return engine

    return [_Place(partial(connect, url.strip()), stack) for url in urls]
