"""From token ids to the text of an answer: characters, stop strings, thinking. Pure.

All of it is incremental, and the same whatever pieces the stream arrives in.
"""

from __future__ import annotations

from collections.abc import Sequence

from openmimo.tokenizer import StreamDecoder, Tokenizer

THINK, END_THINK = "<think>", "</think>"


class StopStrings:
    """Cuts a text at the first stop string in it.

    The first is the one that is complete earliest; of those that end at the same character the
    longest. Text that may be the beginning of a stop string is held back.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """Take the next piece; return what certainly belongs to the answer."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held


class AnswerText:
    """Text of the tokens of one answer, up to a stop string.

    All that `feed` and `finish` return, joined, is `Tokenizer.decode` of the tokens, cut.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._decoder = StreamDecoder(tokenizer)
        self._stops = StopStrings(stops)
        self.decoded = 0
        """Characters of the tokens so far, held back or not: where the next token's begin."""
        self.released = 0
        """Characters returned so far."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return self._stops.stopped

    def feed(self, token_id: int) -> str:
        """Take the next token; return the text that is certain now, possibly empty."""
        return self._release(self._decoder.feed(token_id))

    def finish(self) -> str:
        """The rest, when no token follows."""
        return self._release(self._decoder.finish(), last=True)

    def _release(self, text: str, last: bool = False) -> str:
        self.decoded += len(text)
        certain = self._stops.feed(text)
        if last and not self.stopped:
            certain += self._stops.finish()
        self.released += len(certain)
        return certain


class ThinkSplitter:
    """Splits `<think>reasoning</think>answer` into its two parts.

    Text that does not begin with `<think>` (white space aside) is all answer, unless the prompt
    had opened the thinking already. White space around the reasoning and before the answer
    belongs to neither; without an end tag all that follows `<think>` is reasoning.

    Args:
        opened: the prompt ends with `<think>`; the text may still repeat it.
    """

    def __init__(self, opened: bool = False) -> None:
        self._opened = opened
        self._held = ""
        self._state = self._start

    def feed(self, text: str) -> tuple[str, str]:
        """Take the next piece; return the (reasoning, answer) that are certain now."""
        self._held += text
        return self._state()

    def finish(self) -> tuple[str, str]:
        """The rest, when nothing follows."""
        held, self._held = self._held, ""
        if self._state == self._answer or (self._state == self._start and not self._opened):
            return "", held
        if self._state == self._gap:
            return "", ""
        return (held if self._state == self._thinking else held.lstrip()).rstrip(), ""

    def _start(self) -> tuple[str, str]:
        """Nothing but white space and perhaps a part of `<think>` has come."""
        begun = self._held.lstrip()
        if begun.startswith(THINK):
            self._held = begun.removeprefix(THINK)
            self._state = self._before_thought
        elif THINK.startswith(begun):
            return "", ""
        else:
            self._state = self._before_thought if self._opened else self._answer
        return self._state()

    def _before_thought(self) -> tuple[str, str]:
        self._held = self._held.lstrip()
        if not self._held:
            return "", ""
        self._state = self._thinking
        return self._thinking()

    def _thinking(self) -> tuple[str, str]:
        thought, ended, rest = self._held.partition(END_THINK)
        if ended:
            self._held, self._state = rest, self._gap
            return thought.rstrip(), self._gap()[1]
        tag = _overlap(thought, END_THINK)
        certain = thought[: len(thought) - tag].rstrip()
        self._held = thought[len(certain) :]
        return certain, ""

    def _gap(self) -> tuple[str, str]:
        self._held = self._held.lstrip()
        if not self._held:
            return "", ""
        self._state = self._answer
        return self._answer()

    def _answer(self) -> tuple[str, str]:
        text, self._held = self._held, ""
        return "", text


def opens_thinking(tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
    """Whether a prompt ends with an opened `<think>`, as some chat templates do."""
    # A tag has seven characters, hence at most seven tokens; white space may follow it.
    return tokenizer.decode(prompt[-16:]).rstrip().endswith(THINK)


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of `text` that is a beginning of `tag`, but not all of it."""
    longest = min(len(text), len(tag) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(tag[:n])), 0)
