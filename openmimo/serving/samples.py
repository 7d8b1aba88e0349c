"""Answers in the making: from news of the engine to text and scored tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from openmimo.inference.protocol import Tokens
from openmimo.serving.calls import Call
from openmimo.serving.service import Flight, News
from openmimo.serving.text import AnswerText
from openmimo.tokenizer import Tokenizer


@dataclass(frozen=True)
class ScoredToken:
    """A token and how likely it was.

    log_prob: None for a prompt's first token, which nothing precedes.
    alternatives: (id, log-prob), the likeliest first.
    offset: of its first character in the answer's text (or the prompt's).
    """

    id: int
    log_prob: float | None
    alternatives: list[tuple[int, float]]
    offset: int


@dataclass(frozen=True)
class Delta:
    """What an answer gains.

    index: of the answer in its call.
    scores: of the tokens whose text begins in what is known now; empty unless asked for.
    finish_reason: None while it goes on.
    """

    index: int
    text: str
    scores: list[ScoredToken]
    finish_reason: Literal["stop", "length"] | None = None


@dataclass
class Sample:
    """One answer: `add` turns what the engine reports into deltas.

    tokens: generated until the end or the stop string, the stop token included.
    prompt: the prompt's scores, where they were asked for.
    cached: tokens of the prompt that were not computed for it, known at the end.
    """

    text: AnswerText
    stop_ids: Sequence[int]
    scored: bool
    tokens: int = 0
    prompt: list[ScoredToken] = field(default_factory=list)
    cached: int = 0
    _held: list[ScoredToken] = field(default_factory=list)

    def add(self, news: News) -> Delta:
        """Take the next news; ends with the first that has a finish_reason."""
        text = ""
        for position, token_id in enumerate(news.tokens.token_ids.tolist()):
            if self.text.stopped:
                break  # the engine ran on until it heard of the stop string
            self.tokens += 1
            if self.scored:
                self._held.append(scored_token(news.tokens, position, self.text.decoded))
            if token_id not in self.stop_ids:
                text += self.text.feed(token_id)
        if not news.finish_reason:
            return Delta(news.index, text, self._known())
        text += self.text.finish()
        self.cached = news.cached_tokens
        if news.prompt:
            self.prompt = [
                scored_token(news.prompt, i, 0) for i in range(len(news.prompt.token_ids))
            ]
        reason: Literal["stop", "length"] = "length"
        if self.text.stopped or news.finish_reason == "stop":
            reason = "stop"
        return Delta(news.index, text, self._known(last=True), reason)

    def _known(self, last: bool = False) -> list[ScoredToken]:
        """Tokens that begin in the text so far; at the end all that no stop string cut off."""
        if last and not self.text.stopped:
            known, self._held = self._held, []
            return known
        count = sum(token.offset < self.text.released for token in self._held)
        known, self._held = self._held[:count], self._held[count:]
        return known


def new_samples(call: Call, tokenizer: Tokenizer) -> list[Sample]:
    """One for each request of the call."""
    return [
        Sample(
            AnswerText(tokenizer, call.stops), request.stop_ids, scored=call.logprobs is not None
        )
        for request in call.requests
    ]


async def deltas(flight: Flight, samples: Sequence[Sample]) -> AsyncIterator[Delta]:
    """All deltas of a flight as they come, one of them with a finish_reason for each sample."""
    while batch := await flight.news():
        for news in batch:
            sample = samples[news.index]
            stopped_before = sample.text.stopped
            yield sample.add(news)
            if sample.text.stopped and not stopped_before and not news.finish_reason:
                flight.abort(news.index)


def scored_token(tokens: Tokens, position: int, offset: int) -> ScoredToken:
    """Token number `position` of a run."""
    log_prob = float(tokens.log_probs[position])
    alternatives: list[tuple[int, float]] = []
    if len(tokens.top_ids):
        pairs = zip(tokens.top_ids[position], tokens.top_log_probs[position], strict=True)
        alternatives = [(int(token), float(value)) for token, value in pairs if token >= 0]
    known = None if log_prob != log_prob else log_prob
    return ScoredToken(int(tokens.token_ids[position]), known, alternatives, offset)
