"""Byte-level BPE in the manner of Qwen2's: text to token ids and back, and the ChatML template.

Text never becomes a control token. `encode` treats `<|im_end|>` in a document or in a user's
message as ten ordinary characters, and only `chat_prompt` places control tokens, so nobody can
end a turn or open a system message from inside one.
"""

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from openmimo.errors import UserError

DOC_END = "<|endoftext|>"  # separates documents; also the padding token
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"  # ends a turn, so generation stops on it
SPECIAL_TOKENS = (DOC_END, TURN_START, TURN_END)  # Qwen2's order

ROLES = ("system", "user", "assistant")

# Qwen2's split: contractions, words, single digits, punctuation, line ends, spaces. BPE merges
# never cross these borders, so a number is always a sequence of digits.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)

# Qwen2's ChatML, for the tools that read `chat_template`. Note its default system message:
# `chat_prompt` always passes one explicitly (empty unless told otherwise), as MiMo recommends.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Tokenizer:
    """Token ids of text, in the vocabulary of one ``tokenizer.json``.

    Build one with `train` or `load`.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        special: dict[str, Any] = {token: backend.token_to_id(token) for token in SPECIAL_TOKENS}
        missing = [token for token, token_id in special.items() if token_id is None]
        if missing:
            raise UserError(f"the tokenizer has no {', '.join(missing)}: it is not a ChatML one")
        backend.encode_special_tokens = True  # "encode them as the text that they are"
        self._backend = backend
        self.doc_end_id: int = special[DOC_END]
        self.turn_start_id: int = special[TURN_START]
        self.eos_id: int = special[TURN_END]

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn the merges from ``texts``; the same texts in the same order give the same file.

        ``vocab_size`` counts the 256 bytes and the three special tokens, which come last. A small
        corpus may yield fewer.
        """
        smallest = 256 + len(SPECIAL_TOKENS)
        if vocab_size < smallest:
            raise UserError(f"vocab_size is {vocab_size}; a byte-level one needs {smallest}")
        backend = tokenizers.Tokenizer(models.BPE())
        backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        backend.add_special_tokens(
            [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
        )
        return cls(backend)

    @classmethod
    def load(cls, folder: Path | str) -> "Tokenizer":
        """Read ``folder/tokenizer.json``; raises `UserError` if it is missing or broken."""
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"no tokenizer in {folder}: {path.name} is missing")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception for every fault
            raise UserError(f"{path} is not a readable tokenizer: {error}") from error
        return cls(backend)

    def save(self, folder: Path | str) -> None:
        """Write ``tokenizer.json`` and the ``tokenizer_config.json`` that transformers reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # Not with the library's save(): what it raises on a full disk says neither why nor where.
        (folder / "tokenizer.json").write_text(self._backend.to_str(pretty=True), encoding="utf-8")
        config = {
            # The plain fast class, because it takes tokenizer.json as it is.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": None,
            "eos_token": TURN_END,
            "pad_token": DOC_END,
            "unk_token": None,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        }
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        """Number of ids in use, special tokens included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Ids of ``text`` (after Unicode NFC); never a special token's id."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        batch = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [list(encoding.ids) for encoding in batch]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` without special tokens; bytes that are not UTF-8 become U+FFFD."""
        return str(self._backend.decode(list(ids), skip_special_tokens=True))

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one id stands for; none for special tokens and unused ids."""
        token = self._backend.id_to_token(token_id)
        if token is None or token in SPECIAL_TOKENS:
            return b""
        return bytes(_BYTE_OF_CHARACTER[character] for character in token)

    def chat_prompt(
        self, messages: str | Sequence[Mapping[str, str]], system: str = ""
    ) -> list[int]:
        """ChatML ids of a conversation, ending with the opened assistant turn.

        ``messages`` is a user's text or a list of ``{"role", "content"}``. A list that does not
        start with a system message gets ``system`` as one.
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        if not messages or messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system}, *messages]
        ids: list[int] = []
        for message in messages:
            role, content = message["role"], message["content"]
            if role not in ROLES:
                raise UserError(f"unknown role {role!r} in a chat: use one of {', '.join(ROLES)}")
            turn = self.encode(f"{role}\n{content}")
            ids += [self.turn_start_id, *turn, self.eos_id, *self.encode("\n")]
        return [*ids, self.turn_start_id, *self.encode("assistant\n")]


class StreamDecoder:
    """Text of ids that arrive one by one.

    A character may span several tokens, so `feed` holds an unfinished one back. All that `feed`
    returned plus `finish` equals ``Tokenizer.decode`` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, *ids: int) -> str:
        """Take the next ids; return the text that is complete now, possibly empty."""
        return self._utf8.decode(b"".join(map(self._tokenizer.token_bytes, ids)))

    def finish(self) -> str:
        """What an unfinished character leaves: U+FFFD, or nothing."""
        return self._utf8.decode(b"", final=True)


def _byte_of_character() -> dict[str, int]:
    """The byte-level alphabet: printable Latin-1 stands for itself, the rest for U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_of_character()
