"""How a model folder differs from the published MiMo-7B ones, in plain words. Sizes may differ."""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openmimo.errors import printable, shown
from openmimo.interop.families import Family
from openmimo.model.folder import CONFIG, GENERATION_CONFIG, OWN_CONFIG, REMOTE_CODE
from openmimo.model.published import to_published
from openmimo.model.tensors import INDEX

_PAPERS = ("LICENSE", "LICENCE", "NOTICE", "README", "ORIGINAL_README", ".git")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_READ = (CONFIG, OWN_CONFIG, INDEX, GENERATION_CONFIG, "recipe.toml")  # the last by speedrun
_NAMED = 8


@dataclass(frozen=True)
class Facts:
    """What is known of a folder.

    published: the content of config.json; empty if it cannot be read.
    family: what it means; None if it means nothing.
    dtypes: the stored types ("bfloat16").
    total_size: "right", "missing" or "wrong: ..."; None without an index.
    names: the folder's entries.
    read: those that openmimo reads as weights or tokenizer.
    eos_id, chatml: of the tokenizer; None without one.
    """

    folder: Path
    published: dict[str, Any]
    family: Family | None
    dtypes: set[str]
    total_size: str | None
    names: list[str]
    read: set[str]
    eos_id: int | None
    chatml: bool | None


def deviations(facts: Facts) -> list[str]:
    """A sentence for every difference, printable."""
    parts = (_architecture, _rope, _keys, _values, _weights, _tokenizer, _files)
    return [printable(sentence) for part in parts for sentence in part(facts)]


def _architecture(facts: Facts) -> Iterator[str]:
    if facts.family is None:
        return
    layers = facts.family.config.num_nextn_predict_layers
    if facts.family.name != "mimo":
        yield f"a {facts.family.name} model: bring it in with `mimo import`"
    if layers == 0:
        yield "no MTP layer: `mimo import --add-mtp` gives it one"
    if layers > 1:
        yield f"{layers} MTP layers; the published folders have one"
    if facts.family.tied:
        yield "embedding and head are tied; MiMo's are two matrices"
    if not facts.family.biases:
        yield "q, k and v have no bias; MiMo's have one"
    if facts.family.config.mtp_hidden != "pre_norm":
        yield "the MTP layer reads the state after the final norm; MiMo's reads it before"


def _rope(facts: Facts) -> Iterator[str]:
    published = facts.published
    if published.get("rope_scaling") is not None:
        yield f"rope_scaling is {shown(published['rope_scaling'])}; MiMo has none"
    if "rope_parameters" in published:
        yield "rope_parameters, as transformers 5 writes them; MiMo has rope_theta at the top"


def _keys(facts: Facts) -> Iterator[str]:
    if facts.family is None:
        return
    known = to_published(facts.family.config, "bfloat16").keys()
    spoken_of = {"rope_scaling", "rope_parameters", "dtype"}
    if unknown := sorted(facts.published.keys() - known - spoken_of):
        yield f"{CONFIG} has keys that MiMo's has not: {_some(unknown)}"
    if "auto_map" not in facts.published:
        yield "no auto_map: transformers does not find the remote code"
    missing = known - facts.published.keys() - {"auto_map", "rope_theta", "torch_dtype"}
    if "rope_theta" not in facts.published and "rope_parameters" not in facts.published:
        missing |= {"rope_theta"}
    if missing:
        yield f"{CONFIG} lacks {_some(sorted(missing))}"


def _values(facts: Facts) -> Iterator[str]:
    published = facts.published
    dtypes = {str(published[key]) for key in ("torch_dtype", "dtype") if published.get(key)}
    if "dtype" in published:
        yield "dtype, as transformers 5 writes it; MiMo has torch_dtype"
    for dtype in sorted(dtypes):
        if facts.dtypes and {dtype} != facts.dtypes:
            stored = " and ".join(sorted(facts.dtypes))
            yield f"{CONFIG} says {shown(dtype)}, but the weights are {stored}"
    named = published.get("architectures")
    if facts.family and facts.family.name == "mimo" and named != ["MiMoForCausalLM"]:
        yield f"architectures is {shown(named)}, not MiMoForCausalLM"
    if isinstance(published.get("tokenizer_class"), list):
        yield "tokenizer_class is a list, as in the public folders; it should be a string"
    eos = published.get("eos_token_id")
    ends = eos if isinstance(eos, list) else [eos]
    if facts.eos_id is not None and eos is not None and facts.eos_id not in ends:
        yield f"eos_token_id is {shown(eos)}, but the tokenizer ends a turn with {facts.eos_id}"


def _weights(facts: Facts) -> Iterator[str]:
    if facts.dtypes - {"bfloat16"}:
        yield f"weights are {' and '.join(sorted(facts.dtypes))}; MiMo's are bfloat16"
    if facts.total_size is None:
        yield f"no {INDEX}"
    elif facts.total_size != "right":
        yield f"total_size of {INDEX} is {facts.total_size}"


def _tokenizer(facts: Facts) -> Iterator[str]:
    if facts.chatml is None:
        yield "no tokenizer that can be read: the model cannot chat"
    elif not facts.chatml:
        yield "the tokenizer has no ChatML tokens: it is not for chat"
    if GENERATION_CONFIG not in facts.names:
        yield f"no {GENERATION_CONFIG}"


def _files(facts: Facts) -> Iterator[str]:
    pickles, code, others = [], [], []
    for name in facts.names:
        if name in facts.read or name in _READ:
            continue
        if name.endswith(_PICKLES):
            pickles.append(name)
        elif name in REMOTE_CODE and _is_ours(facts.folder / name):
            continue
        elif name.endswith((".py", ".so")):
            code.append(name)
        elif not name.startswith(_PAPERS):
            others.append(name)
    if missing := [name for name in REMOTE_CODE if name not in facts.names]:
        yield f"no {' and no '.join(missing)}: transformers needs them for a MiMo model"
    if pickles:
        yield f"pickles, never opened: {_some(pickles)}"
    if code:
        yield f"code that is not openmimo's, never run: {_some(code)}"
    if others:
        yield f"files that openmimo does not read: {_some(others)}"


def _is_ours(path: Path) -> bool:
    """Whether a file is the remote code that openmimo writes."""
    ours = importlib.resources.files("openmimo.model.hf") / path.name
    expected = ours.read_bytes()
    try:
        if not os.path.isfile(path):
            return False
        with path.open("rb") as file:
            return file.read(len(expected) + 1) == expected
    except OSError:
        return False


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
