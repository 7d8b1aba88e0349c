"""Tokenizers in GGUF fields: there and back with the same ids, or refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from openmimo.errors import UserError
from openmimo.interop.gguf_read import GGUFSource
from openmimo.interop.gguf_tokenizer import from_files, special_ids, to_files
from openmimo.tokenizer import Tokenizer

SIZE = 640
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def gpt2() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def split(pattern: str) -> Any:
    parts = [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return pre_tokenizers.Sequence(parts)


# The patterns as the models' own tokenizer.json have them.
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
SPLITS = {
    "qwen2": (normalizers.NFC(), split(QWEN2)),
    "smollm": (None, pre_tokenizers.Sequence([pre_tokenizers.Digits(True), gpt2()])),
    "gpt-2": (None, gpt2()),
    "llama-bpe": (None, split(LLAMA3)),
}


def backend(pre: str, texts: list[str]) -> tokenizers.Tokenizer:
    """A tokenizer of fewer than SIZE tokens with ChatML's and one that is not special."""
    built = tokenizers.Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    normalizer, built.pre_tokenizer = SPLITS[pre]
    if normalizer:
        built.normalizer = normalizer
    built.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    built.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False),
    )
    chatml = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    built.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in chatml])
    built.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    return built


def files_of(built: tokenizers.Tokenizer, **config: Any) -> dict[str, bytes]:
    return {
        "tokenizer.json": built.to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }


def rebuilt(fields: dict[str, Any], size: int = SIZE) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(
        to_files(fields, size, "x.gguf")["tokenizer.json"].decode()
    )


@pytest.fixture(scope="module")
def fields(hard_texts: list[str]) -> dict[str, Any]:
    """Sound fields, to be broken."""
    return from_files(files_of(backend("qwen2", hard_texts[:60]), chat_template="{{ 1 }}"), SIZE)


@pytest.mark.parametrize("pre", SPLITS)
def test_there_and_back(pre: str, hard_texts: list[str]) -> None:
    built = backend(pre, hard_texts[:60])
    fields = from_files(files_of(built), SIZE)
    assert fields["tokenizer.ggml.pre"] == pre
    again = rebuilt(fields)
    texts = [*hard_texts, "e\u0301", "<tool_call>\n<|im_end|>"]
    for text in texts:
        assert again.encode(text).ids == built.encode(text).ids, ascii(text)
        ids = built.encode(text).ids
        assert again.decode(ids) == built.decode(ids)
    assert again.get_vocab() == built.get_vocab()
    assert from_files(files_of(again), SIZE) == fields


def test_our_own_tokenizers_are_qwen2(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    fields = from_files(files, 304)
    assert fields["tokenizer.ggml.pre"] == "qwen2"
    assert len(fields["tokenizer.ggml.tokens"]) == 304
    used = tokenizer.vocab_size
    types = fields["tokenizer.ggml.token_type"]
    assert types[used:] == [UNUSED] * (304 - used)
    assert types[used - 3 : used] == [CONTROL] * 3
    assert fields["tokenizer.chat_template"] == json.loads(files["tokenizer_config.json"])[
        "chat_template"
    ]  # fmt: skip
    again = tmp_path / "again"
    again.mkdir()
    for name, content in to_files(fields, 304, "x").items():
        (again / name).write_bytes(content)
    loaded = Tokenizer.load(again)
    assert loaded.vocab_size == used
    assert loaded.encode("<|im_end|> 1 + 1") == tokenizer.encode("<|im_end|> 1 + 1")
    assert loaded.chat_prompt("1 + 1?") == tokenizer.chat_prompt("1 + 1?")


def test_types_decide_what_is_special(fields: dict[str, Any]) -> None:
    again = rebuilt(fields)
    tool, end = again.token_to_id("<tool_call>"), again.token_to_id("<|im_end|>")
    assert fields["tokenizer.ggml.token_type"][tool] == USER_DEFINED
    ids = again.encode("a<tool_call>b<|im_end|>").ids
    assert {tool, end} < set(ids)
    assert again.decode(ids, skip_special_tokens=True) == "a<tool_call>b"
    again.encode_special_tokens = True
    assert end not in again.encode("<|im_end|>").ids


def test_unused_tokens(fields: dict[str, Any]) -> None:
    used = rebuilt(fields).get_vocab_size()
    assert used < SIZE
    assert "[PAD639]" not in rebuilt(fields).get_vocab()
    # One in the middle keeps its id, and no text is ever it.
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    changes = {
        "tokenizer.ggml.tokens": ["[OLD]" if n == used else t for n, t in enumerate(tokens)],
        "tokenizer.ggml.token_type": [NORMAL if n == used + 1 else t for n, t in enumerate(types)],
    }
    changes["tokenizer.ggml.tokens"][used + 1] = "zqzq"
    again = rebuilt(fields | changes)
    assert again.token_to_id("zqzq") == used + 1
    assert used not in again.encode("[OLD]").ids


def test_ids_and_template_of_the_config(fields: dict[str, Any]) -> None:
    tokens = fields["tokenizer.ggml.tokens"]
    ids = {
        "tokenizer.ggml.bos_token_id": tokens.index("<|endoftext|>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
        "tokenizer.ggml.padding_token_id": tokens.index("<|endoftext|>"),
    }
    config = json.loads(to_files(fields | ids, SIZE, "x")["tokenizer_config.json"])
    assert (config["bos_token"], config["eos_token"]) == ("<|endoftext|>", "<|im_end|>")
    assert (config["pad_token"], config["unk_token"]) == ("<|endoftext|>", None)
    assert config["chat_template"] == "{{ 1 }}"
    assert not config["add_bos_token"]
    assert special_ids(fields | ids, SIZE, "x")["eos"] == tokens.index("<|im_end|>")


@pytest.mark.parametrize("stated", [True, None])
def test_bos_goes_first_where_the_file_says_so(stated: bool | None, hard_texts: list[str]) -> None:
    # llama.cpp adds it for llama-bpe unless the file says otherwise.
    fields = from_files(files_of(backend("llama-bpe", hard_texts[:60])), SIZE)
    bos = fields["tokenizer.ggml.tokens"].index("<|endoftext|>")
    fields |= {"tokenizer.ggml.bos_token_id": bos, "tokenizer.ggml.add_bos_token": stated}
    if stated is None:
        del fields["tokenizer.ggml.add_bos_token"]
    again = rebuilt(fields)
    assert again.encode("x").ids[0] == bos
    assert bos not in again.encode("x", add_special_tokens=False).ids
    assert bos not in rebuilt(fields | {"tokenizer.ggml.add_bos_token": False}).encode("x").ids
    del fields["tokenizer.ggml.bos_token_id"]
    with pytest.raises(UserError, match="no bos token"):
        rebuilt(fields)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no tokenizer": ({"model": None}, "'none'"),
    "sentencepiece": ({"model": "llama"}, "sentencepiece"),
    "WordPiece": ({"model": "bert"}, "'bert'"),
    "a model that is no text": ({"model": 7}, "is 7"),
    "no split": ({"pre": None}, "rule None"),
    "the default split": ({"pre": "default"}, "'default'"),
    "an unknown split": ({"pre": "deepseek-v3"}, "'deepseek-v3'"),
    "a split that is no text": ({"pre": ["qwen2"]}, "rule"),
    "eos at every end": ({"add_eos_token": True}, "eos"),
    "no tokens": ({"tokens": None}, "tokens is missing"),
    "tokens that are numbers": ({"tokens": [1, 2]}, "token"),
    "tokens that are one text": ({"tokens": "abc"}, "tokens is missing or no list"),
    "no types": ({"token_type": None}, "token_type"),
    "too few types": ({"token_type": [1, 1]}, "token_type"),
    "types that are one text": ({"token_type": "1" * SIZE}, "token_type"),
    "types that are texts": ({"token_type": ["a"] * SIZE}, "token_type"),
    "a type of sentencepiece": ({"token_type": [BYTE] * SIZE}, "type 6"),
    "an unknown type": ({"token_type": [99] * SIZE}, "type 99"),
    "an unknown token": ({"token_type": [UNKNOWN] * SIZE}, "type 2"),
    "more tokens than rows": (
        {"tokens": [str(n) for n in range(SIZE + 1)], "token_type": [NORMAL] * (SIZE + 1)},
        "641 tokens",
    ),
    "one token twice": ({"tokens": ["a"] * SIZE, "token_type": [NORMAL] * SIZE}, "twice"),
    "an empty token": (
        {"tokens": ["", *map(str, range(SIZE - 1))], "token_type": [NORMAL] * SIZE},
        "empty",
    ),
    "tokens in plain text": (
        {"tokens": [f"a {n}" for n in range(SIZE)], "token_type": [NORMAL] * SIZE},
        "byte-level",
    ),
    "no merges": ({"merges": None}, "merges is missing"),
    "a merge of one": ({"merges": ["a"]}, "merge 'a'"),
    "a merge of three": ({"merges": ["a b c"]}, "merge 'a b c'"),
    "an unknown merge": ({"merges": ["a 中"]}, "merge"),
    "a merge without result": ({"merges": ["! !", "$ #"]}, "merge"),
    "an eos outside": ({"eos_token_id": SIZE}, "eos token"),
    "a template that is no text": ({"chat_template": 5}, "chat_template"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_fields_that_are_refused(fields: dict[str, Any], case: str) -> None:
    changes, message = REFUSED[case]
    prefix = "tokenizer." if "chat_template" in changes else "tokenizer.ggml."
    broken = fields | {prefix + name: value for name, value in changes.items()}
    broken = {name: value for name, value in broken.items() if value is not None}
    with pytest.raises(UserError, match=message) as error:
        to_files(broken, SIZE, "x.gguf")
    assert str(error.value).startswith("x.gguf")
    assert len(str(error.value)) < 200


def changed(built: tokenizers.Tokenizer, **changes: Any) -> dict[str, bytes]:
    """The files of `built` with changes in its model or, for "added", in its last added token."""
    content = json.loads(built.to_str())
    content["added_tokens"][-1] |= changes.pop("added", {})
    content["model"] |= changes
    return {"tokenizer.json": json.dumps(content).encode(), "tokenizer_config.json": b"{}"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "WordPiece"}, "no byte-level BPE"),
        ({"byte_fallback": True}, "no byte-level BPE"),
        ({"unk_token": "a"}, "no byte-level BPE"),
        ({"end_of_word_suffix": "</w>"}, "no byte-level BPE"),
        ({"continuing_subword_prefix": "##"}, "no byte-level BPE"),
        ({"ignore_merges": True}, "no name for"),
        ({"added": {"lstrip": True}}, "takes spaces"),
        ({"added": {"rstrip": True}}, "takes spaces"),
        ({"added": {"single_word": True}}, "takes spaces"),
        ({"added": {"content": "[PAD639]"}}, r"\[PAD"),
    ],
)
def test_tokenizers_that_are_not_written(
    hard_texts: list[str], changes: dict[str, Any], message: str
) -> None:
    files = changed(backend("qwen2", hard_texts[:60]), **changes)
    with pytest.raises(UserError, match=message):
        from_files(files, SIZE)


def test_parts_that_are_missing(hard_texts: list[str]) -> None:
    for path, message in (
        (("normalizer",), "no name for"),
        (("model", "type"), "no byte-level BPE"),
    ):
        content = json.loads(backend("qwen2", hard_texts[:60]).to_str())
        inner = content
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        with pytest.raises(UserError, match=message):
            from_files({"tokenizer.json": json.dumps(content).encode()}, SIZE)


def test_a_chat_template_that_is_no_text(hard_texts: list[str]) -> None:
    files = files_of(backend("qwen2", hard_texts[:60])) | {"chat_template.jinja": b"{{ \xff }}"}
    with pytest.raises(UserError, match=r"chat_template\.jinja is not UTF-8"):
        from_files(files, SIZE)


def test_merges_of_older_files(hard_texts: list[str]) -> None:
    built = backend("qwen2", hard_texts[:60])
    content = json.loads(built.to_str())
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    old = from_files({"tokenizer.json": json.dumps(content).encode()}, SIZE)
    assert old == from_files(files_of(built), SIZE)


BOS = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
TEXT = {"Sequence": {"id": "A", "type_id": 0}}
BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}


def template(*single: Any) -> dict[str, Any]:
    known = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [7], "tokens": ["<|endoftext|>"]}}
    return {"type": "TemplateProcessing", "single": [*single], "special_tokens": known}


@pytest.mark.parametrize(
    ("processor", "bos"),
    [
        (template(BOS, TEXT), 7),
        ({"type": "Sequence", "processors": [BYTES, template(BOS, TEXT)]}, 7),
        (template(TEXT, BOS), None),
        (BYTES, None),
        (None, None),
    ],
)
def test_a_token_before_every_text(
    hard_texts: list[str], processor: dict[str, Any] | None, bos: int | None
) -> None:
    content = json.loads(backend("qwen2", hard_texts[:60]).to_str())
    content["post_processor"] = processor
    fields = from_files({"tokenizer.json": json.dumps(content).encode()}, SIZE)
    assert fields.get("tokenizer.ggml.bos_token_id") == bos
    assert fields["tokenizer.ggml.add_bos_token"] is (bos is not None)


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (template(BOS, BOS, TEXT), "several tokens"),
        ([1], "makes no sense"),
        ({"processors": 3}, "makes no sense"),
        ({"single": ["A"]}, "makes no sense"),
        (template({"SpecialToken": {"id": "other"}}), "makes no sense"),
        (template({"SpecialToken": {"id": ["other"]}}), "makes no sense"),
    ],
)
def test_post_processors_that_are_refused(
    hard_texts: list[str], processor: Any, message: str
) -> None:
    content = json.loads(backend("qwen2", hard_texts[:60]).to_str())
    content["post_processor"] = processor
    files = {"tokenizer.json": json.dumps(content).encode()}
    with pytest.raises(UserError, match=message):
        from_files(files, SIZE)


def test_too_many_tokens_for_the_model(hard_texts: list[str]) -> None:
    built = backend("qwen2", hard_texts[:60])
    with pytest.raises(UserError, match="do not belong together"):
        from_files(files_of(built), built.get_vocab_size() - 1)
    assert from_files(files_of(built), built.get_vocab_size())


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        None,
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.Whitespace(),
        split(QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,2}|")),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(False), gpt2()]),
    ],
)
def test_splits_without_a_name(hard_texts: list[str], pre_tokenizer: Any) -> None:
    content = json.loads(backend("gpt-2", hard_texts[:60]).to_str())
    other = tokenizers.Tokenizer(models.BPE())
    if pre_tokenizer:
        other.pre_tokenizer = pre_tokenizer
    content["pre_tokenizer"] = json.loads(other.to_str())["pre_tokenizer"]
    files = {"tokenizer.json": json.dumps(content).encode(), "tokenizer_config.json": b"{}"}
    with pytest.raises(UserError, match="no name for"):
        from_files(files, SIZE)


def test_smollm2s_tokenizer(smollm2: Path, hard_texts: list[str]) -> None:
    model = GGUFSource(smollm2)
    files = model.tokenizer_files()
    built = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    assert built.get_vocab_size() == 49152
    assert built.encode("<|im_start|>user\nHi 12<|im_end|>").ids == [
        1, 4093, 198, 26843, 216, 33, 34, 2
    ]  # fmt: skip
    for text in hard_texts[:20]:
        known = "".join(c for c in text if ord(c) not in {4, 6, 19, 20, 22, 29})
        assert built.decode(built.encode(known).ids, skip_special_tokens=False) == known
    fields = from_files(files, 49152)
    assert fields["tokenizer.ggml.pre"] == "smollm"
    assert json.loads(files["tokenizer_config.json"])["eos_token"] == "<|im_end|>"
    config = json.loads(files["tokenizer_config.json"])
    assert config["bos_token"] == "<|im_start|>"
    assert config["chat_template"].startswith("{% for message in messages %}")
