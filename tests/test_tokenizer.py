import json
import json.decoder
import os
import re
import subprocess
import sys
import threading
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from openmimo.config.schema import ModelConfig
from openmimo.errors import UserError
from openmimo.inference.engine import Engine
from openmimo.inference.protocol import Request
from openmimo.model.mimo import MiMo
from openmimo.tokenizer import SPECIAL_TOKENS, StreamDecoder, Tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog. It's 2024, isn't it?\n" * 20,
    "def f(x):\n    return x + 1\n\n\nprint(f(12345))\n" * 20,
    Path(json.decoder.__file__).read_text(),
    "Äpfel, 日本語, und ½ + ⅓ sind 5/6. 😀\n" * 20,
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 400)


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return folder


@given(text=st.text())
def test_decoding_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


@given(pieces=st.lists(st.one_of(st.sampled_from(SPECIAL_TOKENS), st.text(max_size=5))))
def test_text_never_becomes_a_special_token(tokenizer: Tokenizer, pieces: list[str]) -> None:
    text = "".join(pieces)
    ids = tokenizer.encode(text)
    special = {tokenizer.doc_end_id, tokenizer.turn_start_id, tokenizer.eos_id}
    assert not special.intersection(ids)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)
    # A message of such text leaves the frame of the conversation as it was.
    prompt = tokenizer.chat_prompt(text)
    assert prompt.count(tokenizer.eos_id) == 2
    assert prompt.count(tokenizer.turn_start_id) == 3


def test_special_tokens_in_the_corpus_are_not_learnt() -> None:
    corpus = ["<|im_end|> <|im_start|> <|endoftext|>\n" * 500]
    tokenizer = Tokenizer.train(corpus, 400)
    assert tokenizer.eos_id not in tokenizer.encode(corpus[0])
    assert [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)].count("<|im_end|>") == 0


@given(number=st.integers(0, 10**12))
def test_digits_are_single_tokens(tokenizer: Tokenizer, number: int) -> None:
    ids = tokenizer.encode(str(number))
    assert [tokenizer.decode([i]) for i in ids] == list(str(number))


def test_special_ids_come_last_and_sizes_agree(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 400
    assert (tokenizer.doc_end_id, tokenizer.turn_start_id, tokenizer.eos_id) == (397, 398, 399)


def test_a_small_corpus_gives_a_small_vocabulary() -> None:
    tokenizer = Tokenizer.train(["aa"], 5000)
    assert tokenizer.vocab_size < 300
    assert tokenizer.eos_id == tokenizer.vocab_size - 1


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(UserError, match="259"):
        Tokenizer.train(TEXTS, 258)


def test_training_is_deterministic_across_processes(tmp_path: Path, folder: Path) -> None:
    code = (
        "import json, sys; from openmimo.tokenizer import Tokenizer\n"
        "Tokenizer.train(json.load(sys.stdin), 400).save(sys.argv[1])"
    )
    for parallel, seed in (("true", "7"), ("false", "8")):
        target = tmp_path / parallel
        subprocess.run(
            [sys.executable, "-c", code, str(target)],
            input=json.dumps(TEXTS),
            text=True,
            check=True,
            timeout=60,
            env={**os.environ, "TOKENIZERS_PARALLELISM": parallel, "PYTHONHASHSEED": seed},
        )
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert (target / name).read_bytes() == (folder / name).read_bytes()


def test_save_and_load(tokenizer: Tokenizer, folder: Path) -> None:
    loaded = Tokenizer.load(folder)
    text = "It's <|im_end|> 日本語 123"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.eos_id == tokenizer.eos_id
    assert loaded.encode_many([text, "", "x"]) == [loaded.encode(t) for t in (text, "", "x")]


@pytest.mark.parametrize("content", [None, "", "{", '{"version": "1.0"}', "\x00\xff"])
def test_missing_and_broken_files(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        Tokenizer.load(tmp_path)


def test_without_chatml_there_is_no_chat(folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"] = content["added_tokens"][:1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.doc_end_id == tokenizer.eos_id == 397
    assert tokenizer.turn_start_id is None
    with pytest.raises(UserError, match="im_start"):
        tokenizer.chat_prompt("Hi")


def decoded(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer._backend.decode(ids, skip_special_tokens=False)


def test_chat_prompt_spells_chatml(tokenizer: Tokenizer) -> None:
    assert decoded(tokenizer, tokenizer.chat_prompt("Hi")) == (
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "Sure?"},
    ]
    expected = (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n1+1?<|im_end|>\n"
        "<|im_start|>assistant\n2<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert decoded(tokenizer, tokenizer.chat_prompt(conversation)) == expected
    assert decoded(tokenizer, tokenizer.chat_prompt(conversation[1:], "Be brief.")) == expected


@pytest.mark.parametrize("drafts", [0, 1])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_without_a_token_are_never_sampled(
    tokenizer: Tokenizer, drafts: int, temperature: float
) -> None:
    """The model has more rows than the tokenizer has ids, and prefers one that is no token."""
    config = ModelConfig(
        vocab_size=416, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=64,
    )  # fmt: skip
    model = MiMo(config)
    model.init_weights(torch.Generator().manual_seed(0))
    dead = slice(tokenizer.vocab_size, None)
    with torch.no_grad():  # whatever the hidden state, one of the two rows has a large logit
        model.lm_head.weight[dead] = 0.0
        model.lm_head.weight[410], model.lm_head.weight[411] = 50.0, -50.0
    prompt = np.array(tokenizer.chat_prompt("Hi"))
    requests = [Request(n, prompt, 20, temperature, 1.0, seed=n) for n in range(4)]

    def sampled(used_vocab: int) -> set[int]:
        engine = Engine(model, drafts=drafts, slots=4, max_length=64, used_vocab=used_vocab)
        return {int(token) for done in engine.run(requests) for token in done.token_ids}

    assert max(sampled(config.vocab_size)) >= 410
    assert max(sampled(tokenizer.vocab_size)) < tokenizer.vocab_size


def test_unknown_roles_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="tool"):
        tokenizer.chat_prompt([{"role": "tool<|im_end|>", "content": ""}])


@given(ids=st.lists(st.integers(0, 405)), cut=st.integers(1, 4))
def test_streaming_gives_the_same_text_as_decoding(
    tokenizer: Tokenizer, ids: list[int], cut: int
) -> None:
    stream = StreamDecoder(tokenizer)
    parts = [stream.feed(*ids[i : i + cut]) for i in range(0, len(ids), cut)]
    assert "".join(parts) + stream.finish() == tokenizer.decode(ids)


def test_streaming_holds_unfinished_characters_back(tokenizer: Tokenizer) -> None:
    stream = StreamDecoder(tokenizer)
    ids = tokenizer.encode("ẞ𝄞")  # not in the corpus: one token a byte
    assert len(ids) > 2
    assert [text for i in ids if (text := stream.feed(i))] == ["ẞ", "𝄞"]


def test_token_bytes_follow_the_libraries_alphabet(tokenizer: Tokenizer) -> None:
    assert len(pre_tokenizers.ByteLevel.alphabet()) == 256
    seen = {tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)}
    assert {bytes([byte]) for byte in range(256)} <= seen
    assert tokenizer.token_bytes(tokenizer.eos_id) == b""


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)


@given(
    contents=st.lists(st.text(alphabet="ab \n1é😀<|'"), min_size=1, max_size=4),
    system=st.none() | st.sampled_from(["", "Be brief."]),
)
def test_transformers_builds_the_same_prompts(
    tokenizer: Tokenizer, reference: Any, contents: list[str], system: str | None
) -> None:
    roles = ["user", "assistant"] * 2
    messages = [
        {"role": role, "content": text} for role, text in zip(roles, contents, strict=False)
    ]
    given_messages = messages
    if system is None:  # the template's own default, which chat_prompt never uses by itself
        system = "You are a helpful assistant."
    else:
        given_messages = [{"role": "system", "content": system}, *messages]
    text = reference.apply_chat_template(given_messages, add_generation_prompt=True, tokenize=False)
    ids = reference(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.chat_prompt(messages, system) == ids


def test_transformers_reads_the_special_tokens(tokenizer: Tokenizer, reference: Any) -> None:
    assert reference.eos_token_id == tokenizer.eos_id
    assert reference.pad_token_id == tokenizer.doc_end_id
    assert reference.bos_token_id is None
    assert len(reference) == tokenizer.vocab_size


def test_other_threads_run_while_a_long_text_is_read(tokenizer: Tokenizer) -> None:
    """A server must not stand still for it."""
    ends, turns = threading.Event(), 0

    def read() -> None:
        tokenizer.encode("12 + 30 = 42; " * 10_000)
        ends.set()

    thread = threading.Thread(target=read)
    thread.start()
    while not ends.wait(0.001):
        turns += 1
    thread.join()
    assert turns > 5
