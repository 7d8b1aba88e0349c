"""Published tokenizer folders: read with suspicion, checked to be byte-level BPE, kept verbatim.

transformers writes a tokenizer as several files, of which ``tokenizer.json`` says nearly all.
Other tools read the others, so none may be lost on the way through openmimo.

What is refused: everything with which ids would not give back the text (sentencepiece, WordPiece,
normalizers that rewrite, prefix spaces), and files that contradict themselves.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, models

from openmimo.errors import UserError
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
        backend = _guarded(where, lambda: tokenizers.Tokenizer.from_buffer(files[TOKENIZER]))
        listed = objects[TOKENIZER].get("added_tokens") or []
        expected = {token["content"]: token["id"] for token in listed}
    elif VOCAB in files and MERGES in files:
        where = folder / VOCAB
        _check_is_qwen2(config, folder)
        merges = _merges(files[MERGES], folder / MERGES)
        vocab: dict[str, int] = objects[VOCAB]
        backend = _guarded(where, lambda: qwen2_pipeline(models.BPE(vocab=vocab, merges=merges)))
        expected = {}
    else:
        other = "; tokenizer.model is sentencepiece's, and only byte-level BPE is supported"
        raise UserError(
            f"no tokenizer in {folder}: {TOKENIZER} is missing"
            f"{other if (folder / 'tokenizer.model').is_file() else ''}"
        )
    _check_ids(backend, expected, where)
    _check_ids(backend, _add_configured(backend, config, folder / CONFIG), folder / CONFIG)
    _check_lossless(backend, where)
    _check_vocabulary(backend, where)
    # Set in files of fine-tuned models, and would cut documents to a length without a word.
    backend.no_truncation()
    backend.no_padding()
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
        parsed = json.loads(content, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(parsed, dict):
        raise UserError(f"{path} is not a readable tokenizer: it must hold one JSON object")
    return parsed


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{repeated[:40]!r} occurs twice")
    return result


def _guarded(path: Path, build: Any) -> tokenizers.Tokenizer:
    """What ``build`` returns; each of the library's faults is a UserError."""
    try:
        return build()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the Rust library is no Exception
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: BaseException) -> UserError:
    return UserError(f"{path} is not a readable tokenizer: {' '.join(str(error).split())[:200]}")


def _merges(content: bytes, path: Path) -> list[tuple[str, str]]:
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


def _check_ids(backend: tokenizers.Tokenizer, expected: dict[str, int], path: Path) -> None:
    """The library numbers added tokens itself and ignores the ids that a file gives them."""
    for content, token_id in expected.items():
        if backend.token_to_id(content) != token_id:
            raise UserError(
                f"{path}: the added token {content[:40]!r} has id {token_id}, but the ids before "
                f"it make it {backend.token_to_id(content)}: a hole or a clash in the vocabulary"
            )


def _check_lossless(backend: tokenizers.Tokenizer, path: Path) -> None:
    """Raise UserError unless decoding gives back the text, apart from Unicode normalisation."""
    model = backend.model
    if not isinstance(model, models.BPE):
        raise _foreign(path, f"its model is {type(model).__name__}")
    normalizer, pre = _parts(backend.normalizer), _parts(backend.pre_tokenizer)
    decoder = _parts(backend.decoder)
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
    if levels[0]["add_prefix_space"]:
        raise _foreign(path, "it puts a space before each text (add_prefix_space)")
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        raise _foreign(path, "it marks the inside or the end of words")
    if model.dropout:
        raise _foreign(path, "its model has dropout, so ids are drawn by chance")
    for byte in BYTE_OF_CHARACTER:
        if model.token_to_id(byte) is None:
            raise _foreign(path, f"byte 0x{BYTE_OF_CHARACTER[byte]:02x} has no token")


def _check_vocabulary(backend: tokenizers.Tokenizer, path: Path) -> None:
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
        if spelled and backend.model.token_to_id(content) is not None:
            raise UserError(f"{path}: the added token {content[:40]!r} is also a token of bytes")


def _parts(component: Any) -> list[dict[str, Any]]:
    """A normalizer, pre-tokenizer or decoder as the flat list of its parts."""
    return [] if component is None else list(_flat(json.loads(component.__getstate__())))


def _flat(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if state["type"] != "Sequence":
        yield state
        return
    for name in ("normalizers", "pretokenizers", "decoders"):
        for part in state.get(name, ()):
            yield from _flat(part)


def _names(parts: Iterable[dict[str, Any]]) -> str:
    return " + ".join(part["type"] for part in parts) or "missing"


def _foreign(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: {reason}; only byte-level BPE that loses no text is supported")


def _token_text(value: Any) -> str | None:
    """A token's text: written as a string, or as an object with its content."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
