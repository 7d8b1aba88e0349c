"""From token ids to the text of an answer: characters and stop strings. Pure.

All of it is incremental, and the same whatever pieces the stream arrives in.
"""

from __future__ import annotations

from collections.abc import Sequence

from openmimo.inference.thinking import overlap
from openmimo.tokenizer import StreamDecoder, Tokenizer


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
        held = max((overlap(text, stop) for stop in self._stops), default=0)
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
