"""Published tokenizers of other models: kept verbatim, equal to transformers, or refused by name.

The shapes of SmolLM2's and Llama 3's files are rebuilt here around small vocabularies.
"""

import copy
import json
import json.decoder
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from openmimo import tokenizer_folder
from openmimo.errors import UserError
from openmimo.tokenizer import StreamDecoder, Tokenizer

CORPUS = ["the tokens of text: call(x) = 12345;\n日本語 ½ 😀\n" * 9]
CORPUS += [Path(json.decoder.__file__).read_text(encoding="utf-8")]
LLAMA_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}


def added(content: str, token_id: int, special: bool, **flags: bool) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": content, **plain, **flags, "special": special}


@pytest.fixture(scope="session")
def trained() -> dict[str, Any]:
    """A tokenizer.json without added tokens; 345 tokens."""
    content = json.loads(Tokenizer.train(CORPUS, 348)._backend.to_str())
    content["added_tokens"] = []
    assert len(content["model"]["vocab"]) == 345
    return content


def qwen_like(trained: dict[str, Any]) -> dict[str, Any]:
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "<think>", "a é"]
    tokens = [added(name, 345 + n, special=n < 3) for n, name in enumerate(names)]
    return {**copy.deepcopy(trained), "added_tokens": tokens}


def smol_like(trained: dict[str, Any]) -> dict[str, Any]:
    """The special tokens have the first ids, and are in the model's vocabulary too."""
    content = copy.deepcopy(trained)
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
    vocab = content["model"]["vocab"]
    content["model"]["vocab"] = {name: n for n, name in enumerate(names)}
    content["model"]["vocab"] |= {token: 4 + token_id for token, token_id in vocab.items()}
    content["added_tokens"] = [added(name, n, special=True) for n, name in enumerate(names)]
    content["normalizer"] = None
    digits = {"type": "Digits", "individual_digits": True}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, BYTE_LEVEL]}
    return content


def llama_like(trained: dict[str, Any]) -> dict[str, Any]:
    """No ChatML; a post-processor that would put a token in front; whole words before merges."""
    content = copy.deepcopy(trained)
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|reserved_special_token_0|>"]
    content["added_tokens"] = [added(name, 345 + n, special=True) for n, name in enumerate(names)]
    content["normalizer"] = None
    content["model"]["ignore_merges"] = True
    split = {
        "type": "Split", "pattern": {"Regex": LLAMA_SPLIT}, "behavior": "Isolated", "invert": False,
    }  # fmt: skip
    level = {**BYTE_LEVEL, "use_regex": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [],
        "special_tokens": {
            "<|begin_of_text|>": {
                "id": "<|begin_of_text|>", "ids": [345], "tokens": ["<|begin_of_text|>"],
            }
        },
    }  # fmt: skip
    return content


SHAPES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "qwen": qwen_like,
    "smol": smol_like,
    "llama": llama_like,
}


def write(folder: Path, content: Any, config: Any = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def folders(trained: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("published")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    llama = {**config, "eos_token": {"content": "<|eot_id|>", "__type": "AddedToken"}}
    return {
        name: write(root / name, shape(trained), llama if name == "llama" else config)
        for name, shape in SHAPES.items()
    }


@pytest.fixture(scope="session")
def loaded(folders: dict[str, Path]) -> dict[str, Tokenizer]:
    return {name: Tokenizer.load(folder) for name, folder in folders.items()}


@pytest.fixture(scope="session")
def references(folders: dict[str, Path]) -> dict[str, Any]:
    transformers = pytest.importorskip("transformers")
    load = transformers.AutoTokenizer.from_pretrained
    return {name: load(folder) for name, folder in folders.items()}


PIECES = [
    "<|im_end|>",
    "<|eot_id|>",
    "<tool_call>",
    "<think>",
    "a é",
    "<repo_name>",
    "12345",
    "  \n",
]


@given(
    name=st.sampled_from(list(SHAPES)),
    text=st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=6))).map("".join),
)
def test_ids_equal_transformers(
    loaded: dict[str, Tokenizer], references: dict[str, Any], name: str, text: str
) -> None:
    tokenizer, reference = loaded[name], references[name]
    ids = tokenizer.encode(text)
    kwargs = {"add_special_tokens": False, "split_special_tokens": True}
    assert ids == reference(text, **kwargs)["input_ids"]
    assert not set(reference.all_special_ids).intersection(ids)
    assert tokenizer.decode(ids) == (text if name != "qwen" else reference.decode(ids))


@given(name=st.sampled_from(list(SHAPES)), ids=st.lists(st.integers(-3, 360)))
def test_streamed_text_is_the_decoded_text(
    loaded: dict[str, Tokenizer], name: str, ids: list[int]
) -> None:
    tokenizer = loaded[name]
    decoder = StreamDecoder(tokenizer)
    text = "".join(decoder.feed(token_id) for token_id in ids) + decoder.finish()
    valid = [token_id for token_id in ids if 0 <= token_id < tokenizer.vocab_size]
    expected = tokenizer._backend.decode(valid, skip_special_tokens=True)
    assert text == tokenizer.decode(ids) == expected


def test_the_ends_of_texts(loaded: dict[str, Tokenizer]) -> None:
    ends = {name: (t.doc_end_id, t.eos_id, t.turn_start_id) for name, t in loaded.items()}
    assert ends == {"qwen": (345, 347, 346), "smol": (0, 2, 1), "llama": (346, 347, None)}
    assert {name: t.vocab_size for name, t in loaded.items()} == {
        "qwen": 351, "smol": 349, "llama": 349,
    }  # fmt: skip
    with pytest.raises(UserError, match="not for chat"):
        loaded["llama"].chat_prompt("Hi")
    assert loaded["smol"].chat_prompt("").count(1) == 3


def test_bytes_of_added_tokens(loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded["qwen"]
    assert [tokenizer.token_bytes(token_id) for token_id in range(344, 353)][1:] == [
        b"", b"", b"", b"<tool_call>", b"<think>", "a é".encode(), b"", b"",
    ]  # fmt: skip
    assert tokenizer.encode("x<think>a é")[-2:] == [349, 350]


def test_an_added_token_of_latin_letters_is_not_read_as_bytes(
    trained: dict[str, Any], tmp_path: Path
) -> None:
    # "éé" could be two bytes in the byte-level alphabet; the library itself decodes it so.
    content = qwen_like(trained)
    content["added_tokens"].append(added("éé", 351, special=False))
    tokenizer = Tokenizer.load(write(tmp_path, content))
    assert tokenizer.encode("éé") == [351]
    assert tokenizer.decode([351]) == "éé"


def test_files_are_written_as_they_came(trained: dict[str, Any], tmp_path: Path) -> None:
    source = write(tmp_path / "in", qwen_like(trained))
    # Indented by tabs, CRLF, a key that nobody knows: no writer of ours would make these bytes.
    config = b'{\r\n\t"eos_token": "<|im_end|>", "unknown": 1e3,\r\n\t"chat_template": "{{x}}"\r\n}'
    others = {
        "tokenizer_config.json": config,
        "special_tokens_map.json": b"{}\n\n",
        "added_tokens.json": b'{"<tool_call>":348}',
        "vocab.json": b"{ }",
        "merges.txt": b"#version: 0.2\r\n",
        "chat_template.jinja": "{{ '…' }}".encode(),
        "chat_template.json": b'{"chat_template": ""}',
    }
    for name, content in others.items():
        (source / name).write_bytes(content)
    (source / "weights.bin").write_bytes(b"not ours")
    Tokenizer.load(source).save(tmp_path / "out")
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert written == {**others, "tokenizer.json": (source / "tokenizer.json").read_bytes()}


def test_vocab_and_merges_alone(trained: dict[str, Any], tmp_path: Path) -> None:
    whole = qwen_like(trained)
    table = {str(token.pop("id")): token for token in copy.deepcopy(whole["added_tokens"])}
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": table}
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    merges = "".join(f"{left} {right}\n" for left, right in whole["model"]["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    parts, full = Tokenizer.load(folder), Tokenizer.load(write(tmp_path / "whole", whole))
    text = "the tokens, a é<think> It's 12345 ½ <|im_end|>\r\n"
    assert parts.encode(text) == full.encode(text)
    assert (parts.vocab_size, parts.eos_id) == (full.vocab_size, full.eos_id)
    (folder / "merges.txt").write_bytes(merges.replace("\n", "\r\n").encode())
    assert Tokenizer.load(folder).encode(text) == full.encode(text)
    parts.save(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "vocab.json", "merges.txt", "tokenizer_config.json",
    }  # fmt: skip

    for change, message in (
        ({"tokenizer_class": "GPT2Tokenizer"}, "GPT2Tokenizer"),
        ({"added_tokens_decoder": {}}, "no added_tokens_decoder"),
        ({"added_tokens_decoder": {"x": 1}}, "not a table"),
        ({"added_tokens_decoder": {"400": table["345"]}}, "has id 400"),
    ):
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=message):
            Tokenizer.load(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for text, message in (("a b c\n", "line 1: not two"), ("zz qq\n", "merge 1 does")):
        (folder / "merges.txt").write_text(text)
        with pytest.raises(UserError, match=message):
            Tokenizer.load(folder)


def test_tokens_that_only_the_config_has(trained: dict[str, Any], tmp_path: Path) -> None:
    content = qwen_like(trained)
    table = {"351": {"content": "<late>", "special": False, "normalized": False}}
    folder = write(tmp_path / "a", content, {"added_tokens_decoder": table})
    transformers = pytest.importorskip("transformers")
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    text = "x<late><think>"
    assert Tokenizer.load(folder).encode(text) == reference(text)["input_ids"]
    assert Tokenizer.load(folder).encode(text)[-2:] == [351, 349]
    # The config also decides whether a token is special.
    think = {"349": {**added("<think>", 0, special=True)}}
    del think["349"]["id"]
    special = Tokenizer.load(write(tmp_path / "b", content, {"added_tokens_decoder": think}))
    assert 349 not in special.encode("<think>")
    assert special.decode([349]) == ""


def test_chat_tokens_that_were_added_as_ordinary_ones_are_special(
    trained: dict[str, Any], tmp_path: Path
) -> None:
    content = qwen_like(trained)
    for token in content["added_tokens"]:
        token["special"] = False
    tokenizer = Tokenizer.load(write(tmp_path, content))
    assert not {345, 346, 347}.intersection(tokenizer.encode("<|im_end|><|im_start|>"))
    assert 348 in tokenizer.encode("<tool_call>")


def test_truncation_and_padding_of_the_file_are_off(
    trained: dict[str, Any], tmp_path: Path
) -> None:
    backend = Backend.from_str(json.dumps(qwen_like(trained)))
    backend.enable_truncation(8)
    backend.enable_padding(length=32, pad_id=345)
    tokenizer = Tokenizer.load(write(tmp_path, json.loads(backend.to_str())))
    for text in ("", "1234567890" * 10):
        assert len(tokenizer.encode(text)) == len(tokenizer.encode_many([text])[0]) == len(text)


@pytest.mark.parametrize("unk_token", [None, "<|endoftext|>"])
def test_bytes_without_a_token_are_left_out(
    trained: dict[str, Any], tmp_path: Path, unk_token: str | None
) -> None:
    """As in SmolLM2's vocabulary, which lacks 21 bytes; never do they become a special token."""
    content = smol_like(trained)
    vocab = content["model"]["vocab"]
    vocab["ĀĀ"] = vocab.pop("Ą")  # byte 0x04; no merge makes the other
    content["model"]["unk_token"] = unk_token
    tokenizer = Tokenizer.load(write(tmp_path, content))
    assert tokenizer.encode("a\x04b") == [vocab["a"], vocab["b"]]


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
