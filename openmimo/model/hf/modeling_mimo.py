# Copyright The openmimo authors. Licensed under the Apache License, Version 2.0.
"""MiMo models for transformers: Qwen2 with multi-token-prediction (MTP) layers.

An independent implementation, not Xiaomi's. This file is copied into every release folder.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2ForCausalLM, Qwen2Model
from transformers.masking_utils import create_causal_mask
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm

from .configuration_mimo import MiMoConfig


class MiMoMTPLayer(Qwen2DecoderLayer):
    """A Qwen2 layer over the main model's hidden state and the next token's embedding."""

    def __init__(self, config: MiMoConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.token_layernorm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.hidden_layernorm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.input_proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.final_layernorm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def draft(self, hidden: Tensor, embedding: Tensor, **attention: Any) -> Tensor:
        """The head's input [B, T, D] from `hidden` and `embedding` [B, T, D]."""
        both = torch.cat([self.hidden_layernorm(hidden), self.token_layernorm(embedding)], dim=-1)
        return self.final_layernorm(self(self.input_proj(both), **attention))


class MiMoModel(Qwen2Model):
    """The trunk. It carries the MTP layers, so that saving a fine-tuned model keeps them."""

    config_class = MiMoConfig

    def __init__(self, config: MiMoConfig) -> None:
        super().__init__(config)
        self.mtp_layers = nn.ModuleList(
            MiMoMTPLayer(config, index) for index in range(config.num_nextn_predict_layers)
        )
        self.post_init()


class MiMoForCausalLM(Qwen2ForCausalLM):
    """MiMo with a language-model head; `generate` works as for any model."""

    config_class = MiMoConfig
    # `generate(use_mtp=True)` looks here for the names of the MTP weights.
    _keys_to_ignore_on_load_unexpected = [r"model\.mtp_layers\..*"]

    def __init__(self, config: MiMoConfig) -> None:
        super().__init__(config)
        self.model = MiMoModel(config)
        self.post_init()

    def mtp_logits(self, input_ids: Tensor) -> Tensor:
        """Logits of the tokens two ahead, by the first MTP layer.

        Args:
            input_ids: int64 [B, T], unpadded.

        Returns:
            [B, T - 1, vocab]; entry t are the logits of token t + 2.
        """
        trunk = self.model(input_ids, use_cache=False, output_hidden_states=True)
        # The one before the final norm: see `MiMoConfig.tie_last_hidden_states`.
        hidden = trunk.hidden_states[-1][:, :-1]
        embedding = self.model.embed_tokens(input_ids[:, 1:])
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        mask = create_causal_mask(self.config, embedding, None, None, position_ids=positions)
        rope = self.model.rotary_emb(hidden, positions)
        draft = self.model.mtp_layers[0].draft(
            hidden, embedding, attention_mask=mask, position_embeddings=rope
        )
        return self.lm_head(draft)


def _register_mtp_names() -> None:
    """Teach `generate(use_mtp=True)` the names of MiMo's MTP weights.

    Its generic `MtpModel` first strips "model." from a weight's name and renames input_proj. The
    names that still start with "mtp_layers" after that are ours; no other model has any.
    """
    try:
        from transformers.conversion_mapping import (
            get_checkpoint_conversion_mapping,
            register_checkpoint_conversion_mapping,
        )
        from transformers.core_model_loading import WeightRenaming
    except ImportError:
        return  # a transformers without `use_mtp`
    names = {
        "token_layernorm.": "enorm.",
        "hidden_layernorm.": "hnorm.",
        "eh_proj.": "eh_proj.",
        "final_layernorm.": "post_norm.",
        "": "mtp_block.",  # all others
    }
    renames = [
        WeightRenaming(rf"^mtp_layers\.(\d+)\.{ours}", rf"layers.\1.{theirs}")
        for ours, theirs in names.items()
    ]
    generic = get_checkpoint_conversion_mapping("MtpModel") or []
    register_checkpoint_conversion_mapping("MtpModel", generic + renames, overwrite=True)


_register_mtp_names()
