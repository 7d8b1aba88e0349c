"""A conversation with a released model, in the terminal or through a pipe."""

from __future__ import annotations

import contextlib
import io
import secrets
import sys
import unicodedata
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import torch

from openmimo.errors import UserError
from openmimo.inference.engine import Engine
from openmimo.inference.memory import check_memory, weight_bytes
from openmimo.inference.packed import compute_dtype
from openmimo.inference.protocol import Request
from openmimo.inference.thinking import without_thinking
from openmimo.inference.threads import use_fastest_threads
from openmimo.model.checkpoint import load_release, open_model
from openmimo.model.mimo import MiMo
from openmimo.tokenizer import StreamDecoder, Tokenizer

GREETING = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer."


class Conversation:
    """What was said so far, and how the next answer is made.

    Args:
        model, tokenizer: as `load_release` returns them.
        template: a request whose settings and seed every answer takes.
        system: system prompt; MiMo recommends the empty one.
        speculative: draft with the MTP layers while that saves time; changes the speed alone.
        consume: the model is not needed for anything else.
    """

    def __init__(
        self,
        model: MiMo,
        tokenizer: Tokenizer,
        template: Request,
        system: str = "",
        speculative: bool = True,
        consume: bool = False,
    ) -> None:
        self._tokenizer, self._system = tokenizer, system
        self._template = replace(template, stop_ids=(tokenizer.eos_id, tokenizer.doc_end_id))
        self._context = model.config.max_position_embeddings
        # One engine for all answers: it reads only what has been said since the last one.
        self._engine = Engine(
            model,
            slots=1,
            max_length=self._context,
            used_vocab=tokenizer.vocab_size,
            drafts="auto" if speculative else 0,
            prefill_tokens=1024,
            consume=consume,
        )
        self._messages: list[dict[str, str]] = []
        self._answers = 0

    def reset(self) -> None:
        """Forget everything said."""
        self._messages.clear()

    def answer(self, text: str) -> Generator[str]:
        """Pieces of the answer to `text`, as they are generated.

        Text and answer join the conversation when the answer ends, or is left early by closing
        the iterator; what the model thought does not (`inference/thinking.py`).

        Raises:
            UserError: the conversation has become longer than the model's context.
        """
        asked = {"role": "user", "content": text}
        prompt = self._tokenizer.chat_prompt([*self._messages, asked], self._system)
        room = self._context - len(prompt)
        if room < 1:
            raise UserError(
                f"the conversation has {len(prompt)} tokens, more than the model's context of "
                f"{self._context}; say less, or start anew with /reset"
            )
        request = replace(
            self._template,
            prompt_ids=prompt,
            max_new_tokens=min(room, self._template.max_new_tokens),
            seed=self._template.seed + self._answers,
            id=self._answers,
        )
        self._answers += 1
        said = ""
        try:
            for piece in self._stream(request):
                said += piece
                yield piece
        finally:
            answer = {"role": "assistant", "content": without_thinking(said)}
            self._messages += [asked, answer]

    def _stream(self, request: Request) -> Generator[str]:
        engine = self._engine
        engine.submit([request])
        text, fed = StreamDecoder(self._tokenizer), 0
        try:
            while True:
                finished = engine.step()
                done = finished[0] if finished else engine.generated(request.id)
                new = done.token_ids[fed:]
                if piece := text.feed(*new.tolist()):
                    yield piece
                fed += len(new)
                if finished:
                    break
        finally:
            engine.abort([request.id])
        if piece := text.finish():
            yield piece


def chat(
    model_dir: Path | str,
    *,
    system: str = "",
    temperature: float = 0.6,
    top_p: float = 0.95,
    max_tokens: int = 512,
    speculative: bool = True,
    seed: int | None = None,
) -> None:
    """Talk to the release folder `model_dir` until the input ends.

    In a terminal answers stream and commands are explained. Otherwise every line of standard
    input is a message, and standard output holds the answers alone.

    Args:
        temperature, top_p: the values of MiMo's evaluation by default.
        max_tokens: longest answer.
        speculative: draft with the model's MTP layers (exact, so only the speed differs).
        seed: for the same answers to the same messages; None takes a random one.

    Raises:
        UserError: no such model, impossible settings, closed streams, or (outside a terminal) a
            conversation longer than the model's context.
    """
    _prepare_streams()
    seed = secrets.randbits(63) if seed is None else seed
    template = Request("chat", [0], max_tokens, temperature, top_p, seed)
    config, files = open_model(Path(model_dir))
    cpu = torch.device("cpu")
    needed = weight_bytes(config, compute_dtype(files.dtype, cpu), 0)
    check_memory(needed, cpu, f"the weights of {model_dir}", "close other programs")
    model, tokenizer = load_release(model_dir)
    use_fastest_threads(model.eval())
    conversation = Conversation(model, tokenizer, template, system, speculative, consume=True)
    if sys.stdin.isatty():
        _in_terminal(conversation)
    else:
        _in_pipe(conversation)


def _prepare_streams() -> None:
    """What cannot be decoded or printed becomes U+FFFD or a question mark, not an error."""
    for stream, name in ((sys.stdin, "input"), (sys.stdout, "output")):
        if stream is None:
            raise UserError(f"standard {name} is closed: chat needs one, if only /dev/null")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _in_terminal(conversation: Conversation) -> None:
    with contextlib.suppress(ImportError):  # not on every platform
        import readline  # noqa: F401  (its import gives input() line editing)
    print(GREETING)
    while True:
        try:
            print()
            text = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if text == "/exit":
            return
        if text == "/reset":
            conversation.reset()
        elif text:
            _print_answer(conversation, text)


def _print_answer(conversation: Conversation, text: str) -> None:
    pieces = conversation.answer(text)
    try:
        for piece in pieces:
            _show(piece)
    except KeyboardInterrupt:
        pieces.close()  # keeps what was said
    except UserError as error:
        print(error, end="")
    print()


def _show(piece: str) -> None:
    print(visible(piece) if sys.stdout.isatty() else piece, end="", flush=True)


def visible(text: str) -> str:
    """`text` with control characters escaped, but for newline and tab: none moves the cursor."""
    return "".join(
        ascii(c)[1:-1] if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text
    )


def _in_pipe(conversation: Conversation) -> None:
    for line in sys.stdin:
        text = line.strip()
        if text == "/exit":
            return
        if text == "/reset":
            conversation.reset()
        elif text:
            for piece in conversation.answer(text):
                _show(piece)
            print(flush=True)
