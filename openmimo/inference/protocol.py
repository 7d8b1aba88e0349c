"""What an inference engine offers, and the two records that go in and out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from openmimo.errors import UserError
from openmimo.model.mimo import MiMo

RequestId = int | str
FinishReason = Literal["stop", "length", "aborted"]


@dataclass(frozen=True)
class Request:
    """One prompt to continue.

    id: unique among the requests in flight.
    prompt_ids: at least one token. Requests with equal prompts share their prefill.
    max_new_tokens: at least 1; the stop token counts.
    temperature: 0 is greedy.
    top_p: in (0, 1].
    seed: the sample is a function of (weights, prompt, settings, seed) alone.
    stop_ids: generation ends after any of these.
    """

    id: RequestId
    prompt_ids: Sequence[int]
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    stop_ids: Sequence[int] = ()

    def __post_init__(self) -> None:
        if not len(self.prompt_ids):
            raise UserError(f"request {self.id}: the prompt is empty; give at least one token")
        if self.max_new_tokens < 1:
            raise UserError(
                f"request {self.id}: max_new_tokens is {self.max_new_tokens}; ask for at least 1"
            )
        if not 0 <= self.temperature < float("inf"):
            raise UserError(
                f"request {self.id}: temperature is {self.temperature}; use 0 (greedy) or more"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"request {self.id}: top_p is {self.top_p}; it must lie in (0, 1]")


@dataclass(frozen=True, eq=False)
class Completion:
    """A finished request.

    token_ids: int32 [n], without the prompt; includes the stop token if there is one.
    log_probs: float32 [n], of the tempered distribution before top-p (`sampling.tempered`).
    finish_reason: "stop" (a stop token), "length" (max_new_tokens) or "aborted".
    """

    request_id: RequestId
    token_ids: NDArray[np.int32]
    log_probs: NDArray[np.float32]
    finish_reason: FinishReason


@dataclass
class EngineStats:
    """Counters since the engine was made; `waiting` and `active` are current.

    A decode step is one trunk forward over all active rows; `row_steps` adds up those rows, so
    `tokens_per_forward` compares engines with and without drafts.
    drafts_offered[i]: draft steps (of one row) with a draft i inside the answer: what lies beyond
        its end is thrown away, right or wrong.
    drafts_reached[i]: those of them in which all drafts before i were accepted.
    drafts_accepted[i]: those of them in which draft i was accepted too.
    """

    slots: int
    waiting: int = 0
    active: int = 0
    steps: int = 0
    row_steps: int = 0
    generated_tokens: int = 0
    prefilled_tokens: int = 0
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

    def abort(self, ids: Collection[RequestId]) -> list[Completion]:
        """End requests now and return what they have so far; ids not in flight are ignored."""

    def update_weights(self, weights: MiMo | Mapping[str, Tensor]) -> None:
        """Continue with other weights from the next step on."""

    def stats(self) -> EngineStats:
        """Counters so far."""
