"""Published tokenizers in the shapes of other models' files, around small vocabularies."""

import copy
import json
import json.decoder
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openmimo.tokenizer import Tokenizer

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
