"""Qwen2 and Llama models in GGUF files, as a source of `mimo import`.

One tensor is in memory at a time. What a file may say is a closed list: a field that could change
the mathematics and is not on it is refused by name, as is any other architecture.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openmimo.errors import UserError
from openmimo.interop import gguf_tokenizer
from openmimo.interop.gguf_header import TensorInfo, Value, read_header
from openmimo.interop.gguf_library import gguf
from openmimo.interop.gguf_names import published_name
from openmimo.model.folder import Endings
from openmimo.model.layout import EMBEDDING, HEAD, Shape
from openmimo.tokenizer import Tokenizer

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}

# Stored as they are; every other type is dequantised to float32.
_PLAIN = {
    gguf.GGMLQuantizationType.F32: torch.float32,
    gguf.GGMLQuantizationType.F16: torch.float16,
    gguf.GGMLQuantizationType.BF16: torch.bfloat16,
}

# Fields of the architecture, after "llama." or "qwen2.". Those that are read:
_READ = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
}
# Those that may be there if they say what this architecture does anyway:
_NEUTRAL: dict[str, Value] = {
    "expert_count": 0,
    "expert_used_count": 0,
    "attention.sliding_window": 0,
    "attention.causal": True,
    "use_parallel_residual": False,
}
# Those that only record where a linear scaling came from:
_IGNORED = {"rope.scaling.original_context_length", "rope.scaling.finetuned"}

_ADD_BOS = "tokenizer.ggml.add_bos_token"
_LARGEST = 2**31 - 1


class GGUFSource:
    """A GGUF file, described without reading its weights; see `sources.Source`.

    Args:
        path: the file.

    Raises:
        UserError: it cannot be read (`read_header`), holds another architecture or something that
            would change what a plain Qwen2 or Llama computes, or contradicts itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        header = read_header(path)
        self._fields = header.fields
        self._check_kind()
        self._tensors = self._named(header.tensors)
        self.shapes: dict[str, Shape] = {n: tensor.shape for n, tensor in self._tensors.items()}
        kinds = {tensor.kind for tensor in self._tensors.values()}
        for kind in kinds:
            self._check_readable(kind)
        self.stored_as = ", ".join(sorted(kind.name for kind in kinds))
        self.dtype = _PLAIN.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32
        self.own: dict[str, Any] = {}
        self.prefix = "its BOS token" if self._fields.get(_ADD_BOS) is True else ""
        self.config: dict[str, Any] = self._config()
        name = self._fields.get("general.name")
        sound = isinstance(name, str) and name.isprintable() and len(name) <= 100
        self.name = str(name) if sound else path.stem

    def read(self, name: str) -> Tensor:
        """One tensor of `shapes`: float32, float16 or bfloat16 as stored, else float32.

        Raises:
            UserError: the file has changed since it was opened, or the tensor holds infinities or
                NaN.
        """
        info = self._tensors[name]
        tensor = self._load(info, name)
        if not tensor.isfinite().all():
            raise self._fault(
                f"{name} holds NaN or infinities: the model has diverged or the file is damaged"
            )
        if self._architecture == "llama" and (heads := self._rotated_heads(name)):
            return _unpermute(tensor, heads)
        return tensor

    def tokenizer_files(self) -> dict[str, bytes]:
        """tokenizer.json and tokenizer_config.json, rebuilt from the file's fields.

        Raises:
            UserError: see `gguf_tokenizer.to_files`.
        """
        return gguf_tokenizer.to_files(self._fields, self.config["vocab_size"], str(self.path))

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer in the file; None if there is none.

        Raises:
            UserError: it is of another kind than byte-level BPE, or broken.
        """
        if not gguf_tokenizer.has_tokenizer(self._fields):
            return None
        with tempfile.TemporaryDirectory() as folder:
            for name, content in self.tokenizer_files().items():
                Path(folder, name).write_bytes(content)
            return Tokenizer.load(folder)

    def endings(self) -> Endings:
        """The ids that the file names; GGUF has no generation_config.json."""
        return Endings(self.config["bos_token_id"], self.config["eos_token_id"], None, True)

    def copy_papers(self, folder: Path) -> None:
        """A GGUF file brings none."""

    def _check_kind(self) -> None:
        fields = self._fields
        kind = fields.get("general.type", "model")
        if kind != "model":
            raise self._fault(f"it holds a {_shown(kind)}, not a model")
        architecture = fields.get("general.architecture")
        if not isinstance(architecture, str) or architecture not in _ARCHITECTURES:
            raise self._fault(
                f"its architecture is {_shown(architecture)}; {' and '.join(_ARCHITECTURES)} "
                "can be read"
            )
        self._architecture = architecture
        if fields.get("split.count", 1) != 1:
            raise self._fault(
                "it is one part of a split model; join the parts with llama-gguf-split --merge"
            )
        self._rope_scaling()  # has a clearer message than its unknown fields below
        for key, value in fields.items():
            name = key.removeprefix(f"{architecture}.")
            if name == key or name in _READ or name in _IGNORED:
                continue
            if name not in _NEUTRAL or not np.array_equal(value, _NEUTRAL[name]):
                raise self._fault(f"models with {key} = {_shown(value)} are not handled")

    def _named(self, stored: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
        """The tensors by their published names."""
        if "rope_freqs.weight" in stored:
            raise self._fault(
                "RoPE scaled by rope_freqs.weight (Llama 3.1 and later) is not handled"
            )
        tensors: dict[str, TensorInfo] = {}
        for name, info in stored.items():
            published = published_name(name)
            if published is None:
                raise self._fault(f"a {self._architecture} model has no tensor {name}")
            tensors[published] = info
        if EMBEDDING not in tensors:
            raise self._fault("token_embd.weight is missing")
        return tensors

    def _check_readable(self, kind: gguf.GGMLQuantizationType) -> None:
        if kind in _PLAIN:
            return
        try:
            gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError:
            raise self._fault(f"tensors of type {kind.name} cannot be dequantised") from None

    def _config(self) -> dict[str, Any]:
        """The config.json that the model's folder would have in the form of transformers 4."""
        hidden, heads = self._integer("embedding_length"), self._integer("attention.head_count")
        head_dim = self._integer("attention.key_length", hidden // heads)
        for name in ("attention.value_length", "rope.dimension_count"):
            if self._integer(name, head_dim) != head_dim:
                raise self._fault(f"{name} is not the size of a head, {head_dim}")
        vocab_size = self._integer("vocab_size", self.shapes[EMBEDDING][0])
        tokens = gguf_tokenizer.special_ids(self._fields, vocab_size, str(self.path))
        config = {
            "architectures": [_ARCHITECTURES[self._architecture]],
            "model_type": self._architecture,
            "hidden_act": "silu",
            "vocab_size": vocab_size,
            "hidden_size": hidden,
            "intermediate_size": self._integer("feed_forward_length"),
            "num_hidden_layers": self._integer("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._integer("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "rms_norm_eps": self._real("attention.layer_norm_rms_epsilon"),
            "rope_theta": self._real("rope.freq_base", 10_000.0),
            "rope_scaling": self._rope_scaling(),
            "max_position_embeddings": self._integer("context_length"),
            "tie_word_embeddings": HEAD not in self.shapes,
            "bos_token_id": tokens.get("bos"),
            "eos_token_id": tokens.get("eos"),
            "pad_token_id": tokens.get("padding"),
            "torch_dtype": str(self.dtype).removeprefix("torch."),
        }
        if self._architecture == "llama":
            config["attention_bias"] = any(name.endswith("_proj.bias") for name in self.shapes)
        return config

    def _rope_scaling(self) -> dict[str, Any] | None:
        kind = self._fields.get(f"{self._architecture}.rope.scaling.type", "none")
        if kind == "none":
            return None
        if kind != "linear":
            raise self._fault(f"its RoPE scaling is {_shown(kind)}; none and linear can be read")
        return {"rope_type": "linear", "factor": self._real("rope.scaling.factor")}

    def _integer(self, name: str, default: int | None = None) -> int:
        value = self._field(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _LARGEST:
            raise self._fault(f"{self._architecture}.{name} is {_shown(value)}, no count")
        return value

    def _real(self, name: str, default: float | None = None) -> float:
        value = self._field(name, default)
        if not isinstance(value, float) or not math.isfinite(value) or value <= 0:
            raise self._fault(f"{self._architecture}.{name} is {_shown(value)}, no positive number")
        # It is stored in float32; the shortest decimal that means the same number is what the
        # model's own config.json said: 1e-05, not 9.999999747378752e-06.
        return float(str(np.float32(value)))

    def _field(self, name: str, default: Value | None) -> Value:
        value = self._fields.get(f"{self._architecture}.{name}", default)
        if value is None:
            raise self._fault(f"{self._architecture}.{name} is missing")
        return value

    def _load(self, info: TensorInfo, name: str) -> Tensor:
        try:
            with self.path.open("rb") as file:
                file.seek(info.start)
                data = np.fromfile(file, np.uint8, info.size)
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}") from error
        if len(data) < info.size:
            raise self._fault(f"it ends within {name}; has it been replaced?")
        if dtype := _PLAIN.get(info.kind):
            return torch.from_numpy(data).view(dtype).reshape(info.shape)
        block, size = gguf.GGML_QUANT_SIZES[info.kind]
        packed = data.reshape(*info.shape[:-1], info.shape[-1] // block * size)
        with np.errstate(all="ignore"):  # `read` says it better than numpy's warnings
            return torch.from_numpy(gguf.dequantize(packed, info.kind))

    def _rotated_heads(self, name: str) -> int:
        """The number of heads whose rows llama.cpp has reordered in this tensor; 0 if none."""
        if ".q_proj." in name:
            return int(self.config["num_attention_heads"])
        return int(self.config["num_key_value_heads"]) if ".k_proj." in name else 0

    def _fault(self, fault: str) -> UserError:
        return UserError(f"{self.path}: {fault}")


def _unpermute(tensor: Tensor, heads: int) -> Tensor:
    """llama.cpp rotates neighbouring rows of a head in the "llama" architecture, transformers row
    i with row i + head_dim / 2; so its converter interleaves the two halves. This undoes it."""
    rows = tensor.reshape(heads, len(tensor) // heads // 2, 2, *tensor.shape[1:])
    return rows.transpose(1, 2).reshape(tensor.shape)


def _shown(value: Any) -> str:
    """A value out of the file, in a form that fits into a line."""
    if isinstance(value, list | np.ndarray):
        return f"an array of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 and text.isprintable() else ascii(value)[:60] + "..."
