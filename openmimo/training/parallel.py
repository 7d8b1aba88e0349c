"""A model made ready to train: sharded over the ranks with FSDP2, in the precision of [compute].

On one process in float32 the modules stay as they are, so a laptop pays nothing. Everywhere else
each block, each MTP layer and the root (`TrainingLoss`, with embedding, norm and head) is a group
of its own whose weights are gathered when its forward begins. Names stay the published ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.utils.checkpoint import checkpoint

from openmimo.config.schema import ComputeConfig
from openmimo.model.mimo import MiMo
from openmimo.training.loss import Objective, TrainingLoss
from openmimo.training.weights import Weights, fill
from openmimo.world import World


def prepare(
    model: MiMo, weights: Weights, objective: Objective, compute: ComputeConfig, world: World
) -> TrainingLoss:
    """The module to train, with its weights, on this rank's device.

    Args:
        model: on the meta device; parameters that are to stay as they are need no gradient.
        weights: of the whole model; every rank reads all and keeps its shard.
        objective: which losses.
        compute: how; with dtype bfloat16 the optimiser still sees float32 weights and gradients.
        world: the ranks.
    """
    module = TrainingLoss(model, objective, compute.head_chunk)
    layers = [*model.model.layers, *model.mtp_layers]
    for layer in layers:
        _wrap_forward(layer, compute)
    if world.size > 1 or compute.dtype == "bfloat16":
        _shard(module, layers, compute, world)
    module.to_empty(device=world.device)
    fill(model, weights)
    return module


def _shard(
    module: TrainingLoss, layers: list[nn.Module], compute: ComputeConfig, world: World
) -> None:
    world.open_groups()
    mesh = init_device_mesh(world.device.type, (world.size,))
    dtype = torch.bfloat16 if compute.dtype == "bfloat16" else None
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(module, "hidden")
    for part in module.modules():
        if isinstance(part, FSDPModule):
            # Sums, not means: losses are divided by counts over all ranks already.
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)


def _wrap_forward(layer: nn.Module, compute: ComputeConfig) -> None:
    """Compile and checkpoint a layer's forward in place: a wrapping module would change the names
    of its weights."""
    forward: Callable[..., Any] = layer.forward
    if compute.compile:
        forward = torch.compile(forward)
    if compute.activation_checkpointing:
        forward = partial(checkpoint, forward, use_reentrant=False)
    if forward is not layer.forward:
        layer.forward = forward
