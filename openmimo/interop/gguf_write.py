"""A model's trunk as a GGUF file, for llama.cpp.

llama.cpp has no MiMo, but the trunk is a Qwen2 one, so the file says "qwen2" and holds no MTP
layers. Norms and biases stay float32, as llama.cpp's own converter leaves them.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from openmimo.config.schema import ModelConfig
from openmimo.errors import UserError
from openmimo.interop import gguf_tokenizer
from openmimo.interop.gguf_library import gguf
from openmimo.interop.gguf_names import gguf_name
from openmimo.model.layout import Shape, tensor_shapes
from openmimo.runs import require_space
from openmimo.tokenizer import Tokenizer


class _Type(NamedTuple):
    """One way to store numbers, as torch, ggml and the file's own label call it."""

    torch: torch.dtype
    ggml: gguf.GGMLQuantizationType
    label: gguf.LlamaFileType


_TYPES = {
    "float32": _Type(torch.float32, gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "float16": _Type(torch.float16, gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bfloat16": _Type(
        torch.bfloat16, gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16
    ),
}


def write_gguf(
    path: Path | str,
    config: ModelConfig,
    read: Callable[[str], Tensor],
    tokenizer: Tokenizer | None,
    dtype: str,
    name: str,
) -> None:
    """Write the trunk to `path`, which appears whole or not at all; an old file is replaced.

    Tensors are read and written one by one, so memory holds one at a time.

    Args:
        path: where to.
        config: the model's shape; its `rope_theta` is what the file says.
        read: gives the tensor of a published name; asked once for each, in the layout's order.
        tokenizer: if None, llama.cpp can run the model on ids only.
        dtype: of the matrices: float32, float16 or bfloat16.
        name: what llama.cpp calls the model.

    Raises:
        UserError: llama.cpp has no such model or tokenizer, the tensors are not those of `config`,
            a weight is too large for float16, or the disk is full.
    """
    path = Path(path)
    shapes = _trunk(config)
    kinds = {n: _TYPES["float32" if len(shape) == 1 else dtype] for n, shape in shapes.items()}
    writer = gguf.GGUFWriter(None, "qwen2")
    _add_config(writer, config, dtype)
    writer.add_name(name)
    _add_tokenizer(writer, tokenizer, config.vocab_size)
    sizes = {n: math.prod(shape) * kinds[n].torch.itemsize for n, shape in shapes.items()}
    for n, shape in shapes.items():
        # uint16 stands for "not packed into blocks"; raw_dtype decides what is written.
        writer.add_tensor_info(
            gguf_name(n), shape, np.dtype("u2"), sizes[n], raw_dtype=kinds[n].ggml
        )
    data = (_data(read(n), n, shape, kinds[n].torch) for n, shape in shapes.items())
    _write(writer, data, path, sum(sizes.values()))


def _write(writer: gguf.GGUFWriter, data: Iterable[np.ndarray], path: Path, size: int) -> None:
    """Write what `writer` was told, and the tensors' data, in a folder of its own, then rename."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        require_space(path.parent, size)
        with tempfile.TemporaryDirectory(prefix=".gguf-", dir=path.parent) as folder:
            partial = Path(folder) / path.name
            writer.write_header_to_file(partial)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for array in data:
                writer.write_tensor_data(array)
            writer.close()
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # what failed above fails here again
            writer.close()


def _trunk(config: ModelConfig) -> dict[str, Shape]:
    """Published names and shapes of the tensors to write."""
    heads, head_dim = config.num_attention_heads, config.head_dim
    if heads * head_dim != config.hidden_size:
        raise UserError(
            f"{heads} heads of {head_dim} are not hidden_size {config.hidden_size} wide; "
            "llama.cpp's qwen2 has no such models, so this one cannot be written to GGUF"
        )
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind != "linear":
        raise UserError(
            f"llama.cpp's qwen2 has no RoPE scaling of kind {scaling.kind}, so this model cannot "
            "be written to GGUF"
        )
    return dict(tensor_shapes(config.model_copy(update={"num_nextn_predict_layers": 0})))


def _add_config(writer: gguf.GGUFWriter, config: ModelConfig, dtype: str) -> None:
    writer.add_type("model")
    writer.add_file_type(_TYPES[dtype].label)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)
    if config.rope_scaling is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_scaling.factor)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer | None, vocab_size: int) -> None:
    if tokenizer is None:
        writer.add_tokenizer_model("none")
        return
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        files = {file.name: file.read_bytes() for file in Path(folder).iterdir()}
    fields = gguf_tokenizer.from_files(files, vocab_size)
    # A token before every text comes with its id; otherwise nothing reads this one.
    fields.setdefault(gguf.Keys.Tokenizer.BOS_ID, tokenizer.doc_end_id)
    for key, value in fields.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_eot_token_id(tokenizer.eos_id)
    writer.add_pad_token_id(tokenizer.doc_end_id)


def _data(tensor: Tensor, name: str, shape: Shape, dtype: torch.dtype) -> np.ndarray:
    if tuple(tensor.shape) != shape:
        raise UserError(f"{name} is {tuple(tensor.shape)}, the config says {shape}")
    data = tensor.detach().to("cpu", dtype).contiguous()
    if dtype == torch.float16 and not data.isfinite().all():
        raise UserError(f"{name} has numbers too large for float16; write bfloat16 instead")
    if dtype == torch.bfloat16:
        data = data.view(torch.int16)  # numpy has no bfloat16
    array: np.ndarray = data.numpy()
    return array
