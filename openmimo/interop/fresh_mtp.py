"""A new MTP layer for a trunk that has none: its last layer, fed with what that layer is used to.

The copy of the last layer reads the sum of its own usual input's stand-in, the normalised h_t, and
nothing yet of the next token's embedding, so before any training it drafts from h_t alone.
Training (the `mtp_heads` stage) opens the other half.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openmimo.config.schema import ModelConfig
from openmimo.model.folder import Read
from openmimo.model.layout import LAYER, NORM


def fresh_mtp_tensor(part: str, config: ModelConfig, read: Read) -> Tensor:
    """One tensor of a fresh MTP layer.

    Args:
        part: its name inside the layer, such as "input_proj.weight".
        config: the model's shape.
        read: gives the trunk's tensors.
    """
    hidden = config.hidden_size
    if part == "input_proj.weight":
        return torch.cat([torch.eye(hidden), torch.zeros(hidden, hidden)], dim=1)
    if part in ("token_layernorm.weight", "hidden_layernorm.weight"):
        return torch.ones(hidden)
    if part == "final_layernorm.weight":
        return read(NORM)
    return read(f"{LAYER}{config.num_hidden_layers - 1}.{part}")
