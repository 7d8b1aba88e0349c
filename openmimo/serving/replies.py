"""The JSON of OpenAI's API, made from deltas: whole, or as the chunks of a stream. Pure."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

from openmimo.errors import UserError
from openmimo.inference.thinking import ThinkSplitter
from openmimo.serving.calls import Call
from openmimo.serving.samples import Delta, Sample, ScoredToken
from openmimo.tokenizer import StreamDecoder, Tokenizer

LOWEST = -9999.0
"""OpenAI's number for a log-prob of minus infinity, which JSON cannot spell."""

Json = dict[str, Any]


class Reply(Protocol):
    """One call's answers in the form of its endpoint."""

    def opening(self) -> list[Json]:
        """Chunks before the first delta."""

    def chunks(self, delta: Delta) -> list[Json]:
        """Chunks of a delta, possibly none."""

    def usage_chunk(self) -> Json:
        """The last chunk of a stream that asked for it."""

    def whole(self, answers: Sequence[Delta]) -> Json:
        """The reply without a stream; `answers` are `joined` deltas."""


def joined(deltas: Sequence[Delta], count: int) -> list[Delta]:
    """The deltas of each of `count` answers in one."""
    parts: list[list[Delta]] = [[] for _ in range(count)]
    for delta in deltas:
        parts[delta.index].append(delta)
    return [
        Delta(
            index,
            "".join(part.text for part in mine),
            [score for part in mine for score in part.scores],
            mine[-1].finish_reason,
        )
        for index, mine in enumerate(parts)
    ]


class _Envelope:
    """What surrounds the choices in all replies of a call."""

    def __init__(self, call: Call, samples: Sequence[Sample], model: str, prefix: str) -> None:
        self._call, self._samples = call, samples
        self._fields = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def usage(self) -> Json:
        prompts = self._call.prompts
        prompt = sum(map(len, prompts))  # once, however many samples share it
        answer = sum(s.tokens for s in self._samples) if self._call.max_tokens else 0
        shares = len(self._samples) // len(prompts)
        cached = [s.cached for s in self._samples]
        # What the first sample that was read did not compute either.
        before = sum(min(cached[n : n + shares]) for n in range(0, len(cached), shares))
        return {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
            "prompt_tokens_details": {"cached_tokens": before},
        }

    def around(self, kind: str, choices: list[Json]) -> Json:
        return {**self._fields, "object": kind, "choices": choices}

    def chunk(self, kind: str, choices: list[Json], usage: Json | None = None) -> Json:
        extra = {"usage": usage} if self._call.include_usage else {}
        return self.around(kind, choices) | extra


class ChatReply:
    """Replies of /v1/chat/completions."""

    def __init__(
        self, call: Call, samples: Sequence[Sample], tokenizer: Tokenizer, model: str
    ) -> None:
        self._envelope = _Envelope(call, samples, model, "chatcmpl")
        self._tokenizer, self._scored = tokenizer, call.logprobs is not None
        self._splitters = [ThinkSplitter() for _ in samples]

    def opening(self) -> list[Json]:
        """The role, for each answer."""
        start = {"role": "assistant", "content": ""}
        return [self._chunk(index, start, None) for index in range(len(self._splitters))]

    def chunks(self, delta: Delta) -> list[Json]:
        """New text, thinking and answer apart; the end in a chunk of its own."""
        reasoning, content = self._split(delta)
        chunks = []
        if reasoning or content or delta.scores:
            gained = {"reasoning_content": reasoning} if reasoning else {}
            if content or not reasoning:
                gained["content"] = content
            chunks.append(self._chunk(delta.index, gained, delta.scores))
        if delta.finish_reason:
            chunks.append(self._chunk(delta.index, {}, None, delta.finish_reason))
        return chunks

    def usage_chunk(self) -> Json:
        """Usage, without choices."""
        return self._envelope.chunk("chat.completion.chunk", [], self._envelope.usage())

    def whole(self, answers: Sequence[Delta]) -> Json:
        """A `chat.completion` object."""
        choices = []
        for answer in answers:
            reasoning, content = self._split(answer)
            message = {
                "role": "assistant",
                "content": content,
                "reasoning_content": reasoning or None,
                "refusal": None,
            }
            choices.append(
                {
                    "index": answer.index,
                    "message": message,
                    "logprobs": self._logprobs(answer.scores),
                    "finish_reason": answer.finish_reason,
                }
            )
        reply = self._envelope.around("chat.completion", choices)
        return reply | {"usage": self._envelope.usage()}

    def _split(self, delta: Delta) -> tuple[str, str]:
        splitter = self._splitters[delta.index]
        reasoning, content = splitter.feed(delta.text)
        if delta.finish_reason:
            last = splitter.finish()
            reasoning, content = reasoning + last[0], content + last[1]
        return reasoning, content

    def _chunk(
        self,
        index: int,
        gained: Json,
        scores: Sequence[ScoredToken] | None,
        finish_reason: str | None = None,
    ) -> Json:
        choice = {
            "index": index,
            "delta": gained,
            "logprobs": self._logprobs(scores) if scores else None,
            "finish_reason": finish_reason,
        }
        return self._envelope.chunk("chat.completion.chunk", [choice])

    def _logprobs(self, scores: Sequence[ScoredToken]) -> Json | None:
        if not self._scored:
            return None
        content = []
        for score in scores:
            top = [self._entry(token, value) for token, value in score.alternatives]
            content.append(self._entry(score.id, score.log_prob) | {"top_logprobs": top})
        return {"content": content, "refusal": None}

    def _entry(self, token: int, value: float | None) -> Json:
        return {
            "token": self._tokenizer.token_name(token),
            "logprob": finite(value),
            "bytes": list(self._tokenizer.token_bytes(token)),
        }


class CompletionReply:
    """Replies of /v1/completions."""

    def __init__(
        self, call: Call, samples: Sequence[Sample], tokenizer: Tokenizer, model: str
    ) -> None:
        self._envelope = _Envelope(call, samples, model, "cmpl")
        self._call, self._samples, self._tokenizer = call, samples, tokenizer
        self._echoes = [""] * len(samples)
        if call.echo:
            self._echoes = [tokenizer.decode(request.prompt_ids) for request in call.requests]

    def opening(self) -> list[Json]:
        """The prompts, with echo."""
        return [
            self._chunk(self._choice(index, text, None, None))
            for index, text in enumerate(self._echoes)
            if text
        ]

    def chunks(self, delta: Delta) -> list[Json]:
        """New text and the end in one chunk."""
        text, scores = self._kept(delta)
        if not (text or scores or delta.finish_reason):
            return []
        logprobs = self._logprobs(scores) if scores else None
        return [self._chunk(self._choice(delta.index, text, logprobs, delta.finish_reason))]

    def usage_chunk(self) -> Json:
        """Usage, without choices."""
        return self._envelope.chunk("text_completion", [], self._envelope.usage())

    def whole(self, answers: Sequence[Delta]) -> Json:
        """A `text_completion` object."""
        choices = []
        for answer in answers:
            text, scores = self._kept(answer)
            echo = self._echoes[answer.index]
            logprobs = None
            if self._call.logprobs is not None:
                before = self._prompt_scores(answer.index) if self._call.echo else []
                logprobs = self._logprobs(scores, before, len(echo))
            choices.append(self._choice(answer.index, echo + text, logprobs, answer.finish_reason))
        reply = self._envelope.around("text_completion", choices)
        return reply | {"usage": self._envelope.usage()}

    def _kept(self, delta: Delta) -> tuple[str, list[ScoredToken]]:
        """Nothing with max_tokens 0: the one token that the engine made was not asked for."""
        return (delta.text, delta.scores) if self._call.max_tokens else ("", [])

    def _prompt_scores(self, index: int) -> list[ScoredToken]:
        scores, text, offset = [], StreamDecoder(self._tokenizer), 0
        if not self._samples[index].prompt:
            raise UserError("this engine gives no log-probs of a prompt: leave out echo")
        for score in self._samples[index].prompt:
            scores.append(ScoredToken(score.id, score.log_prob, score.alternatives, offset))
            offset += len(text.feed(score.id))
        return scores

    def _choice(self, index: int, text: str, logprobs: Json | None, reason: str | None) -> Json:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _chunk(self, choice: Json) -> Json:
        return self._envelope.chunk("text_completion", [choice])

    def _logprobs(
        self,
        scores: Sequence[ScoredToken],
        prompt: Sequence[ScoredToken] = (),
        start: int = 0,
    ) -> Json:
        both = [*prompt, *scores]
        offsets = [score.offset for score in prompt] + [start + score.offset for score in scores]
        return {
            "tokens": [self._tokenizer.token_name(score.id) for score in both],
            "token_logprobs": [finite(score.log_prob) for score in both],
            "top_logprobs": [self._alternatives(score) for score in both],
            "text_offset": offsets,
        }

    def _alternatives(self, score: ScoredToken) -> dict[str, float | None] | None:
        """The likeliest tokens and the token itself, as in OpenAI's form."""
        if score.log_prob is None:
            return None
        pairs = [*score.alternatives, (score.id, score.log_prob)]
        return {self._tokenizer.token_name(token): finite(value) for token, value in pairs}


def finite(value: float | None) -> float | None:
    """A log-prob that JSON can hold."""
    return None if value is None else max(value, LOWEST)
