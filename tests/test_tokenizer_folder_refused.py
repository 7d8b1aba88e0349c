"""Published tokenizers that cannot be used are refused by name, whatever is wrong with them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openmimo import tokenizer_folder
from openmimo.errors import UserError
from openmimo.tokenizer import Tokenizer

from .published_tokenizers import BYTE_LEVEL, added, qwen_like, trained, write

__all__ = ["trained"]  # a fixture


def metaspace(content: dict[str, Any]) -> None:
    content["pre_tokenizer"] = {
        "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True,
    }  # fmt: skip
    content["decoder"] = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]}


def word_piece(content: dict[str, Any]) -> None:
    content["model"] = {
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": {"[UNK]": 0, "a": 1},
    }  # fmt: skip
    content["added_tokens"] = []


def unigram(content: dict[str, Any]) -> None:
    content["model"] = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]}
    content["added_tokens"] = []


def level(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content["pre_tokenizer"] = {**BYTE_LEVEL, **changes}

    return change


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Set the value at a path of keys; the last argument is the value."""

    def change(content: Any) -> None:
        *keys, last, value = path
        for key in keys:
            content = content[key]
        content[last] = value

    return change


def split(behavior: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": "x"}, "behavior": behavior, "invert": False}


def sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


def two_tokens_with_one_id(content: dict[str, Any]) -> None:
    """As the library counts them, the ids of the added tokens follow without a hole."""
    content["model"]["vocab"]["zz"] = 17
    for token in content["added_tokens"]:
        token["id"] += 1


REFUSED: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (metaspace, "decoder is ByteFallback"),
    (word_piece, "its model is WordPiece"),
    (unigram, "its model is Unigram"),
    (level(add_prefix_space=True), "add_prefix_space"),
    (put("pre_tokenizer", None), "pre-tokenizer is missing"),
    (put("pre_tokenizer", sequence(split("Removed"), BYTE_LEVEL)), "removes text"),
    (put("pre_tokenizer", sequence({"type": "Whitespace"}, BYTE_LEVEL)), "Whitespace"),
    (put("pre_tokenizer", sequence(BYTE_LEVEL, BYTE_LEVEL)), "ByteLevel . ByteLevel"),
    (put("normalizer", {"type": "Lowercase"}), "Lowercase"),
    (put("normalizer", {"type": "Prepend", "prepend": "x"}), "Prepend"),
    (put("decoder", None), "decoder is missing"),
    (put("decoder", {"type": "Fuse"}), "decoder is Fuse"),
    (put("model", "dropout", 0.5), "dropout"),
    (put("model", "end_of_word_suffix", "</w>"), "of words"),
    (lambda c: c["model"]["vocab"].update({"#": 900}), "has holes|hole or a clash"),
    (put("model", "vocab", "zz", 17), "a clash"),
    (two_tokens_with_one_id, "352 tokens share 351 ids"),
    (put("model", "vocab", "zz", -1), "not a readable"),
    (put("model", "vocab", "zz", 2**40), "not a readable"),
    (put("model", "vocab", "zz", 2**32 - 1), "hole"),
    (put("model", "vocab", "zz", "1"), "not a readable"),
    (put("model", "vocab", []), "not a readable"),
    (put("model", "type", "Other"), "its model is Other"),
    (put("model", "merges", None), "merge 1 does not join"),
    (put("model", "merges", 1, [["e"], "n"]), "merge 2 does not join"),
    (put("model", "merges", 1, "e n n"), "merge 2 does not join"),
    # The library panics on these, and that ends the process.
    (lambda c: c["model"]["merges"].append(["Ġn", "é"]), "merge 90 does not join"),
    (put("model", "merges", 0, ["the", "zzz"]), "merge 1 does not join"),
    (put("model", "continuing_subword_prefix", "####"), "of words"),
    (put("model", "continuing_subword_prefix", "\x00"), "of words"),
    (put("added_tokens", 5, "id", 400), "'a é' has id 400"),
    (put("added_tokens", 5, "id", -1), "not a readable"),
    (put("added_tokens", 5, "content", "é"), "has id 350"),
    (put("added_tokens", 5, "content", "<think>"), "id"),
    (put("added_tokens", 5, "content", 7), "not a readable"),
    (put("added_tokens", {}), "not a readable"),
    (lambda c: c["added_tokens"].clear(), "names no eos_token"),
    (lambda c: c.pop("model"), "its model is None"),
    (lambda c: c["model"]["vocab"].pop("Ġ"), "byte 0x20 has no token"),
    (put("pre_tokenizer", "ByteLevel"), "not a readable"),
    (put("pre_tokenizer", {"type": ["ByteLevel"]}), "not a readable"),
    (put("normalizer", {"type": ["NFC"]}), "not a readable"),
    (put("decoder", [BYTE_LEVEL]), "not a readable"),
    (lambda c: c["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": "("}), "readable"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_refused_by_name(
    trained: dict[str, Any], tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    content = qwen_like(trained)
    change(content)
    with pytest.raises(UserError, match=message) as error:
        Tokenizer.load(write(tmp_path, content))
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("pattern", "special", "message"),
    [("[a-z]{3}", True, "is also ordinary text"), ("é", False, "is also a token of bytes")],
)
def test_added_tokens_that_are_in_the_vocabulary_too(
    trained: dict[str, Any], tmp_path: Path, pattern: str, special: bool, message: str
) -> None:
    content = qwen_like(trained)
    vocab = content["model"]["vocab"]
    word = next(token for token in vocab if re.fullmatch(pattern, token))
    content["added_tokens"].insert(0, added(word, vocab[word], special))
    with pytest.raises(UserError, match=f"{word}' {message}"):
        Tokenizer.load(write(tmp_path, content))


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"[]",
        b"null",
        b"\xff\xfe{}",
        b'{"version": "1.0", "version": "1.0"}',
        b'{"model": ' + b"9" * 10_000 + b"}",
    ],
)
def test_hostile_bytes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match="not a readable tokenizer") as error:
        Tokenizer.load(tmp_path)
    assert len(str(error.value)) < len(str(tmp_path)) + 300


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "tokenizer_config.json"])
def test_a_huge_file_is_not_read(trained: dict[str, Any], tmp_path: Path, name: str) -> None:
    write(tmp_path, qwen_like(trained))
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**40)  # more than the memory: reading it would end the test
    with pytest.raises(UserError, match=f"{name} has more than"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("config", [[], "x", {"added_tokens_decoder": [1]}, {"eos_token": 3}])
def test_a_broken_config(trained: dict[str, Any], tmp_path: Path, config: Any) -> None:
    folder = write(tmp_path, qwen_like(trained), config)
    if isinstance(config, dict) and "eos_token" in config:
        assert Tokenizer.load(folder).eos_id == 347  # ChatML needs no eos_token
        return
    with pytest.raises(UserError, match=re.escape("tokenizer_config.json")):
        Tokenizer.load(folder)


def test_sentencepiece_alone_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e")
    with pytest.raises(UserError, match="sentencepiece"):
        Tokenizer.load(tmp_path)


def test_a_panic_of_the_library_is_an_error(
    trained: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Panic(BaseException):
        """As pyo3 raises it: not an Exception."""

    def panic(content: str) -> Any:
        raise Panic("index out of bounds:\nthe len is 3")

    monkeypatch.setattr(tokenizer_folder.tokenizers.Tokenizer, "from_str", panic, raising=True)
    with pytest.raises(UserError, match="index out of bounds: the len is 3"):
        Tokenizer.load(write(tmp_path, qwen_like(trained)))
