"""Qwen2 and Llama models in GGUF files, read as Hugging Face would name and order them.

One tensor is in memory at a time. What a file may say is a closed list: a field that could change
the mathematics and is not on it is refused by name, as is any other architecture.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from torch import Tensor

from openmimo.errors import UserError
from openmimo.interop import gguf_tokenizer
from openmimo.interop.gguf_header import Header, TensorInfo, Value, read_header
from openmimo.interop.gguf_names import TrunkShape, gguf_name

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}

# Stored as they are; every other type is dequantised to float32.
_PLAIN = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
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

_LARGEST = 2**31 - 1


class GGUFModel:
    """An opened GGUF file.

    Args:
        path: the file.

    Raises:
        UserError: it cannot be read (see `read_header`), or does not hold exactly one whole
            Qwen2 or Llama model of the plain kind.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._header: Header = read_header(self.path)
        self._check_kind()
        shape = self._shape()
        self.shapes: dict[str, tuple[int, ...]] = self._matched(shape)
        """Published tensor name -> shape; `lm_head.weight` is absent if tied."""
        self.config: dict[str, Any] = self._config(shape)
        """In the form of a config.json of transformers 4."""

    @property
    def general(self) -> dict[str, str]:
        """What the file says about itself: name, license, basename and the like."""
        fields = self._header.fields.items()
        texts = ((k, v) for k, v in fields if k.startswith("general.") and isinstance(v, str))
        return {key.removeprefix("general."): text for key, text in texts}

    def read(self, name: str) -> Tensor:
        """One tensor of `shapes`: float32, float16 or bfloat16 as stored, else float32.

        Raises:
            UserError: the file has changed since it was opened.
        """
        info = self._header.tensors[gguf_name(name)]
        tensor = self._load(info, name)
        if self._architecture == "llama" and (heads := self._rotated_heads(name)):
            return _unpermute(tensor, heads)
        return tensor

    def tokenizer_files(self) -> dict[str, bytes]:
        """tokenizer.json and tokenizer_config.json, rebuilt from the file's fields.

        Raises:
            UserError: see `gguf_tokenizer.to_files`.
        """
        fields, vocab_size = self._header.fields, self.config["vocab_size"]
        return gguf_tokenizer.to_files(fields, vocab_size, str(self.path))

    def _check_kind(self) -> None:
        fields = self._header.fields
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
        if "rope_freqs.weight" in self._header.tensors:
            raise self._fault(
                "RoPE scaled by rope_freqs.weight (Llama 3.1 and later) is not handled"
            )
        self._rope_scaling()  # has a clearer message than its unknown fields below
        for key, value in fields.items():
            name = key.removeprefix(f"{architecture}.")
            if name == key or name in _READ or name in _IGNORED:
                continue
            if name not in _NEUTRAL or not np.array_equal(value, _NEUTRAL[name]):
                raise self._fault(f"models with {_shown(key)} = {_shown(value)} are not handled")

    def _shape(self) -> TrunkShape:
        tensors = self._header.tensors
        hidden = self._integer("embedding_length")
        heads = self._integer("attention.head_count")
        key_heads = self._integer("attention.head_count_kv", heads)
        head_dim = self._integer("attention.key_length", hidden // heads)
        for name in ("attention.value_length", "rope.dimension_count"):
            if self._integer(name, head_dim) != head_dim:
                raise self._fault(f"{name} is not the size of a head, {head_dim}")
        if heads % key_heads or head_dim % 2:
            raise self._fault(
                f"{heads} heads of {head_dim}, {key_heads} of them for keys, cannot be"
            )
        embedding = tensors.get("token_embd.weight")
        if embedding is None:
            raise self._fault("token_embd.weight is missing")
        layers = self._integer("block_count")
        if layers > len(tensors):
            raise self._fault(f"it has {layers} layers, but only {len(tensors)} tensors")
        return TrunkShape(
            vocab_size=self._integer("vocab_size", embedding.shape[0]),
            hidden_size=hidden,
            intermediate_size=self._integer("feed_forward_length"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=key_heads,
            head_dim=head_dim,
            # Every Qwen2 has them; of the Llamas some, and then in every layer.
            qkv_bias=self._architecture == "qwen2" or "blk.0.attn_q.bias" in tensors,
            o_bias="blk.0.attn_output.bias" in tensors,
            tied="output.weight" not in tensors,
        )

    def _matched(self, shape: TrunkShape) -> dict[str, tuple[int, ...]]:
        """The tensors that `shape` promises, all of which are there, and no others."""
        tensors = self._header.tensors
        expected = shape.tensors()
        names = {gguf_name(name): name for name in expected}
        if unexpected := sorted(tensors.keys() - names.keys()):
            raise self._fault(f"the tensor {_shown(unexpected[0])} has no place in this model")
        if missing := sorted(names.keys() - tensors.keys()):
            raise self._fault(f"{len(missing)} tensors are missing, the first is {missing[0]}")
        for stored, name in names.items():
            found, wanted = tensors[stored].shape, expected[name]
            if found != wanted:
                raise self._fault(f"{stored} is {found}, the file's own sizes say {wanted}")
        for kind in {tensor.kind for tensor in tensors.values()}:
            self._check_readable(kind)
        return expected

    def _check_readable(self, kind: GGMLQuantizationType) -> None:
        if kind in _PLAIN:
            return
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError:
            raise self._fault(f"tensors of type {kind.name} cannot be dequantised") from None

    def _config(self, shape: TrunkShape) -> dict[str, Any]:
        tokens = gguf_tokenizer.special_ids(self._header.fields, shape.vocab_size, str(self.path))
        return {
            "architectures": [_ARCHITECTURES[self._architecture]],
            "model_type": self._architecture,
            "hidden_act": "silu",
            "vocab_size": shape.vocab_size,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.num_hidden_layers,
            "num_attention_heads": shape.num_attention_heads,
            "num_key_value_heads": shape.num_key_value_heads,
            "head_dim": shape.head_dim,
            "rms_norm_eps": self._real("attention.layer_norm_rms_epsilon"),
            "rope_theta": self._real("rope.freq_base", 10_000.0),
            "rope_scaling": self._rope_scaling(),
            "max_position_embeddings": self._integer("context_length"),
            "tie_word_embeddings": shape.tied,
            "attention_bias": shape.qkv_bias,
            "bos_token_id": tokens.get("bos"),
            "eos_token_id": tokens.get("eos"),
            "pad_token_id": tokens.get("padding"),
            "torch_dtype": self._dtype(),
        }

    def _rope_scaling(self) -> dict[str, Any] | None:
        kind = self._header.fields.get(f"{self._architecture}.rope.scaling.type", "none")
        if kind == "none":
            return None
        if kind != "linear":
            raise self._fault(f"its RoPE scaling is {_shown(kind)}; none and linear can be read")
        return {"rope_type": "linear", "factor": self._real("rope.scaling.factor")}

    def _dtype(self) -> str:
        """The type of all matrices if they share one that torch has, else float32."""
        kinds = {t.kind for t in self._header.tensors.values() if len(t.shape) > 1}
        dtype = _PLAIN.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32
        return str(dtype).removeprefix("torch.")

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
        value = self._header.fields.get(f"{self._architecture}.{name}", default)
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
        block, size = GGML_QUANT_SIZES[info.kind]
        packed = data.reshape(*info.shape[:-1], info.shape[-1] // block * size)
        return torch.from_numpy(dequantize(packed, info.kind))

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
