"""A new MTP layer for a trunk that has none: its last layer, fed with what that layer is used to.

The copy of the last layer reads h_t alone at first; training (the stage `mtp_heads`) opens the half
of `input_proj` for the next token's embedding, which is zero. Both input norms scale to the size
that the last layer's input has in the trunk: of a smaller one the layer's own output would leave
nothing, and the zero half learns in proportion to it. docs/results.md compares other beginnings.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from openmimo.config.schema import ModelConfig
from openmimo.model.folder import Read
from openmimo.model.layout import EMBEDDING, LAYER, NORM
from openmimo.model.mimo import Block, Context

PROBE = 64
"""Random tokens that the size of the last layer's input is measured on."""


class FreshMTP:
    """The tensors of a fresh MTP layer.

    Args:
        config: the model's shape.
        read: gives the trunk's tensors, finite ones of the right shapes.
    """

    def __init__(self, config: ModelConfig, read: Read) -> None:
        self._config, self._read = config, read
        self._size: float | None = None

    def tensor(self, part: str) -> Tensor:
        """One tensor; `part` is its name inside the layer, such as "input_proj.weight"."""
        hidden = self._config.hidden_size
        if part == "input_proj.weight":
            return torch.cat([torch.eye(hidden), torch.zeros(hidden, hidden)], dim=1)
        if part in ("token_layernorm.weight", "hidden_layernorm.weight"):
            if self._size is None:
                self._size = last_input_size(self._config, self._read)
            return torch.full((hidden,), self._size)
        if part == "final_layernorm.weight":
            return self._read(NORM)
        return self._read(f"{LAYER}{self._config.num_hidden_layers - 1}.{part}")


@torch.no_grad()
def last_input_size(config: ModelConfig, read: Read) -> float:
    """Root mean square of the last trunk layer's input, the median over `PROBE` random tokens.

    The median, because the first token's is out of proportion in most models. The trunk runs layer
    by layer, in float32, and memory holds one layer.
    """
    ids = torch.randint(config.vocab_size, (1, PROBE), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(PROBE)[None]
    context = Context(config, positions, config.rope_theta, torch.float32)
    x = read(EMBEDDING)[ids].float()
    with torch.device("meta"):
        layer = Block(config)
    names = list(layer.state_dict())
    for index in range(config.num_hidden_layers - 1):
        weights = {name: read(f"{LAYER}{index}.{name}").float() for name in names}
        layer.load_state_dict(weights, assign=True)
        x = layer(x, context)
    size = x.square().mean(dim=-1).sqrt().median().item()
    return size if 0 < size < math.inf else 1.0  # a trunk of zeros, say
