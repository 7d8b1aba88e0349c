"""Weights on their way to a vLLM process on the same machine, through shared memory.

A chunk is a block of /dev/shm (POSIX shared memory) with some tensors in it and a table of what
lies where; only the table goes through the engine's RPC. One block is in use at a time, so the way
costs one chunk of memory. vLLM's own ways (NCCL, CUDA IPC) need a GPU on both sides.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from openmimo.config.schema import ModelConfig
from openmimo.errors import UserError
from openmimo.model.layout import EMBEDDING, LAYER, Shape, is_extra, tensor_shapes
from openmimo.model.mimo import MiMo
from openmimo.model.widen import vllm_shape, widen

CHUNK_BYTES = 2**28
SHARED = "/dev/shm"
_ALIGN = 64
"""Bytes; no tensor may start in the middle of a number."""

Named = tuple[str, Tensor]


def published_weights(weights: MiMo | Mapping[str, Tensor], target: ModelConfig) -> Iterator[Named]:
    """The tensors that a folder of shape `target` holds, made from a model of the trained shape.

    The model may be `target`'s own or one that `mimo export --to vllm` widens to it. Extra MTP
    layers are left out, as in the folder.

    Raises:
        UserError: a tensor is missing or of another shape, or the model's RoPE base is not the
            one that the engine was started with. Nothing has been given out then.
    """
    state = weights.state_dict() if isinstance(weights, MiMo) else weights
    shapes = {name: shape for name, shape in tensor_shapes(target) if not is_extra(name)}
    if missing := [name for name in shapes if name not in state]:
        raise UserError(f"the new weights lack {missing[0]}, which vLLM's folder has")
    source = _source_shape(state, target)
    for name, shape in tensor_shapes(source):
        if name in shapes and tuple(state[name].shape) != shape:
            found = tuple(state[name].shape)
            raise UserError(f"the new weights' {name} is {found}; vLLM's model was made of {shape}")
    if isinstance(weights, MiMo):
        _check_rope(weights, target)
    return ((name, widen(name, state[name].detach(), source, target)) for name in shapes)


def _source_shape(state: Mapping[str, Tensor], target: ModelConfig) -> ModelConfig:
    """`target` with the sizes before widening, read off the embedding and the first queries."""
    rows = state[f"{LAYER}0.self_attn.q_proj.weight"].shape[0]
    sizes = {
        "hidden_size": state[EMBEDDING].shape[1],
        "head_dim": rows // target.num_attention_heads,
    }
    return target.model_copy(update=sizes)


def _check_rope(model: MiMo, target: ModelConfig) -> None:
    config = model.config.model_copy(update={"rope_theta": model.rope_base})
    base = vllm_shape(config).rope_theta
    if not math.isclose(base, target.rope_theta, rel_tol=1e-6):
        raise UserError(
            f"the new weights' RoPE base is {model.rope_base}, not that of vLLM's folder, and a "
            "running vLLM cannot change it: export the model again"
        )


@contextmanager
def shared_block(size: int) -> Iterator[tuple[str, Tensor]]:
    """A block of shared memory: its path, and its bytes as uint8 [size].

    Raises:
        UserError: there is no room, or no /dev/shm.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=SHARED, prefix="openmimo-") as file:
            # Reserved now: in a full /dev/shm a later write would kill the process (SIGBUS).
            os.posix_fallocate(file.fileno(), 0, size)
            yield file.name, torch.from_file(file.name, shared=True, size=size, dtype=torch.uint8)
    except OSError as error:
        raise UserError(
            f"{size:,} bytes of shared memory in {SHARED} are needed to pass weights to vLLM: "
            f"{error.strerror}"
        ) from error


def write_chunks(tensors: Iterable[Named], chunk_bytes: int = CHUNK_BYTES) -> Iterator[str]:
    """Put `tensors` into shared memory, a chunk at a time.

    Yields:
        a message for `read_chunk`; its tensors are there until the next message is asked for.
    """
    for chunk in _chunks(tensors, chunk_bytes):
        table: list[tuple[str, str, Shape, int]] = []
        size = 0
        for name, tensor in chunk:
            dtype = str(tensor.dtype).removeprefix("torch.")
            table.append((name, dtype, tuple(tensor.shape), size))
            size += _room(tensor)
        with shared_block(size) as (path, block):
            for (_, tensor), (_, _, _, start) in zip(chunk, table, strict=True):
                _view(block, tensor.dtype, tuple(tensor.shape), start).copy_(tensor)
            chunk.clear()
            yield json.dumps({"path": path, "size": size, "tensors": table})


def read_chunk(message: str) -> list[Named]:
    """The tensors of a message of `write_chunks`, copied out of shared memory."""
    chunk = json.loads(message)
    block = torch.from_file(chunk["path"], shared=True, size=chunk["size"], dtype=torch.uint8)
    return [
        (name, _view(block, getattr(torch, dtype), tuple(shape), start).clone())
        for name, dtype, shape, start in chunk["tensors"]
    ]


def _chunks(tensors: Iterable[Named], limit: int) -> Iterator[list[Named]]:
    chunk: list[Named] = []
    size = 0
    for name, tensor in tensors:
        if chunk and size + _room(tensor) > limit:
            yield chunk
            chunk, size = [], 0
        chunk.append((name, tensor))
        size += _room(tensor)
    if chunk:
        yield chunk


def _room(tensor: Tensor) -> int:
    return -(-tensor.numel() * tensor.element_size() // _ALIGN) * _ALIGN


def _view(block: Tensor, dtype: torch.dtype, shape: Shape, start: int) -> Tensor:
    return block[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
