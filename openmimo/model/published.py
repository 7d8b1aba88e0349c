"""The config.json of the public MiMo-7B folders, and its way to and from `ModelConfig`.

The form is that of transformers 4.40, with `rope_theta` at the top level: vLLM, SGLang and
llama.cpp read it there, while `save_pretrained` of transformers 5 would move it into
`rope_parameters`. Only published keys appear, so that every reader of a MiMo folder reads ours.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from openmimo.config.schema import ModelConfig
from openmimo.errors import UserError

# What the architecture implies. A folder that says otherwise holds another model.
_FIXED = {
    "model_type": "mimo",
    "hidden_act": "silu",
    "attention_bias": True,  # of q, k and v; o_proj has none
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "use_mrope": False,
}
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "rope_theta",
    "max_position_embeddings",
    "initializer_range",
    "num_nextn_predict_layers",
)


def to_published(
    config: ModelConfig,
    dtype: str,
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
) -> dict[str, Any]:
    """`config` as a published config.json.

    At most one MTP layer is announced: the engines use no other, and a reader that finds a larger
    number would look for weights that the published files do not hold.

    Args:
        config: the model's shape.
        dtype: of the stored weights, as torch spells it after the dot ("bfloat16").
        bos_token_id: the id of <|endoftext|>, if known.
        eos_token_id: the id of <|im_end|>, if known.
    """
    sizes = {name: getattr(config, name) for name in _SIZES}
    sizes["num_nextn_predict_layers"] = min(config.num_nextn_predict_layers, 1)
    return {
        "architectures": ["MiMoForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_mimo.MiMoConfig",
            "AutoModel": "modeling_mimo.MiMoModel",
            "AutoModelForCausalLM": "modeling_mimo.MiMoForCausalLM",
        },
        **_FIXED,
        **sizes,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "sliding_window": config.max_position_embeddings,
        "max_window_layers": config.num_hidden_layers,
        "use_cache": True,
        "torch_dtype": dtype,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "transformers_version": "4.40.1",  # names the form of this file, not who wrote it
    }


def from_published(published: dict[str, Any], extra: dict[str, Any], where: str) -> ModelConfig:
    """The `ModelConfig` of a published config.json.

    Args:
        published: its content.
        extra: fields of `ModelConfig` that the published form has no place for.
        where: the file's name, for errors.

    Raises:
        UserError: another architecture, a missing field, or a value that makes no sense.
    """
    for name, value in _FIXED.items():
        found = published.get(name, value)
        if found != value:
            raise UserError(f"{where}: {name} is {found!r}; MiMo models have {value!r}")
    if published.get("rope_scaling") is not None:
        raise UserError(f"{where}: rope_scaling is set; MiMo models have plain RoPE")
    missing = [name for name in _SIZES if name not in published]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}")
    values = {name: published[name] for name in _SIZES} | extra
    try:
        return ModelConfig.model_validate(values, strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = ".".join(map(str, fault["loc"]))
        reason = fault["msg"].removeprefix("Value error, ")
        raise UserError(f"{where}: {name + ': ' if name else ''}{reason}") from None
