"""Byte-level BPE tokenizers in GGUF fields: to and from tokenizer.json.

GGUF stores the vocabulary and the merges, but only a name for how text is split before merging
(`tokenizer.ggml.pre`); llama.cpp has the rule behind each name in its source. The names known here
are those whose rule is the same, by test, in llama.cpp and in the tokenizers library. There is one
difference: Qwen2's NFC normalisation, which llama.cpp leaves out.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from openmimo.errors import UserError
from openmimo.interop.gguf_library import gguf

Fields = Mapping[str, Any]
"""Names of GGUF fields ("tokenizer.ggml.pre") to values."""

_PREFIX = "tokenizer.ggml."
_ROLES = ("bos", "eos", "eot", "unknown", "padding")


def _split(digits: str) -> Any:
    """Qwen2's and Llama 3's split, which differ in how many digits stay together."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+"
        r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _gpt2() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


_SPLITS: dict[str, Any] = {
    "qwen2": _split(r"\p{N}"),
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()]),
    "gpt-2": _gpt2(),
    "llama-bpe": _split(r"\p{N}{1,3}"),
}
_NORMALIZERS: dict[str, Any] = {"qwen2": normalizers.NFC()}
_NOT_BYTE_LEVEL = (
    "byte_fallback",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "unk_token",
    "dropout",
)
_KINDS = (
    gguf.TokenType.NORMAL,
    gguf.TokenType.CONTROL,
    gguf.TokenType.USER_DEFINED,
    gguf.TokenType.UNUSED,
)
_WHOLE_WORDS = {"llama-bpe"}  # a word that is a token is not merged at all
_BOS_BY_DEFAULT = {"llama-bpe"}


def to_files(fields: Fields, vocab_size: int, where: str) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json of a GGUF file's tokenizer.

    Unused tokens at the end, which only fill the vocabulary up, are left out.

    Args:
        fields: the file's fields.
        vocab_size: rows of its embedding.
        where: the file's name, for errors.

    Raises:
        UserError: no tokenizer, another kind than byte-level BPE, a split that is not known here,
            or a vocabulary that contradicts itself.
    """
    pre = _known_split(fields, where)
    tokens, types = _vocabulary(fields, vocab_size, where)
    vocab = {token: number for number, token in enumerate(tokens)}
    merges = [tuple(m.split(" ")) for m in _strings(fields, "merges", where)]
    broken = [m for m in merges if len(m) != 2 or not {*m, "".join(m)} <= vocab.keys()]
    if broken:
        raise UserError(f"{where}: the merge {' '.join(broken[0])[:60]!r} is not of its vocabulary")
    backend = tokenizers.Tokenizer(
        models.BPE(vocab, merges, ignore_merges=pre in _WHOLE_WORDS)  # type: ignore[arg-type]
    )
    if pre in _NORMALIZERS:
        backend.normalizer = _NORMALIZERS[pre]
    backend.pre_tokenizer = _SPLITS[pre]
    backend.decoder = decoders.ByteLevel()
    added = [
        AddedToken(token, special=kind == gguf.TokenType.CONTROL, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED)
    ]
    backend.add_tokens(added)
    config = _config(fields, tokens, vocab_size, where)
    config["add_bos_token"] = _adds_bos(fields, pre, where)
    if config["add_bos_token"]:
        backend.post_processor = _bos_first(config["bos_token"], vocab, where)
    return {
        "tokenizer.json": backend.to_str(pretty=True).encode("utf-8"),
        "tokenizer_config.json": (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(),
    }


def from_files(files: Mapping[str, bytes], vocab_size: int) -> dict[str, Any]:
    """The GGUF fields of a tokenizer, of special ids only one that goes before every text.

    Args:
        files: its tokenizer.json, and tokenizer_config.json or chat_template.jinja if it has them.
        vocab_size: rows of the model's embedding; ids beyond the tokenizer's are marked unused.

    Raises:
        UserError: llama.cpp has no such tokenizer, or it has more tokens than `vocab_size`.
    """
    if "tokenizer.json" not in files:
        raise UserError("the tokenizer has no tokenizer.json, from which GGUF is written")
    tokenizer = json.loads(files["tokenizer.json"])
    pre = _matching_split(tokenizer)
    prefix = _prefix_id(tokenizer)
    ids = dict(tokenizer["model"]["vocab"])
    kinds = dict.fromkeys(ids, gguf.TokenType.NORMAL)
    for token in tokenizer.get("added_tokens") or ():
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise UserError(
                f"the token {token['content']!r} takes spaces with it or stands only between "
                "words; llama.cpp has no such tokens"
            )
        ids[token["content"]] = token["id"]
        special = token["special"]
        kinds[token["content"]] = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
    if (last := max(*ids.values(), prefix or 0)) >= vocab_size:
        raise UserError(f"the tokenizer's ids go to {last}, the model's only to "
                        f"{vocab_size - 1}: they do not belong together")  # fmt: skip
    tokens = [f"[PAD{number}]" for number in range(vocab_size)]
    types = [int(gguf.TokenType.UNUSED)] * vocab_size
    for token, number in ids.items():
        tokens[number], types[number] = token, int(kinds[token])
    if len(set(tokens)) < vocab_size:
        raise UserError("two ids of the tokenizer stand for one text, or one is called [PAD...]")
    fields: dict[str, Any] = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": types,
        # Older files have each merge as one text.
        "merges": [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]],
        "add_bos_token": prefix is not None,
    }
    if prefix is not None:
        fields["bos_token_id"] = prefix
    prefixed = {_PREFIX + name: value for name, value in fields.items()}
    if template := _template(files):
        prefixed["tokenizer.chat_template"] = template
    return prefixed


def special_ids(fields: Fields, vocab_size: int, where: str) -> dict[str, int]:
    """The ids of bos, eos, eot, unknown and padding, as far as the file names them.

    Raises:
        UserError: one is no row of the embedding.
    """
    found = {role: fields.get(f"{_PREFIX}{role}_token_id") for role in _ROLES}
    ids = {role: number for role, number in found.items() if number is not None}
    for role, number in ids.items():
        if not isinstance(number, int) or not 0 <= number < vocab_size:
            raise UserError(
                f"{where}: its {role} token is {str(number)[:40]}, but the ids are "
                f"0..{vocab_size - 1}"
            )
    return ids


def has_tokenizer(fields: Fields) -> bool:
    """Whether the file holds a tokenizer, of whatever kind."""
    return fields.get(_PREFIX + "model", "none") not in ("none", "no_vocab")


def _known_split(fields: Fields, where: str) -> str:
    model = fields.get(_PREFIX + "model", "none")
    if model != "gpt2":
        kind = "a sentencepiece one (llama)" if model == "llama" else repr(model)[:60]
        raise UserError(f"{where}: its tokenizer is {kind}; only byte-level BPE (gpt2) can be read")
    pre = fields.get(_PREFIX + "pre")
    if not isinstance(pre, str) or pre not in _SPLITS:
        raise UserError(
            f"{where}: its tokenizer splits text by the rule {repr(pre)[:60]}; those known are "
            f"{', '.join(_SPLITS)}"
        )
    return pre


def _vocabulary(fields: Fields, vocab_size: int, where: str) -> tuple[list[str], list[int]]:
    """Tokens and their types, without the unused ones at the end."""
    tokens = _strings(fields, "tokens", where)
    types = np.asarray(fields.get(_PREFIX + "token_type"))
    if types.dtype.kind not in "iu" or types.shape != (len(tokens),):
        raise UserError(f"{where}: {_PREFIX}token_type does not hold one type for each token")
    if len(tokens) > vocab_size:
        raise UserError(f"{where}: it has {len(tokens)} tokens, but {vocab_size} embeddings")
    kinds = types.tolist()
    while kinds and kinds[-1] == gguf.TokenType.UNUSED:
        kinds.pop()
    tokens = tokens[: len(kinds)]
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    seen: set[str] = set()
    for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if token in seen or not token:
            raise UserError(f"{where}: token {number}, {token[:40]!r}, is empty or there twice")
        seen.add(token)
        if kind == gguf.TokenType.NORMAL and not alphabet.issuperset(token):
            raise UserError(f"{where}: token {number}, {token[:40]!r}, is not in byte-level form")
        if kind not in _KINDS:
            raise UserError(
                f"{where}: token {number} has type {kind}, which byte-level BPE has not"
            )
    return tokens, kinds


def _strings(fields: Fields, name: str, where: str) -> list[str]:
    value = fields.get(_PREFIX + name)
    if not isinstance(value, list):
        raise UserError(f"{where}: {_PREFIX}{name} is missing or no list of texts")
    return value


def _config(fields: Fields, tokens: list[str], vocab_size: int, where: str) -> dict[str, Any]:
    ids = special_ids(fields, vocab_size, where)
    named = {role: tokens[number] for role, number in ids.items() if number < len(tokens)}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": named.get("bos"),
        "eos_token": named.get("eos"),
        "pad_token": named.get("padding"),
        "unk_token": None,  # a byte-level vocabulary needs none
        "clean_up_tokenization_spaces": False,
    }
    template = fields.get("tokenizer.chat_template")
    if template is not None:
        if not isinstance(template, str):
            raise UserError(f"{where}: tokenizer.chat_template is no text")
        config["chat_template"] = template
    return config


def _adds_bos(fields: Fields, pre: str, where: str) -> bool:
    if fields.get(_PREFIX + "add_eos_token", False):
        raise UserError(f"{where}: its tokenizer ends every text with eos, which is not handled")
    return bool(fields.get(_PREFIX + "add_bos_token", pre in _BOS_BY_DEFAULT))


def _bos_first(bos: str | None, vocab: Mapping[str, int], where: str) -> Any:
    if bos is None:
        raise UserError(f"{where}: texts are to start with bos, but no bos token is named")
    return processors.TemplateProcessing(
        single=[bos, "$A"], pair=[bos, "$A", bos, "$B"], special_tokens=[(bos, vocab[bos])]
    )


def _template(files: Mapping[str, bytes]) -> str | None:
    """The chat template, of which transformers keeps newer ones in a file of their own."""
    if "chat_template.jinja" in files:
        try:
            return files["chat_template.jinja"].decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"chat_template.jinja is not UTF-8: {error.reason}") from None
    template = json.loads(files.get("tokenizer_config.json", b"{}")).get("chat_template")
    return template if isinstance(template, str) else None  # a list has several, by purpose


def _prefix_id(tokenizer: Mapping[str, Any]) -> int | None:
    """The id that the post-processor puts before every text, as Llama 3's does; None if none."""
    processor = tokenizer.get("post_processor") or {}
    ids: list[int] = []
    try:
        for part in processor.get("processors", [processor]):
            names = [piece.get("SpecialToken", {}).get("id") for piece in part.get("single") or ()]
            before = itertools.takewhile(lambda name: name is not None, names)
            ids += [int(n) for name in before for n in part["special_tokens"][name]["ids"]]
    except (AttributeError, KeyError, TypeError, ValueError):  # nobody has checked this part
        raise UserError("the tokenizer.json has a post_processor that makes no sense") from None
    if len(ids) > 1:
        raise UserError("the tokenizer puts several tokens before a text, llama.cpp only one")
    return ids[0] if ids else None


def _matching_split(tokenizer: Mapping[str, Any]) -> str:
    """The name of a tokenizer.json's split in llama.cpp, by its structure."""
    model = tokenizer["model"]
    plain = model.get("type") == "BPE" and not any(model.get(name) for name in _NOT_BYTE_LEVEL)
    if not plain:
        raise UserError("the tokenizer is no byte-level BPE, so it cannot be written to GGUF")
    for pre, split in _SPLITS.items():
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = split
        if pre in _NORMALIZERS:
            backend.normalizer = _NORMALIZERS[pre]
        known = json.loads(backend.to_str())
        same = all(tokenizer.get(part) == known[part] for part in ("normalizer", "pre_tokenizer"))
        if same and bool(model.get("ignore_merges")) == (pre in _WHOLE_WORDS):
            return pre
    raise UserError(
        "the tokenizer splits text in a way that llama.cpp has no name for; those known are "
        f"{', '.join(_SPLITS)}"
    )
