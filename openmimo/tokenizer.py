"""Byte-level BPE: text to token ids and back, and the ChatML template.

Trained here in the manner of Qwen2's, rebuilt as Qwen2's own, or read from a published folder.
Text never becomes a control token. `encode` treats `<|im_end|>` in a document or in a user's
message as ten ordinary characters, and only `chat_prompt` places control tokens, so nobody can
end a turn or open a system message from inside one.
"""

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers, trainers

from openmimo.errors import UserError
from openmimo.qwen_tokenizer import BYTE_OF_CHARACTER, qwen2_backend, qwen2_pipeline
from openmimo.tokenizer_folder import CONFIG, TOKENIZER, read_tokenizer_folder

DOC_END = "<|endoftext|>"  # separates documents; also the padding token
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"  # ends a turn, so generation stops on it
SPECIAL_TOKENS = (DOC_END, TURN_START, TURN_END)  # Qwen2's order

_LLAMA_DOC_END = "<|end_of_text|>"  # Llama 3's

ROLES = ("system", "user", "assistant")

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
    """Token ids of text.

    Build one with `train`, `qwen2` or `load`.

    vocab_size: number of ids, special tokens included: all of 0 .. vocab_size - 1 are in use.
    doc_end_id: separates documents, pads rows.
    eos_id: ends a turn; of a tokenizer without ChatML the token that ends a text.
    turn_start_id: opens a turn; None without ChatML, and then `chat_prompt` is refused.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        files: Mapping[str, bytes] | None = None,
        eos_token: str | None = None,
    ) -> None:
        """Wrap a checked backend.

        files: what `save` writes, by name; default: files made from the backend.
        eos_token: ends a text; needed only without ChatML's tokens.
        """
        wanted = (DOC_END, _LLAMA_DOC_END, TURN_START, TURN_END, eos_token)
        ids = {token: backend.token_to_id(token) for token in wanted if token is not None}
        found = {token: token_id for token, token_id in ids.items() if token_id is not None}
        chatml = TURN_START in found and TURN_END in found
        ends = [
            t for t in (DOC_END, _LLAMA_DOC_END, TURN_END if chatml else eos_token) if t in found
        ]
        if not ends:
            raise UserError(f"the tokenizer has no {DOC_END} and names no eos_token that it has")
        control = dict.fromkeys((ends[0], *((TURN_START,) if chatml else ()), ends[-1]))
        # In some fine-tuned models they are ordinary added tokens, which text could contain.
        backend.add_special_tokens(
            [AddedToken(str(token), special=True, normalized=False) for token in control]
        )
        backend.encode_special_tokens = True  # "encode them as the text that they are"
        self._backend = backend
        self._files = dict(files or {})
        self.vocab_size = int(backend.get_vocab_size(with_added_tokens=True))
        self.doc_end_id = found[str(ends[0])]
        self.eos_id = found[str(ends[-1])]
        self.turn_start_id = found[TURN_START] if chatml else None
        # An added token is written as it is; the others in the characters that stand for bytes.
        self._added = {
            token_id: b"" if token.special else token.content.encode()
            for token_id, token in backend.get_added_tokens_decoder().items()
        }
        for token_id, token in backend.get_added_tokens_decoder().items():
            if token.special and token_id in self.encode(token.content):
                raise UserError(f"the special token {token.content[:40]!r} is also ordinary text")

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn the merges from ``texts``; the same texts in the same order give the same file.

        ``vocab_size`` counts the 256 bytes and the three special tokens, which come last. A small
        corpus may yield fewer.
        """
        smallest = 256 + len(SPECIAL_TOKENS)
        if vocab_size < smallest:
            raise UserError(f"vocab_size is {vocab_size}; a byte-level one needs {smallest}")
        backend = qwen2_pipeline(models.BPE())
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
    def qwen2(cls, ranks: Path | str | None = None) -> "Tokenizer":
        """The tokenizer of MiMo-7B and Qwen2.5, 151,665 ids, from its ranks (`qwen2_backend`)."""
        return cls(qwen2_backend(ranks))

    @classmethod
    def load(cls, folder: Path | str) -> "Tokenizer":
        """Read a folder in the published layout (`read_tokenizer_folder`).

        Raises `UserError` if files are missing or broken, or not byte-level BPE.
        """
        found = read_tokenizer_folder(Path(folder))
        try:
            return cls(found.backend, found.files, found.eos_token)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from error

    def save(self, folder: Path | str) -> None:
        """Write the tokenizer's files: those it was loaded from, to the byte.

        A trained or rebuilt one gets ``tokenizer.json``, and the ``tokenizer_config.json`` that
        transformers reads.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (self._files or self._new_files()).items():
            (folder / name).write_bytes(content)

    def _new_files(self) -> dict[str, bytes]:
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
        return {
            # Not with the library's save(): what it raises on a full disk says neither why nor
            # where.
            TOKENIZER: self._backend.to_str(pretty=True).encode(),
            CONFIG: text.encode(),
        }

    def encode(self, text: str) -> list[int]:
        """Ids of ``text`` (after the tokenizer's Unicode normalisation, for Qwen2's NFC).

        Never a special token's id. Other added tokens, as ``<tool_call>``, are text. A byte that a
        published vocabulary has no token for is left out; ours and Qwen2's have all.
        """
        # The library lets other threads run only while it reads a batch.
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        batch = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [list(encoding.ids) for encoding in batch]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` without special tokens; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one id stands for; none for special tokens and ids out of range."""
        if token_id in self._added:
            return self._added[token_id]
        if not 0 <= token_id < self.vocab_size:
            return b""
        token = str(self._backend.id_to_token(token_id))
        try:
            return bytes(map(BYTE_OF_CHARACTER.__getitem__, token))
        except KeyError:  # not of the byte-level alphabet: the token is its text
            return token.encode()

    def token_name(self, token_id: int) -> str:
        """One token to read: its text, a special token's name, or `bytes:` and part of a character.

        Different tokens have different names, but for added tokens that repeat an ordinary one.
        """
        content = self.token_bytes(token_id)
        if not content:
            return str(self._backend.id_to_token(token_id))
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)

    def chat_prompt(
        self, messages: str | Sequence[Mapping[str, str]], system: str = ""
    ) -> list[int]:
        """ChatML ids of a conversation, ending with the opened assistant turn.

        ``messages`` is a user's text or a list of ``{"role", "content"}``. A list that does not
        start with a system message gets ``system`` as one. Raises `UserError` for a tokenizer
        without ChatML's tokens.
        """
        if self.turn_start_id is None:
            raise UserError(f"the tokenizer has no {TURN_START} and {TURN_END}: it is not for chat")
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
