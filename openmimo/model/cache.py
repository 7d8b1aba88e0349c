"""Key/value cache with one fixed-length row a sequence.

Entry s of a row always holds position s. Nothing is ever erased: `masks.cache_mask` shows a query
only the entries up to its own position, so a rejected draft is rolled back by simply writing the
next token over it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openmimo.config.schema import ModelConfig


class KVCache:
    """Keys and values of `layers` layers, each [rows, kv_heads, max_length, head_dim]."""

    def __init__(
        self,
        config: ModelConfig,
        layers: int,
        rows: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (layers, rows, config.num_key_value_heads, max_length, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def bytes(self) -> int:
        """Memory held, in bytes."""
        return 2 * self.keys.numel() * self.keys.element_size()

    def write(
        self, layer: int, rows: Tensor | slice, positions: Tensor, k: Tensor, v: Tensor
    ) -> None:
        """Store k, v [N, kv_heads, T, head_dim] of `rows` (N of them) at `positions` [N, T]."""
        keys, values = self.keys[layer], self.values[layer]
        index = torch.arange(keys.shape[0], device=keys.device)[rows]
        # Advanced indices around the head slice put [N, T] first: [N, T, kv_heads, head_dim].
        keys[index[:, None], :, positions] = k.transpose(1, 2)
        values[index[:, None], :, positions] = v.transpose(1, 2)

    def read(self, layer: int, rows: Tensor | slice, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values [N, kv_heads, length, head_dim] of `rows`; a view if rows is a slice."""
        return self.keys[layer, rows, :, :length], self.values[layer, rows, :, :length]

    def copy_rows(self, source: Tensor, target: Tensor, length: int) -> None:
        """Copy the first `length` entries of rows `source` to rows `target`, all layers."""
        self.keys[:, target, :, :length] = self.keys[:, source, :, :length]
        self.values[:, target, :, :length] = self.values[:, source, :, :length]


class CacheView:
    """The part of a cache one forward pass works on: some rows, up to `length` entries."""

    def __init__(
        self, cache: KVCache, rows: Tensor | slice, length: int, first_layer: int = 0
    ) -> None:
        self.cache, self.rows, self.length, self.first_layer = cache, rows, length, first_layer

    def update(self, layer: int, positions: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new entries and return all visible ones, [N, kv_heads, length, head_dim]."""
        self.cache.write(self.first_layer + layer, self.rows, positions, k, v)
        return self.cache.read(self.first_layer + layer, self.rows, self.length)
