"""Published tokenizer folders: read with suspicion, checked to be byte-level BPE, kept verbatim.

transformers writes a tokenizer as several files, of which ``tokenizer.json`` says nearly all.
Other tools read the others, so none may be lost on the way through openmimo.

What is refused: everything with which ids would not give back the text (sentencepiece, WordPiece,
normalizers that rewrite, prefix spaces), and files that contradict themselves.

The Rust library is given only what was checked here before: it panics on some files, and then it
ends the whole process.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, models

from openmimo.errors import UserError
from openmimo.json_files import parse_object
from openmimo.qwen_tokenizer import BYTE_OF_CHARACTER, qwen2_pipeline

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
VOCAB, MERGES = "vocab.json", "merges.txt"
SPECIAL_MAP = "special_tokens_map.json"
FILES = (
    *(TOKENIZER, CONFIG, SPECIAL_MAP, "added_tokens.json", VOCAB, MERGES),
    *("chat_template.jinja", "chat_template.json"),
)
"""All files that describe a tokenizer."""
MAX_BYTES = 128 * 2**20
"""A larger file is refused unread; vocabularies of 256k tokens take about 35 MB."""

# The parts that lose nothing. A Split or Punctuation that removes what it finds is none of them.
_NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD"}
_SPLITTERS = {"Split", "Digits", "Punctuation"}
_ORDINARY = frozenset((*b"\t\n\r", *range(0x20, 0x7F)))
# The keys of tokenizer.json that say which ids a text has. The others add tokens around a text, cut
# it or pad it; a fine-tuned model's "truncation" would cut documents without a word.
_ID_KEYS = ("version", "added_tokens", "normalizer", "pre_tokenizer", "decoder", "model")


@dataclass(frozen=True)
class PublishedTokenizer:
    """A tokenizer as it lies in a folder.

    backend: made from the files, checked.
    files: name -> bytes of each file in `FILES` that exists.
    eos_token: the token that ends a text, if the files name one.
    """

    backend: tokenizers.Tokenizer
    files: dict[str, bytes]
    eos_token: str | None


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder brings a tokenizer of any kind, readable or not."""
    return any((folder / name).exists() for name in (TOKENIZER, VOCAB, "tokenizer.model"))


def read_tokenizer_folder(folder: Path) -> PublishedTokenizer:
    """Read and check a tokenizer.

    ``tokenizer.json``, or ``vocab.json`` and ``merges.txt`` of a Qwen2 tokenizer. Added tokens that
    only ``tokenizer_config.json`` has are added, as transformers does.

    Raises:
        UserError: no tokenizer there, a damaged file, not byte-level BPE, or ids that clash or
            leave holes.
    """
    files = {name: _read(folder / name) for name in FILES if (folder / name).is_file()}
    objects = {
        name: _parse(content, folder / name)
        for name, content in files.items()
        if name in (TOKENIZER, CONFIG, SPECIAL_MAP, VOCAB)
    }
    config = objects.get(CONFIG, {})
    if TOKENIZER in files:
        where = folder / TOKENIZER
        content = objects[TOKENIZER]
        in_vocab, listed = _check_lossless(content, where), _listed(content, where)
        # An unknown token, often the one that ends documents, would make text a special token.
        content["model"]["unk_token"] = None
        kept = json.dumps({key: content[key] for key in _ID_KEYS if key in content})
        backend = _guarded(where, lambda: tokenizers.Tokenizer.from_str(kept))
    elif VOCAB in files and MERGES in files:
        where, in_vocab, listed = folder / VOCAB, objects[VOCAB], {}
        _check_is_qwen2(config, folder)
        _check_alphabet(in_vocab, where)
        merges = _merge_lines(files[MERGES], folder / MERGES)
        _check_merges(merges, in_vocab, folder / MERGES)
        backend = _guarded(where, lambda: qwen2_pipeline(models.BPE(vocab=in_vocab, merges=merges)))
    else:
        other = "; tokenizer.model is sentencepiece's, and only byte-level BPE is supported"
        raise UserError(
            f"no tokenizer in {folder}: {TOKENIZER} is missing"
            f"{other if (folder / 'tokenizer.model').is_file() else ''}"
        )
    _check_added(backend, listed, where)
    _check_added(backend, _add_configured(backend, config, folder / CONFIG), folder / CONFIG)
    _check_clashes(backend, in_vocab, where)
    eos = _token_text(config.get("eos_token") or objects.get(SPECIAL_MAP, {}).get("eos_token"))
    return PublishedTokenizer(backend, files, eos)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} has more than {MAX_BYTES} bytes: no tokenizer is that large")
    return content


def _parse(content: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in a file; a key that occurs twice is an error."""
    try:
        return parse_object(content)
    except ValueError as error:
        raise _unreadable(path, error) from error


def _guarded(path: Path, build: Callable[[], tokenizers.Tokenizer]) -> tokenizers.Tokenizer:
    """What ``build`` returns; each of the library's faults is a UserError."""
    try:
        return build()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the Rust library is no Exception
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: BaseException) -> UserError:
    return UserError(f"{path} is not a readable tokenizer: {' '.join(str(error).split())[:200]}")


def _merge_lines(content: bytes, path: Path) -> list[tuple[str, str]]:
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise _unreadable(path, error) from error
    merges = []
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise UserError(f"{path}, line {number}: not two tokens with a space between them")
        merges.append((left, right))
    return merges


def _check_is_qwen2(config: dict[str, Any], folder: Path) -> None:
    name = config.get("tokenizer_class")
    if name not in ("Qwen2Tokenizer", "Qwen2TokenizerFast"):
        raise UserError(
            f"{folder} has {VOCAB} and {MERGES} but no {TOKENIZER}, and its tokenizer_class is "
            f"{name!r}: only Qwen2Tokenizer is known in this form; save it with a {TOKENIZER}"
        )
    if not config.get("added_tokens_decoder"):
        raise UserError(f"{folder / CONFIG} has no added_tokens_decoder: the ids are unknown")


def _add_configured(
    backend: tokenizers.Tokenizer, config: dict[str, Any], path: Path
) -> dict[str, int]:
    """Give the backend the added tokens of tokenizer_config.json; return their ids."""
    configured = config.get("added_tokens_decoder") or {}
    try:
        entries = sorted((int(token_id), AddedToken(**e)) for token_id, e in configured.items())
    except (TypeError, ValueError, AttributeError) as error:
        message = f"{path}: added_tokens_decoder is not a table of ids and tokens"
        raise UserError(message) from error
    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    # In this order and with these flags transformers adds them.
    backend.add_tokens([t for _, t in entries if repr(known.get(t.content)) != repr(t)])
    return {token.content: token_id for token_id, token in entries}


def _listed(content: dict[str, Any], path: Path) -> dict[str, int]:
    """The added tokens of tokenizer.json and their ids."""
    tokens = content.get("added_tokens") or []
    try:
        return {str(token["content"]): token["id"] for token in tokens}
    except (TypeError, KeyError) as error:
        raise UserError(f"{path} is not a readable tokenizer: added_tokens is no list") from error


def _check_added(backend: tokenizers.Tokenizer, expected: dict[str, int], path: Path) -> None:
    """The library numbers added tokens itself and ignores the ids that a file gives them."""
    for content, token_id in expected.items():
        if backend.token_to_id(content) != token_id:
            raise UserError(
                f"{path}: the added token {content[:40]!r} has id {token_id}, but the ids before "
                f"it make it {backend.token_to_id(content)}: a hole or a clash in the vocabulary"
            )


def _check_lossless(content: dict[str, Any], path: Path) -> dict[str, int]:
    """Raise UserError unless decoding gives back the text, apart from Unicode normalisation.

    Returns:
        the model's vocabulary.
    """
    model = content.get("model")
    kind = model.get("type", "BPE") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind != "BPE":
        raise _foreign(path, f"its model is {str(kind)[:40]}, not BPE")
    normalizer = _parts(content.get("normalizer"), path)
    pre, decoder = (_parts(content.get(key), path) for key in ("pre_tokenizer", "decoder"))
    if [part["type"] for part in decoder] != ["ByteLevel"]:
        raise _foreign(path, f"its decoder is {_names(decoder)}, not ByteLevel")
    if any(part["type"] not in _NORMALIZERS for part in normalizer):
        raise _foreign(path, f"its normalizer, {_names(normalizer)}, rewrites text")
    levels = [part for part in pre if part["type"] == "ByteLevel"]
    splitters = [part for part in pre if part["type"] != "ByteLevel"]
    if len(levels) != 1 or any(part["type"] not in _SPLITTERS for part in splitters):
        raise _foreign(path, f"its pre-tokenizer is {_names(pre)}")
    if any(part.get("behavior") == "Removed" for part in splitters):
        raise _foreign(path, "its pre-tokenizer removes text")
    if levels[0].get("add_prefix_space") is not False:
        raise _foreign(path, "it puts a space before each text (add_prefix_space)")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _foreign(path, "it marks the inside or the end of words")
    if model.get("dropout"):
        raise _foreign(path, "its model has dropout, so ids are drawn by chance")
    vocab: Any = model.get("vocab")
    _check_alphabet(vocab, path)
    _check_merges(model.get("merges"), vocab, path)
    return dict(vocab)


def _check_alphabet(vocab: Any, path: Path) -> None:
    """The vocabulary is a table of ids and can spell ordinary text.

    Not all 256 bytes: SmolLM2's lacks 21 that its training text did not have (some control
    characters, and bytes of unused planes). Characters with such a byte lose it in `encode`.
    """
    if not isinstance(vocab, dict) or not all(type(i) is int and i >= 0 for i in vocab.values()):
        raise UserError(f"{path} is not a readable tokenizer: its vocab is no table of ids")
    for character, byte in BYTE_OF_CHARACTER.items():
        if byte in _ORDINARY and character not in vocab:
            raise _foreign(path, f"byte 0x{byte:02x} has no token")


def _check_merges(merges: Any, vocab: dict[str, int], path: Path) -> None:
    """Each merge joins two tokens to a third; written as "left right" or as [left, right]."""
    for number, merge in enumerate(merges if isinstance(merges, list) else [None], 1):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        try:
            left, right = pair
            known = left in vocab and right in vocab and left + right in vocab
        except (TypeError, ValueError):
            known = False
        if not known:
            raise UserError(f"{path}: merge {number} does not join two tokens of the vocabulary")


def _check_clashes(backend: tokenizers.Tokenizer, in_vocab: dict[str, int], path: Path) -> None:
    """One token an id, no holes, and no added token that is also a token of bytes.

    An id that is no token could be sampled; none of Qwen2's, Llama's or SmolLM2's leaves one out.
    """
    ids = set(backend.get_vocab(with_added_tokens=True).values())
    tokens = backend.get_vocab_size(with_added_tokens=True)
    if len(ids) < tokens:
        raise UserError(f"{path}: {tokens} tokens share {len(ids)} ids")
    if max(ids) + 1 > tokens:
        hole = next(number for number in range(tokens) if number not in ids)
        raise UserError(f"{path}: no token has id {hole}, but {max(ids)} is one: it has holes")
    for token in backend.get_added_tokens_decoder().values():
        content = token.content
        spelled = not content.isascii() and all(c in BYTE_OF_CHARACTER for c in content)
        if spelled and content in in_vocab:
            raise UserError(f"{path}: the added token {content[:40]!r} is also a token of bytes")


def _parts(component: Any, path: Path) -> list[dict[str, Any]]:
    """A normalizer, pre-tokenizer or decoder as the flat list of its parts."""
    try:
        return [] if component is None else list(_flat(component))
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not a readable tokenizer: a part without type") from error


def _flat(component: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if not isinstance(component["type"], str):
        raise TypeError("a type that is no string")
    if component["type"] != "Sequence":
        yield component
        return
    for name in ("normalizers", "pretokenizers", "decoders"):
        for part in component.get(name, ()):
            yield from _flat(part)


def _names(parts: Iterable[dict[str, Any]]) -> str:
    return " + ".join(part["type"][:40] for part in parts) or "missing"


def _foreign(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: {reason}; only byte-level BPE that loses no text is supported")


def _token_text(value: Any) -> str | None:
    """A token's text: written as a string, or as an object with its content."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
