"""Published tokenizers of other models: kept verbatim, and equal to transformers."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from openmimo.errors import UserError
from openmimo.tokenizer import StreamDecoder, Tokenizer

from .published_tokenizers import SHAPES, added, qwen_like, smol_like, trained, write

__all__ = ["trained"]  # a fixture


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
