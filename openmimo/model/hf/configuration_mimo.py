# Copyright The openmimo authors. Licensed under the Apache License, Version 2.0.
"""Configuration of MiMo models for transformers: Qwen2's, and the number of MTP layers.

An independent implementation, not Xiaomi's. This file is copied into every release folder.
"""

from typing import Any

from transformers import Qwen2Config


class MiMoConfig(Qwen2Config):
    """A Qwen2 configuration with `num_nextn_predict_layers` MTP layers.

    The other fields are for `generate(use_mtp=True)` of transformers >= 5.23: MiMo's MTP layer
    reads the hidden state first and the embedding second, and it reads the last layer's output
    BEFORE the final norm. So with this configuration `hidden_states[-1]` is that output.
    """

    model_type = "mimo"
    attribute_map = {"num_mtp_layers": "num_nextn_predict_layers"}
    mtp_hidden_states_first = True
    tie_last_hidden_states = False

    def __init__(self, num_nextn_predict_layers: int = 0, **kwargs: Any) -> None:
        self.num_nextn_predict_layers = num_nextn_predict_layers
        super().__init__(**kwargs)

    @property
    def mtp_layer_types(self) -> list[str]:
        """The kind of attention of each MTP layer."""
        return ["full_attention"] * self.num_nextn_predict_layers
