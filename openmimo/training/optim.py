"""AdamW as the report uses it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from openmimo.config.schema import OptimizerConfig


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig
) -> torch.optim.AdamW:
    """AdamW over the parameters that require a gradient; the learning rate is set step by step.

    No weight decay on norms, biases and embeddings.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            bare = parameter.ndim < 2 or "embed_tokens" in name
            (plain if bare else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), fused=True)


def update(optimizer: torch.optim.Optimizer, learning_rate: float, clip: float) -> float:
    """Clip, step and clear the gradients.

    Returns:
        the gradient norm before clipping, over all shards. A step whose norm is not finite changes
        nothing.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    whole = nn.utils.clip_grad_norm_(parameters, clip)
    norm = float(whole.full_tensor() if isinstance(whole, DTensor) else whole)
    if math.isfinite(norm):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
