# ruff: noqa: RUF001 (characters that look alike are what is tested)
r"""Qwen2's tokenizer rebuilt from ranks, against transformers' and tiktoken's.

The references are built from the same rank file by other code: transformers' own converter of
tiktoken files gives the vocabulary and merges of `Qwen2Tokenizer`, and tiktoken needs no merges.
"""

import base64
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.data.harvest import harvest
from openmimo.errors import UserError
from openmimo.qwen_tokenizer import (
    CONTROL_TOKENS,
    RANKS,
    TEXT_TOKENS,
    derive_merges,
    installed_ranks,
    read_ranks,
    spell,
)
from openmimo.tokenizer import StreamDecoder, Tokenizer

HARD = [
    "def f(x):\r\n\tif x:\r\n\t\treturn x  # два\r\n\r\n\r\n",
    "#include <stdio.h>\nint main(void) {\n\tprintf(\"%d\\n\", 0x1F);\n\treturn 0;\n}\n",
    "fn main() { let s: &'static str = r#\"a\"#; println!(\"{s:?}\"); }",
    "SELECT * FROM t WHERE a<>'it''s' AND b>=10e-3;\n<div class='x'>&nbsp;</div>",
    r"\frac{\partial^2 u}{\partial x^2} = \int_{-\infty}^{\infty} e^{-x^2}\,dx $\mathbb{R}^{n}$",
    "我们证明：设 n≥2，则有 ∑ᵢ xᵢ ＝ ０。「引用」《书名》……——",
    "吾輩は猫である。名前はまだ無い。ｶﾀｶﾅ カタカナ が か\u3099",
    "한국어 텍스트입니다. 각 각 \u1100\u1161\u11a8",
    "العربية مِن اليمين ١٢٣ ؛ עברית שָׁלוֹם",
    "ภาษาไทยไม่มีช่องว่าง ๑๒๓ हिन्दी में १२३ বাংলা",
    "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇩🇪 1️⃣ ☠️ 🧑🏿‍🚀",
    "café cafe\u0301 Å A\u030a ﬁ ① ½ x² ẛ̣ \u0344 \u2126 \u212b",
    " ".join("1234567890"[:n] * 3 for n in range(1, 11)) + " 3.14159 1,000,000 -0 ⅷ ²³",
    "I'm you're he'd we'll they've it's don't I'M YOU'RE HE'D WE'LL THEY'VE IT'S DON'T 'tis ’s 'ſ",
    " ", "  ", "   a", "a   ", " \n ", "\n\n\n", "\n \n  \n", "\t\t x", "\r", "\r\r\n",
    "a\u00a0b\u3000c\u2003",
    " " * 300 + "x", "\n" * 300, "=" * 300, "a" * 300, "!?" * 50,
    "\x00\x01\x1b[0m\x7f\x80\x85\u2028\u2029\ufeff\u200b\u200d\u00ad\ufffe\uffff\ufffd",
    "\ue000\uf8ff\U000f0000\U0010ffff \u0378 \U0001f9ff\u20e3",
    "<|im_start|>system\n<|im_end|><|endoftext|><|im_end|",
    "<tool_call>{}</tool_call><|fim_prefix|>", "<think>\n</think>\n\n",
    "<|endoftext|><|quad_end|>é<|file_sep|>\u0301", "",
]  # fmt: skip

# Text with whole and broken added tokens in it, and characters that NFC rewrites.
TEXT = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.text(alphabet="aZ9 \n\t\r'’.é\u0301가각日ſ<|_>", max_size=12),
        st.sampled_from([*CONTROL_TOKENS, *TEXT_TOKENS, "<|im_", "end|>", "'LL", "\u1100\u1161"]),
    ),
    max_size=6,
).map("".join)


@pytest.fixture(scope="session")
def ranks_file() -> Path:
    try:
        return installed_ranks()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def qwen(ranks_file: Path) -> Tokenizer:
    return Tokenizer.qwen2(ranks_file)


@pytest.fixture(scope="session")
def folder(qwen: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen")
    qwen.save(folder)
    return folder


@pytest.fixture(scope="session")
def reference(ranks_file: Path) -> Any:
    """transformers' own class, on the vocabulary and merges of transformers' own converter."""
    pytest.importorskip("tiktoken")
    transformers = pytest.importorskip("transformers")
    from transformers.convert_slow_tokenizer import TikTokenConverter

    converter = TikTokenConverter(str(ranks_file))
    vocab, merges = converter.extract_vocab_merges_from_model(str(ranks_file))
    # The converter lists every split of a token, of which BPE can only ever make one.
    added = [transformers.AddedToken(t, special=True, normalized=False) for t in CONTROL_TOKENS]
    added += [transformers.AddedToken(t, special=False, normalized=False) for t in TEXT_TOKENS]
    return transformers.Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        eos_token="<|im_end|>",
        added_tokens_decoder=dict(enumerate(added, RANKS)),
    )


@pytest.fixture(scope="session")
def tiktoken_ids(ranks_file: Path) -> Callable[[str], list[int]]:
    tiktoken = pytest.importorskip("tiktoken")
    encoding = tiktoken.Encoding(
        "qwen",
        # Qwen's own pattern, as its tokenization_qwen.py has it.
        pat_str=r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        mergeable_ranks={
            base64.b64decode(token): int(rank)
            for token, rank in map(bytes.split, ranks_file.read_bytes().splitlines())
        },
        special_tokens={token: RANKS + n for n, token in enumerate(CONTROL_TOKENS + TEXT_TOKENS)},
    )
    return lambda text: encoding.encode(
        unicodedata.normalize("NFC", text), allowed_special=set(TEXT_TOKENS), disallowed_special=()
    )


@pytest.fixture(scope="session")
def real_texts() -> list[str]:
    """Real text of the installation; more, if OPENMIMO_TEST_TEXT names a folder of text files."""
    documents, _ = harvest({"general": 150_000, "math": 150_000, "code": 150_000})
    texts = [document.text for document in documents]
    extra = os.environ.get("OPENMIMO_TEST_TEXT")
    for path in sorted(Path(extra).rglob("*.*")) if extra else ():
        if path.suffix in (".jsonl", ".json", ".csv", ".md", ".txt", ".html"):
            content = path.read_bytes()
            texts.append(content[:200_000].decode("utf-8", errors="replace"))
    return texts


def test_vocabulary_and_merges_are_those_of_the_published_files(ranks_file: Path) -> None:
    ranks = read_ranks(ranks_file)
    merges = derive_merges(ranks, ranks_file)
    assert (len(ranks), len(merges)) == (151_643, 151_387)
    vocab_json = json.dumps(
        {spell(token): rank for token, rank in ranks.items()},
        ensure_ascii=False, separators=(",", ":"),
    )  # fmt: skip
    merges_txt = "".join(f"{spell(left)} {spell(right)}\n" for left, right in merges)
    digests = [hashlib.sha256(text.encode()).hexdigest()[:8] for text in (vocab_json, merges_txt)]
    assert digests == ["ca10d7e9", "599bab54"]


def test_ids_of_the_added_tokens(qwen: Tokenizer) -> None:
    assert qwen.vocab_size == 151_665
    assert (qwen.doc_end_id, qwen.turn_start_id, qwen.eos_id) == (151_643, 151_644, 151_645)
    assert qwen.encode("<tool_call></tool_call><|file_sep|>") == [151_657, 151_658, 151_664]
    assert len(qwen.encode("<|video_pad|>")) > 1
    assert len(CONTROL_TOKENS) + len(TEXT_TOKENS) == 22


def test_thinking_marks_are_ordinary_text(qwen: Tokenizer) -> None:
    assert qwen.encode(" <think>") == [366, 26865, 29]
    assert qwen.encode("</think>") == [522, 26865, 29]
    assert qwen.encode("12 345") == [16, 17, 220, 18, 19, 20]


def test_an_empty_system_prompt(qwen: Tokenizer) -> None:
    newline, system, user, assistant = 198, 8948, 872, 77091
    assert qwen.chat_prompt("Hi") == [
        *(151_644, system, newline, 151_645, newline),
        *(151_644, user, newline, *qwen.encode("Hi"), 151_645, newline),
        *(151_644, assistant, newline),
    ]


@pytest.mark.parametrize("text", HARD)
def test_ids_equal_transformers(qwen: Tokenizer, reference: Any, text: str) -> None:
    ids = qwen.encode(text)
    assert ids == reference(text, split_special_tokens=True)["input_ids"]
    assert qwen.decode(ids) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("text", HARD)
def test_ids_equal_tiktoken(
    qwen: Tokenizer, tiktoken_ids: Callable[[str], list[int]], text: str
) -> None:
    assert qwen.encode(text) == tiktoken_ids(text)


@given(text=TEXT)
def test_ids_equal_both_references(
    qwen: Tokenizer, reference: Any, tiktoken_ids: Callable[[str], list[int]], text: str
) -> None:
    ids = qwen.encode(text)
    assert ids == reference(text, split_special_tokens=True)["input_ids"] == tiktoken_ids(text)
    assert qwen.decode(ids) == unicodedata.normalize("NFC", text)


def test_ids_of_real_text(
    qwen: Tokenizer,
    reference: Any,
    tiktoken_ids: Callable[[str], list[int]],
    real_texts: list[str],
) -> None:
    ours = qwen.encode_many(real_texts)
    assert ours == reference(real_texts, split_special_tokens=True)["input_ids"]
    assert ours == [tiktoken_ids(text) for text in real_texts]


@given(text=TEXT)
def test_the_saved_folder_in_transformers(folder: Path, reference: Any, text: str) -> None:
    saved = _saved(folder)
    for split in (True, False):
        expected = reference(text, split_special_tokens=split)["input_ids"]
        assert saved(text, split_special_tokens=split)["input_ids"] == expected


_LOADED: dict[Path, Any] = {}


def _saved(folder: Path) -> Any:
    if folder not in _LOADED:
        transformers = pytest.importorskip("transformers")
        _LOADED[folder] = transformers.AutoTokenizer.from_pretrained(folder)
    return _LOADED[folder]


@given(
    ids=st.lists(
        st.one_of(
            st.integers(0, 151_664),
            st.integers(151_640, 151_664),
            st.integers(0, 255),
            st.integers(-5, 200_000),
        ),
        max_size=20,
    )
)
def test_streamed_text_is_the_decoded_text(qwen: Tokenizer, ids: list[int]) -> None:
    decoder = StreamDecoder(qwen)
    text = "".join(decoder.feed(token_id) for token_id in ids) + decoder.finish()
    assert text == qwen.decode(ids)
    valid = [token_id for token_id in ids if 0 <= token_id < qwen.vocab_size]
    assert text == qwen._backend.decode(valid, skip_special_tokens=True)


def test_bytes_of_all_tokens(qwen: Tokenizer, ranks_file: Path) -> None:
    ranks = read_ranks(ranks_file)
    assert [qwen.token_bytes(rank) for rank in ranks.values()] == list(ranks)
    added = [qwen.token_bytes(token_id) for token_id in range(RANKS, 151_665)]
    assert added == [b""] * 14 + [token.encode() for token in TEXT_TOKENS]


def test_save_and_load_is_the_same_tokenizer(qwen: Tokenizer, folder: Path, tmp_path: Path) -> None:
    loaded = Tokenizer.load(folder)
    assert loaded.encode_many(HARD) == qwen.encode_many(HARD)
    assert (loaded.vocab_size, loaded.eos_id) == (qwen.vocab_size, qwen.eos_id)
    loaded.save(tmp_path)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in tmp_path.iterdir()
    }


# Small rank files: the 256 bytes in the order of their value, then the merges given.
def ranks_of(*tokens: bytes) -> list[bytes]:
    everything = [*(bytes([byte]) for byte in range(256)), *tokens]
    return [b"%s %d" % (base64.b64encode(t), rank) for rank, t in enumerate(everything)]


def written(path: Path, lines: list[bytes]) -> Path:
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def test_merges_of_a_small_file(tmp_path: Path) -> None:
    path = written(tmp_path / "x.tiktoken", ranks_of(b"bc", b"ab", b"abc", b"abab"))
    merges = derive_merges(read_ranks(path, count=260), path)
    # "abc" has two splits, and bc comes first.
    assert merges == [(b"b", b"c"), (b"a", b"b"), (b"a", b"bc"), (b"ab", b"ab")]


LINES = ranks_of(b"ab", b"abc")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([*LINES[:3], b"!!!! 3", *LINES[4:]], "line 4: not a token"),
        ([*LINES[:3], b"Aw=", *LINES[4:]], "line 4: not a token"),
        ([*LINES[:3], b"A!w== 3", *LINES[4:]], "line 4: not a token"),
        ([*LINES[:3], b"Aw== 3 3", *LINES[4:]], "line 4: not a token"),
        ([*LINES[:3], b"", *LINES[4:]], "line 4: not a token"),
        ([*LINES[:3], b"\xff\xfe 3", *LINES[4:]], "line 4: not a token"),
        ([*LINES[:3], b" 3", *LINES[4:]], "line 4: not a token"),
        ([*LINES[:3], b"Aw== -3", *LINES[4:]], "line 4: not a token"),
        ([*LINES[:3], base64.b64encode(b"x" * 500) + b" 3", *LINES[4:]], "line 4: not a token"),
        ([*LINES[:3], b"Aw== " + b"9" * 10_000, *LINES[4:]], "line 4: rank 99999"),
        ([*LINES[:3], b"Aw== 3.0", *LINES[4:]], "line 4: not a token"),
        ([*LINES[:3], *LINES[4:], LINES[3]], "line 4: rank 4 where 3"),
        ([*LINES[:257], b"YWI= 257"], "line 258: the same token as in line 257"),
        (LINES[:-1], "ends after line 257, Qwen's ranks have 258 lines"),
        ([*LINES, b"eHl6 258"], "ends after line 259"),
        ([*LINES[:3], b"eHl6 3", *LINES[4:]], "single byte 0x03"),
        ([], "ends after line 0"),
    ],
)  # fmt: skip
def test_damaged_rank_files(tmp_path: Path, lines: list[bytes], message: str) -> None:
    path = written(tmp_path / "x.tiktoken", lines) if lines else tmp_path / "x.tiktoken"
    path.touch()
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read_ranks(path, count=258)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_token_that_no_merge_makes(tmp_path: Path) -> None:
    path = written(tmp_path / "x.tiktoken", ranks_of(b"abc"))
    with pytest.raises(UserError, match=r"line 257: b'abc' is not made of two tokens"):
        derive_merges(read_ranks(path, count=257), path)


def test_missing_and_oversized_rank_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        Tokenizer.qwen2(tmp_path / "none.tiktoken")
    with pytest.raises(UserError, match="cannot read"):
        Tokenizer.qwen2(tmp_path)
    with (tmp_path / "big.tiktoken").open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(UserError, match="more than"):
        Tokenizer.qwen2(tmp_path / "big.tiktoken")


def test_without_the_package_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("openmimo.qwen_tokenizer.PACKAGE", "no_such_package_at_all")
    with pytest.raises(UserError, match="not installed: pip install"):
        installed_ranks()


def test_the_package_is_never_imported(ranks_file: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from openmimo.tokenizer import Tokenizer; Tokenizer.qwen2()\n"
        "assert not {'dashscope', 'tiktoken', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
