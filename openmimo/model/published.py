"""The config.json of the public MiMo-7B folders, and its way to and from `ModelConfig`.

The form is that of transformers 4.40, with `rope_theta` at the top level: vLLM, SGLang and
llama.cpp read it there, while `save_pretrained` of transformers 5 moves it into
`rope_parameters`; both are read. Only published keys are written, so that every reader of a MiMo
folder reads ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from openmimo.config.schema import ModelConfig, RopeScaling
from openmimo.errors import UserError, shown

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
_REFUSED: dict[str, Callable[[Any], bool]] = {
    # What would change the function, unless its value says that it is off.
    "hidden_act": lambda value: value not in (None, "silu", "swish"),
    "quantization_config": lambda value: value is not None,
    "use_sliding_window": lambda value: value not in (None, False),
    "dual_chunk_attention_config": lambda value: value is not None,
    "use_mrope": lambda value: value not in (None, False),
    "mlp_bias": lambda value: value not in (None, False),
    "partial_rotary_factor": lambda value: value not in (None, 1, 1.0),
    "layer_types": lambda value: (
        value is not None
        and not (isinstance(value, list) and all(kind == "full_attention" for kind in value))
    ),
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
_LLAMA3 = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_ROPE_KEYS = {"rope_type", "rope_theta", "factor", "partial_rotary_factor", *_LLAMA3}


def to_published(
    config: ModelConfig,
    dtype: str,
    bos_token_id: Any = None,
    eos_token_id: Any = None,
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
    scaling = config.rope_scaling
    return {
        "architectures": ["MiMoForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_mimo.MiMoConfig",
            "AutoModel": "modeling_mimo.MiMoModel",
            "AutoModelForCausalLM": "modeling_mimo.MiMoForCausalLM",
        },
        **_FIXED,
        **sizes,
        **({"rope_scaling": _published_scaling(scaling)} if scaling else {}),
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "sliding_window": config.max_position_embeddings,
        "max_window_layers": config.num_hidden_layers,
        "use_cache": True,
        "torch_dtype": dtype,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "transformers_version": "4.40.1",  # names the form of this file, not who wrote it
    }


def as_qwen2(published: dict[str, Any]) -> dict[str, Any]:
    """A published config.json as that of its trunk alone, which is a Qwen2 model."""
    dropped = ("auto_map", "num_nextn_predict_layers", "use_mrope", "attention_bias")
    kept = {name: value for name, value in published.items() if name not in dropped}
    return kept | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}


def from_published(published: dict[str, Any], own: dict[str, Any], where: str) -> ModelConfig:
    """The `ModelConfig` of a published config.json.

    Args:
        published: its content.
        own: fields of `ModelConfig` that the published form has no place for.
        where: the file's name, for errors.

    Raises:
        UserError: another architecture, a missing field, or a value that makes no sense.
    """
    refuse_features(published, where)
    for name, value in _FIXED.items():
        found = published.get(name, value)
        if found != value:
            hint = ": bring it in with `mimo import`" if name == "model_type" else ""
            raise UserError(f"{where}: {name} is {shown(found)}; MiMo models have {value!r}{hint}")
    base, scaling = rope_settings(published, where)
    values = {name: published[name] for name in _SIZES if name in published}
    if base is not None:
        values["rope_theta"] = base
    if missing := [name for name in _SIZES if name not in values]:
        raise UserError(f"{where} lacks {', '.join(missing)}")
    return make_config(values | own, scaling, where)


def refuse_features(published: dict[str, Any], where: str) -> None:
    """Raise UserError if a config.json names a feature that MiMo's architecture lacks."""
    for key, refused in _REFUSED.items():
        if refused(value := published.get(key)):
            raise UserError(
                f"{where}: {key} is {shown(value)}, which MiMo's architecture does not have"
            )


def rope_settings(published: dict[str, Any], where: str) -> tuple[Any, RopeScaling | None]:
    """RoPE base (None if not given) and scaling of a config.json, in its old or its new form.

    The base stands at the top or in rope_scaling or rope_parameters, the scaling in either of
    these, as in transformers 5; what is said twice must be the same.

    Raises:
        UserError: a scaling other than linear and llama3, named, one for some layers only or some
            dimensions only, or a contradiction.
    """
    rope: dict[str, tuple[Any, str]] = {}  # name -> value, where it was found
    if (base := published.get("rope_theta")) is not None:
        rope["rope_theta"] = (base, "at the top")
    for source in ("rope_scaling", "rope_parameters"):
        for name, value in _rope_object(published.get(source), source, where).items():
            first, place = rope.setdefault(name, (value, f"in {source}"))
            if first != value:
                raise UserError(
                    f"{where}: {name} is {shown(first)} {place}, but {shown(value)} in {source}"
                )
    values = {name: value for name, (value, _) in rope.items()}
    base = values.pop("rope_theta", None)
    if values.pop("partial_rotary_factor", 1) != 1:
        raise UserError(f"{where}: partial_rotary_factor must be 1: MiMo rotates whole heads")
    if "rope_type" not in values and values:
        given = ", ".join(sorted(values))
        raise UserError(f"{where}: {given} of a rope_scaling without a rope_type")
    kind = values.pop("rope_type", "default")
    if kind == "default":
        return base, None
    names = ("factor", *(_LLAMA3 if kind == "llama3" else ()))
    if missing := [name for name in names if name not in values]:
        raise UserError(f"{where}: rope_scaling lacks {', '.join(missing)}")
    try:
        chosen = {"kind": kind} | {name: values[name] for name in names}
        return base, RopeScaling.model_validate(chosen, strict=True)
    except ValidationError as error:
        raise UserError(f"{where}: rope_scaling: {first_fault(error)}") from None


def _rope_object(content: Any, source: str, where: str) -> dict[str, Any]:
    """What rope_scaling or rope_parameters says, nulls left out, its kind as rope_type."""
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{where}: {source} must be an object, not {shown(content)}")
    values = {name: value for name, value in content.items() if value is not None}
    if nested := [name for name, value in values.items() if isinstance(value, dict)]:
        raise UserError(
            f"{where}: {source} differs between kinds of layers ({shown(nested[0])}); MiMo has one "
            "RoPE for all"
        )
    kind = values.pop("type", values.get("rope_type"))
    if kind is not None:
        if values.setdefault("rope_type", kind) != kind:
            named = shown(values["rope_type"])
            raise UserError(f"{where}: {source} is {named} by rope_type, {shown(kind)} by type")
        if kind not in ("default", "linear", "llama3"):
            raise UserError(
                f"{where}: {source} is {shown(kind)}; only linear and llama3 scaling can be read"
            )
    if unknown := sorted(values.keys() - _ROPE_KEYS):
        raise UserError(f"{where}: {source} has {shown(unknown[0])}, which is not known here")
    return values


def make_config(values: dict[str, Any], scaling: RopeScaling | None, where: str) -> ModelConfig:
    """A checked `ModelConfig`; every fault is one line that begins with `where`."""
    try:
        return ModelConfig.model_validate(values | {"rope_scaling": scaling}, strict=True)
    except ValidationError as error:
        raise UserError(f"{where}: {first_fault(error)}") from None


def first_fault(error: ValidationError) -> str:
    """The first thing that pydantic found, with the name of its field."""
    fault = error.errors(include_url=False)[0]
    name = ".".join(map(str, fault["loc"]))
    reason = fault["msg"].removeprefix("Value error, ")
    return f"{name + ': ' if name else ''}{reason}"


def _published_scaling(scaling: RopeScaling) -> dict[str, Any]:
    """As transformers spells it; `type` beside it is for readers older than 2024-07."""
    names = ("factor", *(_LLAMA3 if scaling.kind == "llama3" else ()))
    return {
        "rope_type": scaling.kind,
        "type": scaling.kind,
        **{name: getattr(scaling, name) for name in names},
    }
