"""What the tests of the engine share: small engines, run to their end, and an exact reference."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from openmimo.inference.engine import Engine
from openmimo.inference.protocol import Completion, Request, RequestId
from openmimo.model.mimo import MiMo

MakeModel = Callable[..., MiMo]
MakeRequests = Callable[..., list[Request]]
Expected = Callable[[Request], list[int]]
MAX_LENGTH = 64


def engine_for(model: MiMo, slots: int = 4, **options: Any) -> Engine:
    return Engine(model, **{"slots": slots, "max_length": MAX_LENGTH, **options})


def finish(engine: Engine) -> dict[RequestId, Completion]:
    """Step until nothing is in flight."""
    done: dict[RequestId, Completion] = {}
    while engine.stats().waiting or engine.stats().active:
        done.update((c.request_id, c) for c in engine.step())
    return done


@torch.inference_mode()
def log_probs_of(model: MiMo, ids: Sequence[int], temperature: float = 1.0) -> Tensor:
    """Full pass: float32 [len(ids) - 1, V], of the tokens after the first."""
    return (model(torch.tensor([list(ids)]))[0, :-1] / (temperature or 1.0)).log_softmax(-1)
