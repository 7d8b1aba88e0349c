"""Key/value cache with one fixed-length row a sequence.

Entry s of a row always holds position s. Nothing is ever erased: a query sees only the entries up
to its own position, so a rejected draft is rolled back by simply writing the next token over it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from openmimo.config.schema import ModelConfig


class KVCache:
    """Keys and values of `layers` layers for `rows` sequences of up to `length` tokens.

    One tensor [rows, 2 * kv_heads, length, head_dim] a layer, the keys before the values.
    """

    def __init__(
        self,
        config: ModelConfig,
        layers: int,
        rows: int,
        length: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._heads = config.num_key_value_heads
        self.length = length
        shape = (rows, 2 * self._heads, length, config.head_dim)
        self.layers = [zeros_on_demand(shape, dtype, device) for _ in range(layers)]

    @property
    def bytes(self) -> int:
        """Memory of all entries, in bytes."""
        return sum(layer.numel() * layer.element_size() for layer in self.layers)

    def write(self, layer: int, rows: Tensor, positions: Tensor, kv: Tensor) -> None:
        """Store kv [N, T, 2 * kv_heads, head_dim] of rows [N, 1] at positions [N, T]."""
        # Advanced indices around the head slice put [N, T] first.
        self.layers[layer][rows, :, positions] = kv

    def read(self, layer: int, rows: slice, length: int) -> tuple[Tensor, Tensor]:
        """Views of the first `length` keys and values, [N, kv_heads, length, head_dim] each."""
        both = self.layers[layer][rows]
        return both[:, : self._heads, :length], both[:, self._heads :, :length]

    def copy_rows(self, source: Tensor, target: Tensor, length: int) -> None:
        """Copy the first `length` entries of rows `source` to rows `target`, all at once."""
        for layer in self.layers:
            layer[target, :, :length] = layer[source, :, :length]


def zeros_on_demand(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """Zeros that take memory only where they are written, if the system can do that.

    torch fills what it allocates, so that a cache would take its full size at once; numpy asks the
    operating system for pages that are zero when first touched.
    """
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = int(np.prod(shape)) * dtype.itemsize
    return torch.from_numpy(np.zeros(size, np.uint8)).view(dtype).view(shape)
