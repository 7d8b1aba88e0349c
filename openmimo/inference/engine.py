"""The native engine: continuous batching with torch alone.

A step admits waiting requests, reads the next piece of their prompts, and advances every active row
by one decode step. The prompts read at one time are a cohort: rows that follow the active ones and
join them together. So a long prompt holds up nobody for longer than one piece, and all caches stay
views. A prompt's last token is never prefilled: the first decode step feeds it, so the first new
token takes the same path as all others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openmimo.errors import UserError
from openmimo.inference.admission import Cohort, Waiting
from openmimo.inference.decoder import Decoder, spare
from openmimo.inference.draft_policy import DraftPolicy
from openmimo.inference.packed import PackedModel
from openmimo.inference.prefill import Reader, Reading
from openmimo.inference.protocol import Completion, EngineStats, Request, RequestId, Tokens
from openmimo.inference.rows import Emitted, QueuedRequest, Rows
from openmimo.model.mimo import MiMo

Collect = Callable[[Request, NDArray[np.int64], Tensor], None]
"""Takes a finished request, its tokens int64 [n], prompt first, and h [n-1, D] of all but the last
(in the dtype that the engine computes in, on its device)."""


class Engine:
    """Implements `protocol.InferenceEngine` with a fixed number of slots.

    Args:
        model: its weights are copied, in joined form, to where they are.
        slots: sequences decoded at once.
        max_length: longest prompt plus answer, in tokens.
        used_vocab: ids from this one on are never sampled (rows of the head that the tokenizer
            does not use); default: all may be.
        drafts: tokens to draft in each step, from as many MTP layers. "auto" drafts only while that
            is measured to save time, at most one token a layer. Drafts change no token.
        draft_vocab: ids below this can be drafted; default: `usual_draft_vocab`. Fewer are drafted
            faster, and a token that is missing costs one wrong draft.
        prefill_tokens: most prompt tokens in one forward pass. It bounds how long a prompt holds up
            the answers in progress, and the memory of a pass: the largest part is a mask of
            prefill_tokens * max_length numbers for each query head that shares a key head.
        collect: called with what the trunk computed for each finished request.
        consume: the model is not needed any more; its weights are freed as they are copied.
        fixed_shapes: decode in few shapes, on a GPU as CUDA graphs (`graphs.FixedSteps`); default:
            on a GPU. Elsewhere it changes nothing but the time.

    Raises:
        UserError: a setting does not fit the model.
    """

    def __init__(
        self,
        model: MiMo,
        *,
        slots: int,
        max_length: int,
        used_vocab: int | None = None,
        drafts: int | Literal["auto"] = 0,
        draft_vocab: int | None = None,
        prefill_tokens: int = 2048,
        collect: Collect | None = None,
        consume: bool = False,
        fixed_shapes: bool | None = None,
    ) -> None:
        vocab, layers = model.config.vocab_size, len(model.mtp_layers)
        most = layers if drafts == "auto" else drafts
        if slots < 1:
            raise UserError(f"the engine has {slots} slots; give it at least 1")
        if used_vocab is not None and not 0 < used_vocab <= vocab:
            raise UserError(f"used_vocab is {used_vocab}, but the model's head has {vocab} rows")
        if prefill_tokens < 1:
            raise UserError(f"prefill_tokens is {prefill_tokens}; read at least 1 token at a time")
        if not 0 <= most <= layers:
            raise UserError(
                f"cannot draft {drafts} tokens a step: the model has {layers} MTP layers, and each "
                "drafts one"
            )
        if collect and not most:
            raise UserError("hidden states are kept only for drafting: allow the engine drafts")
        self._vocab, self._max_length, self._collect = vocab, max_length, collect
        self._used_vocab = used_vocab or vocab
        self._prefill_tokens, self._most_drafts = prefill_tokens, most
        self._policy = DraftPolicy(most) if drafts == "auto" and most else None
        with torch.inference_mode():
            self._model = PackedModel(
                model,
                max_length + spare(most),
                most,
                draft_vocab=draft_vocab or usual_draft_vocab(vocab),
                consume=consume,
            )
            try:
                self._decoder = Decoder(
                    self._model, slots, max_length, self._used_vocab, most, prefill_tokens,
                    fixed_shapes,
                )  # fmt: skip
            except (MemoryError, torch.OutOfMemoryError) as error:
                raise UserError(
                    f"there is no memory for the caches of {slots} slots of {max_length} tokens; "
                    "lower one of them"
                ) from error
        self._rows = Rows(slots, max_length, spare(most), self._used_vocab)
        self._waiting = Waiting(self._rows, slots, prefill_tokens)
        self._cohort: Cohort | None = None
        self._entry_seconds = 0.0
        self._in_flight: set[RequestId] = set()
        self._stats = EngineStats(
            slots,
            cache_bytes=self._decoder.bytes,
            drafts_offered=[0] * most,
            drafts_reached=[0] * most,
            drafts_accepted=[0] * most,
        )

    def submit(self, requests: Iterable[Request]) -> None:
        """Queue requests, first in first out; all or none.

        Raises:
            UserError: prompt plus max_new_tokens exceed max_length, or an id is no token.
            ValueError: the id of a request is already in flight.
        """
        queued = [QueuedRequest(request) for request in requests]
        new: set[RequestId] = set()
        for q in queued:
            self._check(q)
            if q.request.id in self._in_flight or q.request.id in new:
                raise ValueError(f"request id {q.request.id!r} is already in flight")
            new.add(q.request.id)
        self._in_flight |= new
        self._waiting.add(queued)

    def _check(self, queued: QueuedRequest) -> None:
        request, prompt = queued.request, queued.prompt
        total = len(prompt) + request.max_new_tokens
        if total > self._max_length:
            raise UserError(
                f"request {request.id}: {len(prompt)} prompt tokens and {request.max_new_tokens} "
                f"new ones make {total}, but the engine's max_length is {self._max_length}; "
                "shorten one or raise max_length"
            )
        if request.alternatives > self._used_vocab:
            raise UserError(
                f"request {request.id}: {request.alternatives} alternatives, but only "
                f"{self._used_vocab} tokens can be drawn"
            )
        if prompt.min() < 0 or prompt.max() >= self._vocab:
            raise UserError(
                f"request {request.id}: the prompt has a token id outside 0..{self._vocab - 1}; "
                "was it made with another tokenizer?"
            )

    @torch.inference_mode()
    def step(self) -> list[Completion]:
        """Read one piece of waiting prompts, then advance every active row."""
        if self._cohort is None and (cohort := self._waiting.next_cohort()):
            self._cohort = cohort
            self._decoder.copy_rows(*cohort.copies())
            self._stats.shared_tokens += cohort.shared_tokens
        if self._cohort:
            self._read_prompts(self._cohort)
        return self._decode() if self._rows.count else []

    @torch.inference_mode()
    def abort(self, ids: Collection[RequestId]) -> list[Completion]:
        """End requests now and return what they have so far; ids not in flight are ignored."""
        gone = self._in_flight.intersection(ids)
        if not gone:
            return []
        dropped = self._waiting.drop(gone)
        if self._cohort:
            dropped += self._cohort.drop(gone)
            if not self._cohort.live:
                self._cohort = None
        self._in_flight.difference_update(dropped)
        nothing = np.zeros(0, np.int32), np.zeros(0, np.float32)
        waiting = [Completion(request_id, *nothing, "aborted") for request_id in dropped]
        active = [row for i in gone if (row := self._rows.row_of(i)) is not None]
        return waiting + self._retire(active, aborted=True)

    @torch.inference_mode()
    def update_weights(self, weights: MiMo | Mapping[str, Tensor]) -> None:
        """Continue with other weights, which are copied, from the next step on.

        The caches of active requests are computed again, so nothing that the old weights computed
        is seen; tokens already generated, and their log-probabilities, stay.

        Raises:
            UserError: a tensor is missing or has another shape.
        """
        self._model.update(weights)
        self._waiting.forget_finished()
        if self._decoder.drafter:
            self._decoder.drafter.forget()
        if self._rows.count:
            rows, count = self._rows, self._rows.count
            ends = (rows.known[:count] - 1).tolist()
            pairs = zip(rows.queued, ends, strict=True)
            again = Reading(rows, [Reader(q, 0, end) for q, end in pairs], first=0)
            while not again.done:
                self._decoder.prefill(*again.next_piece(self._prefill_tokens))
        if self._cohort:
            self._cohort.restart()

    def stats(self) -> EngineStats:
        """A snapshot of the counters."""
        reading = self._cohort.live if self._cohort else 0
        return replace(
            self._stats,
            waiting=len(self._waiting),
            active=self._rows.count + reading,
            saved_seconds=self._policy.saved_seconds if self._policy else 0.0,
            drafts_offered=list(self._stats.drafts_offered),
            drafts_reached=list(self._stats.drafts_reached),
            drafts_accepted=list(self._stats.drafts_accepted),
        )

    def generated(self, request_id: RequestId, start: int = 0) -> Tokens:
        """Tokens number `start` and on that a request in flight has so far, for streaming."""
        row = self._rows.row_of(request_id)
        if row is None:
            return Tokens(np.zeros(0, np.int32), np.zeros(0, np.float32))
        return self._rows.generated(row, start)

    def run(self, requests: Sequence[Request]) -> list[Completion]:
        """Complete `requests` on an idle engine; the answers come in the requests' order."""
        if self._in_flight:
            raise ValueError("the engine is busy: use submit and step")
        self.submit(requests)
        done: dict[RequestId, Completion] = {}
        while self._in_flight:
            done.update((completion.request_id, completion) for completion in self.step())
        return [done[request.id] for request in requests]

    def _read_prompts(self, cohort: Cohort) -> None:
        """One piece; if it was the last, the cohort becomes active."""
        if not cohort.done:
            rows, tokens, positions = cohort.next_piece(self._prefill_tokens)
            self._stats.prefilled_tokens += cohort.piece_tokens
            hidden = self._decoder.prefill(rows, tokens, positions)
            cohort.score(hidden, self._decoder.logits)
        if cohort.done:
            self._cohort = None
            self._decoder.copy_rows(*cohort.join())

    def _decode(self) -> list[Completion]:
        rows, active = self._rows, self._rows.count
        drafts = self._choose_drafts()
        began = self._now()
        emitted = self._decoder.decode(rows, drafts)
        finished, kept = rows.append(emitted)
        self._count(drafts, emitted, kept, finished)
        if self._policy:
            accepted = [int((emitted.counts > j + 1).sum()) for j in range(drafts)]
            self._policy.record(active, drafts, self._now() - began, accepted)
        return self._retire(finished)

    def _choose_drafts(self) -> int:
        """How many to draft now; computes what the MTP layers lack for that."""
        drafter, rows, policy = self._decoder.drafter, self._rows, self._policy
        if not drafter or not policy:
            return self._most_drafts
        backlogs = [drafter.backlog(rows, k) for k in range(self._most_drafts + 1)]
        drafts = policy.choose(rows.count, [self._entry_seconds * b for b in backlogs])
        if entries := backlogs[drafts]:
            began = self._now()
            for layer in range(drafts):
                drafter.catch_up(layer, rows)
            seconds = self._now() - began
            self._entry_seconds = seconds / entries
            policy.spend(seconds)
        return drafts

    def _now(self) -> float:
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)
        return time.perf_counter()

    def _count(
        self, drafts: int, emitted: Emitted, kept: NDArray[np.int64], finished: Sequence[int]
    ) -> None:
        """Drafts beyond the end of an answer, right or wrong, are thrown away and not counted."""
        stats = self._stats
        stats.steps += 1
        stats.row_steps += len(kept)
        stats.generated_tokens += int(kept.sum())
        stats.drafting = drafts
        used = np.minimum(kept, emitted.counts - 1)
        goes_on = np.ones(len(kept), bool)
        goes_on[list(finished)] = False
        for draft in range(drafts):
            offered = goes_on | (kept > draft)
            stats.drafts_offered[draft] += int(offered.sum())
            stats.drafts_reached[draft] += int((offered & (used >= draft)).sum())
            stats.drafts_accepted[draft] += int((used > draft).sum())

    def _retire(self, rows: Sequence[int], aborted: bool = False) -> list[Completion]:
        """Take rows out and close the holes, the cohort's last rows last."""
        if not rows:
            return []
        completions = [self._rows.completion(row, aborted) for row in rows]
        if self._collect and self._decoder.drafter:
            for row in rows:
                known = int(self._rows.known[row])
                hidden = self._decoder.drafter.hidden(row, known - 1)
                request = self._rows.queued[row].request
                self._collect(request, self._rows.tokens[row, :known].copy(), hidden)
        self._in_flight.difference_update(c.request_id for c in completions)
        self._decoder.copy_rows(*self._waiting.close_holes(rows, self._cohort))
        return completions


def usual_draft_vocab(vocab: int) -> int:
    """A sixth of a large vocabulary: the product with the head is most of the cost of a draft.

    The ids of a BPE tokenizer are in the order of its merges, the frequent ones first. Of 26,700
    tokens in SmolLM2's answers 93 % are among the first sixth (Zhao et al., 2025, FR-Spec).
    """
    return min(vocab, max(vocab // 6, 8192))
