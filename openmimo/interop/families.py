"""What the config.json of a model of another family means in openmimo's terms.

Qwen2 and Llama models are MiMo trunks but for three things: the head may be the embedding (tied),
q, k and v may have no bias, and RoPE may be stretched. A copy of the embedding and zero biases
give the same function, so an import never changes what a model computes. Anything else that
would change it is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from openmimo.config.schema import ModelConfig
from openmimo.errors import UserError, shown
from openmimo.model.layout import BIASES, HEAD, Shape, tensor_count, tensor_shapes
from openmimo.model.published import from_published, make_config, refuse_features, rope_settings

FAMILIES = ("mimo", "qwen2", "llama")

_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
_CONTEXT = {"qwen2": 32_768, "llama": 2_048}
"""`max_position_embeddings` where a config.json leaves it out."""


@dataclass(frozen=True)
class Family:
    """A model of one of `FAMILIES`.

    config: the shape that it has in openmimo.
    tied: the embedding is the head too, and no head is stored.
    biases: q, k and v have biases.
    """

    name: str
    config: ModelConfig
    tied: bool
    biases: bool

    def stored_shapes(self) -> dict[str, Shape]:
        """The tensors that its files hold; a head beside tied embeddings is not among them."""
        return {
            name: shape
            for name, shape in tensor_shapes(self.config)
            if not (self.tied and name == HEAD)
            and (self.biases or "mtp_layers" in name or not name.endswith(BIASES))
        }


def read_family(published: dict[str, Any], own: dict[str, Any], where: str) -> Family:
    """The family of a config.json.

    Args:
        published: its content, of a MiMo, Qwen2 or Llama model.
        own: the content of openmimo.json; empty for models that openmimo has not written.
        where: the file's name, for errors.

    Raises:
        UserError: another family, a missing or senseless value, or a feature that MiMo's
            architecture lacks; named.
    """
    name = published.get("model_type")
    if name not in FAMILIES:
        raise UserError(
            f"{where}: model_type is {shown(name)}; models of type {', '.join(FAMILIES)} "
            "can be read"
        )
    refuse_features(published, where)
    if name == "mimo":
        return Family(name, from_published(published, own, where), tied=False, biases=True)
    if name == "llama" and published.get("attention_bias") not in (None, False):
        raise UserError(
            f"{where}: attention_bias is true, which gives a Llama an output bias (o_proj.bias); "
            "MiMo's architecture has none"
        )
    tied = published.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise UserError(f"{where}: tie_word_embeddings is {shown(tied)}; it must be true or false")
    return Family(name, _trunk_config(published, name, where), tied, biases=name == "qwen2")


def check_stored(family: Family, found: dict[str, Shape], where: str) -> None:
    """Raise UserError unless `found` is what the family's files hold.

    A head beside tied embeddings is allowed; the import compares the two.
    """
    if tensor_count(family.config) > 2 * len(found) + 100:
        raise UserError(
            f"{where}: its config has {family.config.num_hidden_layers:,} layers, its files only "
            f"{len(found)} tensors"
        )
    expected = family.stored_shapes()
    optional = {HEAD: dict(tensor_shapes(family.config))[HEAD]} if family.tied else {}
    if missing := sorted(expected.keys() - found):
        hint = ""
        if missing == [HEAD]:
            hint = "; are its embeddings tied? Then config.json must say tie_word_embeddings"
        raise UserError(f"{where} lacks {len(missing)} tensors, the first is {missing[0]}{hint}")
    if unexpected := sorted(found.keys() - expected.keys() - optional.keys()):
        raise UserError(
            f"{where} holds {len(unexpected)} tensors that a {family.name} model of this config "
            f"does not have, the first is {unexpected[0]}"
        )
    for name, shape in (expected | optional).items():
        if name in found and found[name] != shape:
            raise UserError(f"{where}: {name} is {found[name]}, the config says {shape}")


def _trunk_config(published: dict[str, Any], family: str, where: str) -> ModelConfig:
    """The `ModelConfig` of a Qwen2 or Llama config.json: a trunk without MTP layers."""
    if missing := [name for name in _REQUIRED if published.get(name) is None]:
        raise UserError(f"{where} lacks {', '.join(missing)}")
    base, scaling = rope_settings(published, where)
    values = {name: published[name] for name in _REQUIRED}
    defaults: dict[str, Any] = {
        "num_key_value_heads": values["num_attention_heads"],
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": _CONTEXT[family],
        "initializer_range": 0.02,
    }
    if published.get("head_dim") is None:
        defaults["head_dim"] = _head_dim(values, where)
    for name in (*defaults, "head_dim"):
        given = published.get(name)
        values[name] = defaults[name] if given is None else given
    values["rope_theta"] = 10_000.0 if base is None else base
    return make_config(values | {"num_nextn_predict_layers": 0}, scaling, where)


def _head_dim(values: dict[str, Any], where: str) -> int:
    """The width of a head where a config.json leaves it out."""
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    if not (isinstance(hidden, int) and isinstance(heads, int) and heads > 0):
        return 2  # one of the two is refused for what it is
    if hidden % heads:
        raise UserError(f"{where}: hidden_size must be a multiple of num_attention_heads")
    return hidden // heads
