"""The model as the engine runs it: joined matrices, a cache, and as few operations as possible.

It computes what `model.mimo.MiMo` computes. At small sizes a decode step is bound by the number of
operations, not by their work. So the matrices that read one input are joined, a residual is added
inside a matrix product, RoPE tables are made once, and the query heads that share a key head are
attended to as if they were more queries of it, which spares copies of the keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from openmimo.config.schema import ModelConfig
from openmimo.errors import UserError
from openmimo.inference.cache import KVCache
from openmimo.inference.matrix import Matrix, bfloat16_rows_pay
from openmimo.model.layout import EMBEDDING, HEAD, NORM, tensor_shapes
from openmimo.model.mimo import MiMo
from openmimo.model.rope import rope_tables

Weights = Callable[[str], Tensor]

SMALL = 500_000_000
"""Parameters of a model that is small beside the memory of any machine."""


@dataclass(frozen=True)
class Maker:
    """Makes the parameters of one model."""

    dtype: torch.dtype
    device: torch.device
    single_rows: torch.dtype | None

    def vector(self, size: int) -> Tensor:
        """A bias or the scale of a norm."""
        return torch.empty(size, dtype=self.dtype, device=self.device)

    def matrix(self, rows: int, columns: int) -> Matrix:
        """A weight [rows, columns]."""
        return Matrix((rows, columns), self.dtype, self.device, self.single_rows)


class Span:
    """What all layers of one forward pass share: which rows, which positions, who sees whom.

    Args:
        rows: consecutive rows of the cache, N of them.
        positions: int64 [N, T].
        length: cache entries that are read; more than any position.
        model: for its RoPE tables.
    """

    def __init__(self, model: PackedModel, rows: slice, positions: Tensor, length: int) -> None:
        self.shape = positions.shape
        self.rows, self.positions, self.length = rows, positions, length
        self.index = torch.arange(rows.start, rows.stop, device=positions.device)[:, None]
        self.cos, self.sin = model.cos[positions][:, :, None], model.sin[positions][:, :, None]
        seen = torch.arange(length, device=positions.device) <= positions[..., None]
        mask = torch.zeros(seen.shape, dtype=model.dtype, device=positions.device)
        mask.masked_fill_(~seen, float("-inf"))
        if self.shape[1] > 1:  # the queries of all heads that share a key head follow one another
            mask = mask[:, None].expand(-1, model.groups, -1, -1).flatten(1, 2)
        self.mask = mask[:, None]


class PackedBlock:
    """One pre-norm layer."""

    def __init__(self, config: ModelConfig, make: Maker) -> None:
        size, head = config.hidden_size, config.head_dim
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.root_eps = torch.tensor(config.rms_norm_eps**0.5, device=make.device)
        self.qkv = make.matrix((self.heads + 2 * self.kv_heads) * head, size)
        self.qkv_bias = make.vector(self.qkv.shape[0])
        self.out = make.matrix(size, self.heads * head)
        self.gate_up = make.matrix(2 * config.intermediate_size, size)
        self.down = make.matrix(size, config.intermediate_size)
        self.norm, self.mlp_norm = make.vector(size), make.vector(size)

    def load(self, weights: Weights, name: str) -> None:
        """Copy the layer called `name`."""
        attention, mlp = f"{name}.self_attn", f"{name}.mlp"
        qkv = [f"{attention}.{part}_proj" for part in "qkv"]
        self.qkv.load(torch.cat([weights(f"{part}.weight") for part in qkv]))
        self.qkv_bias.copy_(torch.cat([weights(f"{part}.bias") for part in qkv]))
        self.out.load(weights(f"{attention}.o_proj.weight"))
        parts = [weights(f"{mlp}.{part}_proj.weight") for part in ("gate", "up")]
        self.gate_up.load(torch.cat(parts))
        self.down.load(weights(f"{mlp}.down_proj.weight"))
        self.norm.copy_(weights(f"{name}.input_layernorm.weight"))
        self.mlp_norm.copy_(weights(f"{name}.post_attention_layernorm.weight"))

    def __call__(self, x: Tensor, span: Span, cache: KVCache, layer: int) -> Tensor:
        """x [N * T, D] -> the same shape; keys and values go to `layer` of the cache."""
        attended = self._attend(rms_norm(x, self.norm, self.root_eps), span, cache, layer)
        x = self.out.add_to(x, attended)
        gate, up = self.gate_up(rms_norm(x, self.mlp_norm, self.root_eps)).chunk(2, dim=-1)
        return self.down.add_to(x, F.silu(gate).mul_(up))

    def _attend(self, x: Tensor, span: Span, cache: KVCache, layer: int) -> Tensor:
        (rows, steps), heads, groups = span.shape, self.heads, self.heads // self.kv_heads
        qkv = self.qkv(x, self.qkv_bias).view(rows, steps, -1, span.cos.shape[-1])
        rotate(qkv[:, :, : heads + self.kv_heads], span.cos, span.sin)
        cache.write(layer, span.index, span.positions, qkv[:, :, heads:])
        q = qkv[:, :, :heads].unflatten(2, (self.kv_heads, groups))  # [N, T, kv, groups, head]
        q = q.permute(0, 2, 3, 1, 4).flatten(2, 3)
        k, v = cache.read(layer, span.rows, span.length)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=span.mask)
        out = out.unflatten(2, (groups, steps)).permute(0, 3, 1, 2, 4)
        return out.reshape(rows * steps, -1)


class PackedMTPLayer(PackedBlock):
    """An MTP layer; see `model.mimo.MTPLayer`."""

    def __init__(self, config: ModelConfig, make: Maker) -> None:
        super().__init__(config, make)
        size = config.hidden_size
        self.input = make.matrix(size, 2 * size)
        self.hidden_norm, self.token_norm = make.vector(size), make.vector(size)
        self.final_norm = make.vector(size)

    def load(self, weights: Weights, name: str) -> None:
        """Copy the layer called `name`."""
        super().load(weights, name)
        self.input.load(weights(f"{name}.input_proj.weight"))
        self.hidden_norm.copy_(weights(f"{name}.hidden_layernorm.weight"))
        self.token_norm.copy_(weights(f"{name}.token_layernorm.weight"))
        self.final_norm.copy_(weights(f"{name}.final_layernorm.weight"))

    def draft(
        self, hidden: Tensor, embedding: Tensor, span: Span, cache: KVCache, layer: int
    ) -> Tensor:
        """hidden, embedding [N * T, D] -> the head's input, the same shape."""
        both = torch.cat(
            [
                rms_norm(hidden, self.hidden_norm, self.root_eps),
                rms_norm(embedding, self.token_norm, self.root_eps),
            ],
            dim=-1,
        )
        return rms_norm(self(self.input(both), span, cache, layer), self.final_norm, self.root_eps)


class PackedModel:
    """A copy of a model's weights, laid out for inference.

    Args:
        model: on the device to run on.
        length: positions that RoPE tables are made for.
        mtp_layers: how many of the model's MTP layers to take.
        dtype: of the weights, the computation and the cache; default: `compute_dtype`.
        draft_vocab: ids below this can be drafted; None: all.
        consume: empty each of the model's parameters as it is copied, so that at no time there are
            two copies of all weights; the model cannot be used afterwards.
    """

    def __init__(
        self,
        model: MiMo,
        length: int,
        mtp_layers: int = 0,
        dtype: torch.dtype | None = None,
        draft_vocab: int | None = None,
        consume: bool = False,
    ) -> None:
        config, weight = model.config, model.lm_head.weight
        self.config, self.device = config, weight.device
        self.dtype = dtype or compute_dtype(weight.dtype, weight.device)
        self.groups = config.num_attention_heads // config.num_key_value_heads
        self._length = length
        # Twice the memory of a small model is little, and its single rows are much faster.
        small = sum(math.prod(shape) for _, shape in tensor_shapes(config)) < SMALL
        narrow = weight.dtype == torch.bfloat16 != self.dtype and bfloat16_rows_pay()
        rows = torch.bfloat16 if narrow else self.dtype
        make = Maker(self.dtype, self.device, rows if small else None)
        self.root_eps = torch.tensor(config.rms_norm_eps**0.5, device=self.device)
        self.layers = [PackedBlock(config, make) for _ in range(config.num_hidden_layers)]
        self.mtp_layers = [PackedMTPLayer(config, make) for _ in range(mtp_layers)]
        self.embedding = torch.empty(weight.shape, dtype=self.dtype, device=self.device)
        self.head = make.matrix(*weight.shape)
        self.draft_head = self.head
        if mtp_layers and draft_vocab is not None and draft_vocab < config.vocab_size:
            self.draft_head = make.matrix(draft_vocab, config.hidden_size)
        self.norm = make.vector(config.hidden_size)
        tables = torch.empty(2, length, config.head_dim, device=self.device)
        self.cos, self.sin = tables  # written in place: a graph reads them where they are
        self._load(taken_from(model) if consume else model.get_parameter, model.rope_base)

    def _blocks(self) -> list[tuple[str, PackedBlock]]:
        """Every layer with its name in a state dict."""
        kinds = ("layers", self.layers), ("mtp_layers", self.mtp_layers)
        return [
            (f"model.{kind}.{index}", block)
            for kind, blocks in kinds
            for index, block in enumerate(blocks)
        ]

    @torch.no_grad()
    def update(self, weights: MiMo | Mapping[str, Tensor]) -> None:
        """Copy other weights over the present ones.

        Raises:
            UserError: a tensor is missing or has another shape.
        """
        rope_base = weights.rope_base if isinstance(weights, MiMo) else self._rope_base
        tensors = weights.state_dict() if isinstance(weights, MiMo) else weights
        self._check(tensors)
        self._load(tensors.__getitem__, rope_base)

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        """Before anything is copied: a half-copied model would go on as if nothing was wrong."""
        taken = self.config.model_copy(update={"num_nextn_predict_layers": len(self.mtp_layers)})
        for name, shape in tensor_shapes(taken):
            if name not in tensors:
                raise UserError(f"the new weights lack {name}: are they of the same model?")
            if tuple(tensors[name].shape) != shape:
                raise UserError(
                    f"{name} has the shape {tuple(tensors[name].shape)} in the new weights, but "
                    f"{shape} in the model: are they of the same model?"
                )

    def _load(self, read: Weights, rope_base: float) -> None:
        def weights(name: str) -> Tensor:
            return read(name).detach().to(self.device, self.dtype)

        for name, block in self._blocks():
            block.load(weights, name)
        self.embedding.copy_(weights(EMBEDDING))
        head = weights(HEAD)
        self.head.load(head)
        if self.draft_head is not self.head:
            self.draft_head.load(head[: self.draft_head.shape[0]])
        self.norm.copy_(weights(NORM))
        self._rope_base = rope_base
        positions = torch.arange(self._length, device=self.device)[None]
        config = self.config
        cos, sin = rope_tables(positions, config.head_dim, rope_base, config.rope_scaling)
        sin = sin[0, 0]
        half = sin.shape[-1] // 2
        self.cos.copy_(cos[0, 0])
        self.sin.copy_(torch.cat([-sin[:, :half], sin[:, half:]], dim=-1))

    def hidden(self, ids: Tensor, span: Span, cache: KVCache) -> Tensor:
        """Trunk output before the final norm, [N, T, D], of ids int64 [N, T]."""
        x = F.embedding(ids.reshape(-1), self.embedding)
        for index, layer in enumerate(self.layers):
            x = layer(x, span, cache, index)
        return x.view(*ids.shape, -1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [..., vocab] of `hidden`'s output."""
        rows = rms_norm(hidden, self.norm, self.root_eps).flatten(0, -2)
        return self.head(rows).view(*hidden.shape[:-1], -1)

    def draft(self, layer: int, hidden: Tensor, ids: Tensor, span: Span, cache: KVCache) -> Tensor:
        """What `MiMo.mtp_draft` computes, [N, T, D]; MTP layer i uses layer i of the cache."""
        hidden, embedding = hidden.flatten(0, 1), F.embedding(ids.reshape(-1), self.embedding)
        if self.config.mtp_hidden == "post_norm":
            hidden = rms_norm(hidden, self.norm, self.root_eps)
        if self.config.mtp_mask_first:
            embedding = embedding * (span.positions != 0).reshape(-1, 1)
        return (
            self.mtp_layers[layer].draft(hidden, embedding, span, cache, layer).view(*ids.shape, -1)
        )


def taken_from(model: MiMo) -> Weights:
    """Reads parameters by name; the model loses each one that is read."""

    def take(name: str) -> Tensor:
        parameter = model.get_parameter(name)
        tensor = parameter.detach()
        parameter.data = tensor.new_empty(0)
        return tensor

    return take


def rms_norm(x: Tensor, weight: Tensor, root_eps: Tensor) -> Tensor:
    """`model.mimo.RMSNorm` in five short operations: torch's own takes twice the time."""
    wide = x.float()
    size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).mul_(x.shape[-1] ** -0.5)
    return (wide / torch.hypot(size, root_eps)).to(x.dtype) * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """RoPE in place: x [N, T, heads, head_dim], tables [N, T, 1, head_dim].

    The first half of `sin` has the opposite sign, so that the swapped halves need none.
    """
    wide = x.float()
    first, second = wide.chunk(2, dim=-1)
    swapped = torch.cat([second, first], dim=-1)
    if wide is x:
        x.mul_(cos).addcmul_(swapped, sin)
    else:
        x.copy_((wide * cos).addcmul_(swapped, sin))


def compute_dtype(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """That of the weights, or float32 on a CPU without instructions for narrower ones."""
    if device.type == "cpu" and not cpu_has_bfloat16():
        return torch.float32
    return torch.float32 if stored == torch.float16 else stored


def cpu_has_bfloat16() -> bool:
    """Whether bfloat16 products are fast here; without AVX-512 BF16 or AMX they are emulated."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
