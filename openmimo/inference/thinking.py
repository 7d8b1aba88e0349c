"""Thinking and answer in the text of a model. Pure.

What a model thought belongs to one answer, not to the conversation: it is long, it fills the
context, and the answer says what came of it. So earlier answers are shown to the model without it,
as the chat templates of Qwen3 and DeepSeek-R1 do; MiMo's leaves it to the caller. `mimo chat` and
the server both go by `without_thinking`.
"""

from __future__ import annotations

THINK, END_THINK = "<think>", "</think>"


class ThinkSplitter:
    """Splits `<think>reasoning</think>answer` into its two parts.

    Text that does not begin with `<think>` (white space aside) is all answer. White space around
    the reasoning and before the answer belongs to neither; without an end tag all that follows
    `<think>` is reasoning.
    """

    def __init__(self) -> None:
        self._held = ""
        self._state = self._start

    def feed(self, text: str) -> tuple[str, str]:
        """Take the next piece; return the (reasoning, answer) that are certain now."""
        self._held += text
        return self._state()

    def finish(self) -> tuple[str, str]:
        """The rest, when nothing follows."""
        held, self._held = self._held, ""
        if self._state in (self._start, self._answer):
            return "", held
        if self._state == self._gap:
            return "", ""
        return held.rstrip(), ""

    def _start(self) -> tuple[str, str]:
        """Nothing but white space and perhaps a part of `<think>` has come."""
        begun = self._held.lstrip()
        if begun.startswith(THINK):
            self._held = begun.removeprefix(THINK)
            self._state = self._before_thought
        elif THINK.startswith(begun):
            return "", ""
        else:
            self._state = self._answer
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
        tag = overlap(thought, END_THINK)
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


def without_thinking(text: str) -> str:
    """The answer alone; empty if the text ends while the model thinks."""
    splitter = ThinkSplitter()
    return splitter.feed(text)[1] + splitter.finish()[1]


def overlap(text: str, tag: str) -> int:
    """Length of the longest end of `text` that is a beginning of `tag`, but not all of it."""
    longest = min(len(text), len(tag) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(tag[:n])), 0)
