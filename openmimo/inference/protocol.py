"""What an inference engine offers, and the records that go in and out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from openmimo.errors import UserError
from openmimo.model.mimo import MiMo

RequestId = int | str
FinishReason = Literal["stop", "length", "aborted", "failed"]
Weights = MiMo | Mapping[str, Tensor]
"""A model, or the tensors of its state dict by name."""


def _no_ids() -> NDArray[np.int32]:
    return np.zeros((0, 0), np.int32)


def _no_log_probs() -> NDArray[np.float32]:
    return np.zeros((0, 0), np.float32)


MAX_ALTERNATIVES = 20
"""Most alternatives reported for a token (OpenAI's limit)."""

LEAST_TEMPERATURE = 1e-5
"""Lower ones would overflow float32: logits divided by them are no numbers any more."""

MAX_STOP_IDS = 128
"""Every token of every row is compared with as many ids as the longest list has."""


@dataclass(frozen=True)
class Request:
    """One prompt to continue.

    id: unique among the requests in flight.
    prompt_ids: at least one token. Requests with equal prompts share their prefill.
    max_new_tokens: at least 1; the stop token counts.
    temperature: 0 is greedy; others are at least LEAST_TEMPERATURE.
    top_p: in (0, 1]; the smallest set of most likely tokens with this much mass is kept.
    top_k: the most likely tokens that are kept; 0 keeps all.
    min_p: in [0, 1); a token is kept if it is at least min_p times as likely as the likeliest.
    seed: the sample is a function of (weights, prompt, settings, seed) alone.
    stop_ids: generation ends after any of these, at most MAX_STOP_IDS.
    alternatives: how many of the likeliest tokens to report at each position, with log-probs.
    score_prompt: report the log-probs of the prompt's own tokens too.

    Raises:
        UserError: a value is impossible.
    """

    id: RequestId
    prompt_ids: Sequence[int]
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    stop_ids: Sequence[int] = ()
    top_k: int = 0
    min_p: float = 0.0
    alternatives: int = 0
    score_prompt: bool = False

    def __post_init__(self) -> None:
        if not len(self.prompt_ids):
            self._refuse("the prompt is empty; give at least one token")
        if self.max_new_tokens < 1:
            self._refuse(f"max_new_tokens is {self.max_new_tokens}; ask for at least 1")
        if not 0 <= self.temperature < float("inf"):
            self._refuse(f"temperature is {self.temperature}; use 0 (greedy) or more")
        if 0 < self.temperature < LEAST_TEMPERATURE:
            self._refuse(
                f"temperature is {self.temperature}; use 0 (greedy) or at least {LEAST_TEMPERATURE}"
            )
        if not 0 < self.top_p <= 1:
            self._refuse(f"top_p is {self.top_p}; it must lie in (0, 1]")
        if self.top_k < 0:
            self._refuse(f"top_k is {self.top_k}; use 1 or more, or 0 for no limit")
        if not 0 <= self.min_p < 1:
            self._refuse(f"min_p is {self.min_p}; it must lie in [0, 1)")
        if not 0 <= self.alternatives <= MAX_ALTERNATIVES:
            self._refuse(f"{self.alternatives} alternatives; ask for 0 to {MAX_ALTERNATIVES}")
        if len(self.stop_ids) > MAX_STOP_IDS:
            self._refuse(f"{len(self.stop_ids)} stop tokens; give at most {MAX_STOP_IDS}")
        if not all(0 <= token < 2**31 for token in self.stop_ids):
            self._refuse("a stop token is no token id: those are 0 or more, and 32-bit numbers")

    def _refuse(self, why: str) -> NoReturn:
        raise UserError(f"request {self.id}: {why}")


@dataclass(frozen=True, eq=False)
class Tokens:
    """A run of tokens and how likely they were.

    token_ids: int32 [n].
    log_probs: float32 [n], of the distribution at the request's temperature before top-p, top-k
        and min-p cut it (`sampling.log_probabilities`; at temperature 0 that of temperature 1).
    top_ids: int32 [n, m], the m = `Request.alternatives` likeliest tokens, best first.
    top_log_probs: float32 [n, m], theirs.
    """

    token_ids: NDArray[np.int32]
    log_probs: NDArray[np.float32]
    top_ids: NDArray[np.int32] = field(default_factory=_no_ids)
    top_log_probs: NDArray[np.float32] = field(default_factory=_no_log_probs)


@dataclass(frozen=True, eq=False)
class Completion:
    """A finished request.

    token_ids: int32 [n], without the prompt; includes the stop token if there is one.
    log_probs, top_ids, top_log_probs: as in `Tokens`.
    finish_reason: "stop" (a stop token), "length" (max_new_tokens), "aborted", or "failed": the
        engine gave this request up and goes on with the others. What there is of a failed answer
        is no sample of the model, so it must not be scored. The native engine fails none.
    prompt: with `score_prompt`, the prompt's tokens; nothing precedes the first one, so its
        log_probs are NaN and its top_ids -1. None if aborted before the prompt was read.
    cached_tokens: of the prompt, taken from another request's cache instead of computed; 0 where
        the engine does not say.
    error: why it failed.
    """

    request_id: RequestId
    token_ids: NDArray[np.int32]
    log_probs: NDArray[np.float32]
    finish_reason: FinishReason
    top_ids: NDArray[np.int32] = field(default_factory=_no_ids)
    top_log_probs: NDArray[np.float32] = field(default_factory=_no_log_probs)
    prompt: Tokens | None = None
    cached_tokens: int = 0
    error: str | None = None


@dataclass
class EngineStats:
    """Counters since the engine was made; `waiting` and `active` are current.

    A decode step is one trunk forward over all active rows; `row_steps` adds up those rows, so
    `tokens_per_forward` compares engines with and without drafts.
    drafts_offered[i]: draft steps (of one row) with a draft i inside the answer: what lies beyond
        its end is thrown away, right or wrong.
    drafts_reached[i]: those of them in which all drafts before i were accepted.
    drafts_accepted[i]: those of them in which draft i was accepted too.
    shared_tokens: prompt tokens taken from another request's cache instead of computed.
    cache_bytes: memory of the caches when every slot is full.
    drafting: drafts of the latest step; the engine drafts only while that saves time.
    saved_seconds: estimate of the time drafts have saved, against one token a step.
    """

    slots: int
    waiting: int = 0
    active: int = 0
    steps: int = 0
    row_steps: int = 0
    generated_tokens: int = 0
    prefilled_tokens: int = 0
    shared_tokens: int = 0
    cache_bytes: int = 0
    drafting: int = 0
    saved_seconds: float = 0.0
    drafts_offered: list[int] = field(default_factory=list)
    drafts_reached: list[int] = field(default_factory=list)
    drafts_accepted: list[int] = field(default_factory=list)

    @property
    def occupancy(self) -> float:
        """Share of the slots that were busy, averaged over the steps; 0 before the first."""
        return self.row_steps / (self.steps * self.slots) if self.steps else 0.0

    @property
    def tokens_per_forward(self) -> float:
        """Tokens a row gains by one trunk forward; at most 1 + number of drafts."""
        return self.generated_tokens / self.row_steps if self.row_steps else 0.0

    @property
    def acceptance(self) -> list[float]:
        """Share of the drafts i inside answers that were accepted, all before them included."""
        return [
            accepted / offered if offered else 0.0
            for accepted, offered in zip(self.drafts_accepted, self.drafts_offered, strict=True)
        ]

    @property
    def conditional_acceptance(self) -> list[float]:
        """Share of the times draft i was reached (all drafts before it accepted)."""
        return [
            accepted / reached if reached else 0.0
            for accepted, reached in zip(self.drafts_accepted, self.drafts_reached, strict=True)
        ]


class InferenceEngine(Protocol):
    """Generates completions, a step at a time, for requests that may arrive at any time."""

    def submit(self, requests: Iterable[Request]) -> None:
        """Queue requests, first in first out; raises UserError if one can never be served."""

    def step(self) -> list[Completion]:
        """Advance every active request; return those that finished."""

    def generated(self, request_id: RequestId, start: int = 0) -> Tokens:
        """Tokens number `start` and on that a request in flight has so far, for streaming."""

    def abort(self, ids: Collection[RequestId]) -> list[Completion]:
        """End requests now and return what they have so far; ids not in flight are ignored."""

    def update_weights(self, weights: Weights) -> None:
        """Continue with other weights from the next step on."""

    def stats(self) -> EngineStats:
        """Counters so far."""
