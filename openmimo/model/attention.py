"""Attention over packed rows: causal, and no document sees another.

Which documents there are follows from `positions` alone. `attention` works that out once for a
forward pass; all layers call what it returns. Three back-ends give the same numbers:

- SDPA: on a CPU one document after the other with its causal kernel (for 2048 tokens of documents
  of 128, forward and backward: 42 ms, where a mask takes 610), elsewhere under a boolean mask;
- `varlen_attn` (torch >= 2.10): CUDA in bfloat16 or float16;
- FlexAttention with a block mask: CUDA where torch is older.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from openmimo.model.masks import document_mask, document_starts


class Attend(Protocol):
    """Attention of one forward pass."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, T, heads, d], k and v [B, T, kv_heads, d] -> [B, T, heads, d]."""


def attention(positions: Tensor, dtype: torch.dtype) -> Attend:
    """The back-end for this device and type.

    Args:
        positions: int64 [B, T], restarting at 0 with each document.
        dtype: of queries, keys and values.
    """
    if positions.device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        return Varlen(positions) if has_varlen() else Flex(positions)
    return PerDocument(positions) if positions.device.type == "cpu" else Masked(positions)


class Masked:
    """SDPA under a boolean mask: the reference for the others."""

    def __init__(self, positions: Tensor) -> None:
        self._mask = document_mask(positions)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _sdpa(q, k, v, attn_mask=self._mask)


class PerDocument:
    """SDPA's causal kernel for each document: nothing is computed that a mask would hide."""

    def __init__(self, positions: Tensor) -> None:
        starts = document_starts(positions)
        self._rows = bool((starts.sum(dim=1) == 1).all())  # each row is one document
        bounds = [*starts.flatten().nonzero()[:, 0].tolist(), starts.numel()]
        self._lengths = [end - start for start, end in pairwise(bounds)]

    @torch.compiler.disable  # or it would compile again for every list of lengths
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self._rows:
            return _sdpa(q, k, v, is_causal=True)
        documents = zip(
            *(x.flatten(0, 1).unsqueeze(0).split(self._lengths, dim=1) for x in (q, k, v)),
            strict=True,
        )
        outs = [_sdpa(*document, is_causal=True) for document in documents]
        return torch.cat(outs, dim=1).view(q.shape)


class Varlen:
    """torch's variable-length flash attention."""

    def __init__(self, positions: Tensor) -> None:
        starts = document_starts(positions).flatten().nonzero()[:, 0]
        self._bounds = F.pad(starts, (0, 1), value=positions.numel()).int()
        self._longest = positions.shape[1]
        self._options = _varlen_options()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        flat = [x.flatten(0, 1) for x in (q, k, v)]
        sizes = (self._bounds, self._bounds, self._longest, self._longest)
        attend: Any = varlen_attn  # its options depend on torch
        out: Tensor = attend(*flat, *sizes, **self._options)
        return out.view(q.shape)


class Flex:
    """FlexAttention, compiled on CUDA; blocks that no query may see are skipped."""

    def __init__(self, positions: Tensor) -> None:
        from torch.nn.attention.flex_attention import create_block_mask

        document = document_starts(positions).cumsum(dim=1)

        def visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (query >= key) & (document[b, query] == document[b, key])

        rows, length = positions.shape
        self._mask = create_block_mask(
            visible, rows, None, length, length, device=positions.device.type
        )

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out: Tensor = _flex(q.device.type)(q, k, v, block_mask=self._mask, enable_gqa=True)
        return out.transpose(1, 2)


def has_varlen() -> bool:
    """Whether this torch has `varlen_attn`."""
    try:
        import torch.nn.attention.varlen  # noqa: F401
    except ImportError:
        return False
    return True


def _sdpa(q: Tensor, k: Tensor, v: Tensor, **mask: Any) -> Tensor:
    """SDPA over [B, T, heads, d]; its own order of dimensions is [B, heads, T, d]."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped, **mask).transpose(1, 2)


@cache
def _varlen_options() -> dict[str, Any]:
    """Causal and grouped, in the words of this torch: they changed after 2.10."""
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = (
        {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    )
    return options | ({"enable_gqa": True} if "enable_gqa" in known else {})


@cache
def _flex(device: str) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    attend: Callable[..., Any] = flex_attention
    return torch.compile(attend) if device == "cuda" else attend
