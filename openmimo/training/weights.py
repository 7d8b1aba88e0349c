"""Weights into a model and out of it, tensor by tensor, whether it is sharded or not.

A model is made on the meta device, sharded, and filled from a stream of whole tensors; each rank
keeps its part of each. So no rank holds more than its shard and one tensor, and the weights do not
depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from openmimo.config.schema import ModelConfig
from openmimo.model.checkpoint import open_model
from openmimo.model.folder import write_folder, write_order
from openmimo.model.layout import tensor_shapes
from openmimo.model.mimo import MiMo, init_tensor
from openmimo.runs import atomic_dir
from openmimo.world import World

Weights = Iterator[tuple[str, Tensor]]
"""Every tensor of a model by its published name, float32 on the CPU."""


def empty_model(config: ModelConfig) -> MiMo:
    """A model without weights, to be sharded and filled."""
    with torch.device("meta"):
        return MiMo(config)


def random_weights(config: ModelConfig, seed: int) -> Weights:
    """What `MiMo.init_weights` draws from a generator with this seed."""
    generator = torch.Generator().manual_seed(seed)
    for name, shape in tensor_shapes(config):
        tensor = torch.empty(shape)
        init_tensor(name, tensor, config.initializer_range, generator)
        yield name, tensor


def stored_weights(
    folder: Path, config: ModelConfig, source: Callable[[str], str] = str
) -> Weights:
    """Tensors of a model folder.

    Args:
        folder: in the public layout.
        config: of the model to fill, which may have other MTP layers than the folder.
        source: under which name the folder has a tensor of that model.

    Raises:
        UserError: the folder is damaged, or a weight is not finite.
    """
    _, files = open_model(folder)
    for name, _ in tensor_shapes(config):
        yield name, files.read(source(name)).float()


@torch.no_grad()
def fill(model: MiMo, weights: Weights) -> None:
    """Copy weights into a model that has memory for them, into this rank's shards if it has any."""
    parameters = dict(model.named_parameters())
    for name, whole in weights:
        parameter = parameters[name]
        if isinstance(parameter, DTensor):
            # Every rank has the whole tensor and keeps its part: nothing is sent.
            whole = distribute_tensor(
                whole, parameter.device_mesh, parameter.placements, src_data_rank=None
            )
        parameter.copy_(whole)


def save_weights(model: MiMo, folder: Path, world: World) -> None:
    """Write a model folder in float32; a sharded model is gathered tensor by tensor.

    Called on every rank; rank 0 writes, and holds one file's tensors. Errors: those of
    `openmimo.model.folder.write_folder`.
    """
    state = model.state_dict()

    def gather(name: str) -> Tensor:
        tensor = state[name]
        if isinstance(tensor, DTensor):
            tensor = tensor.full_tensor()
        return tensor.cpu() if world.main else tensor

    if world.main:
        config = model.config.model_copy(update={"rope_theta": model.rope_base})
        with atomic_dir(folder) as target:
            write_folder(target, config, gather, torch.float32)
    else:
        with world.waiting():
            for name in write_order(model.config):
                gather(name)
    world.barrier()
