"""The token state of the active requests, on the host.

Active rows stay contiguous (0..count-1), so that a decode step works on views of the caches. The
work of a step is vectorised; Python touches a row only when it starts or ends, or reports
alternatives. It is numpy, not torch: for a few numbers a row, numpy's calls cost a fifth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from openmimo.inference.protocol import Completion, FinishReason, Request, RequestId, Tokens
from openmimo.inference.sampling import Settings

_NO_STOP = -1  # pads the stop lists; no token has this id


class QueuedRequest:
    """A request and its prompt as bytes: a key that hashes once, to find equal prompts fast.

    top: (ids, log-probs) of the alternatives so far, in pairs of arrays [n, alternatives].
    prompt_scores: with `score_prompt`, what has been scored so far, a piece a prefill pass.
    cached: tokens of the prompt that are not computed, but taken from another row.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.prompt = np.asarray(request.prompt_ids, dtype=np.int64)
        self.key = self.prompt.tobytes()
        self.top: list[tuple[NDArray[np.int32], NDArray[np.float32]]] = []
        self.prompt_scores: list[Tokens] = []
        self.cached = 0


@dataclass(frozen=True)
class Emitted:
    """Tokens that one decode step adds to n rows.

    tokens: int64 [n, m]; log_probs: float32 [n, m]; counts: int64 [n], how many of the m are
        meant, at least 1.
    top_ids, top_log_probs: int32 and float32 [n, m, a], where a row wants alternatives.
    """

    tokens: NDArray[np.int64]
    log_probs: NDArray[np.float32]
    counts: NDArray[np.int64]
    top_ids: NDArray[np.int32] | None = None
    top_log_probs: NDArray[np.float32] | None = None


class Rows:
    """State of up to `slots` sequences of up to `max_length` tokens.

    tokens: int64 [slots, max_length + spare]; entries from `known` on are leftovers or drafts.
    known: int64 [slots], how many tokens are known. The caches hold `known - 1` of them: a decode
        step feeds the last one.
    """

    def __init__(self, slots: int, max_length: int, spare: int, vocab: int) -> None:
        self.count = 0
        self.queued: list[QueuedRequest] = []
        self.tokens = np.zeros((slots, max_length + spare), np.int64)
        self.known = np.zeros(slots, np.int64)
        self.seeds = np.zeros(slots, np.uint64)
        self.alternatives = 0
        """Most alternatives that an active row wants."""
        self._log_probs = np.zeros((slots, max_length + spare), np.float32)
        self._limit = np.zeros(slots, np.int64)
        self._stops = np.full((slots, 1), _NO_STOP, np.int64)
        self._vocab = vocab
        self._settings: Settings | None = None
        self._row_of: dict[RequestId, int] = {}

    def settings(self, device: torch.device) -> Settings:
        """Sampling settings of the active rows."""
        if self._settings is None:
            self._settings = Settings.of([q.request for q in self.queued], self._vocab, device)
        return self._settings

    def row_of(self, request_id: RequestId) -> int | None:
        """The row of an active request."""
        return self._row_of.get(request_id)

    def place(self, row: int, queued: QueuedRequest) -> None:
        """Write a request's state to a row that is not active yet."""
        request, length = queued.request, len(queued.prompt)
        self.tokens[row, :length] = queued.prompt
        self.known[row] = length
        self._limit[row] = length + request.max_new_tokens
        self.seeds[row] = request.seed % 2**64
        missing = len(request.stop_ids) - self._stops.shape[1]
        if missing > 0:
            padding = ((0, 0), (0, missing))
            self._stops = np.pad(self._stops, padding, constant_values=_NO_STOP)
        self._stops[row] = _NO_STOP
        self._stops[row, : len(request.stop_ids)] = request.stop_ids

    def start(self, queued: Sequence[QueuedRequest]) -> None:
        """The rows count..count+len-1, already placed, become active."""
        self.queued += queued
        self.count += len(queued)
        self._changed()

    def _changed(self) -> None:
        self._settings = None
        self._row_of = {q.request.id: row for row, q in enumerate(self.queued)}
        self.alternatives = max((q.request.alternatives for q in self.queued), default=0)

    def append(self, emitted: Emitted) -> tuple[list[int], NDArray[np.int64]]:
        """Add tokens to all active rows, each cut after a stop token or at its limit.

        Returns:
            the rows that are finished now, ascending, and the tokens added to each, int64 [n].
        """
        n, width = emitted.tokens.shape
        known, limit = self.known[:n], self._limit[:n]
        step = np.arange(width)
        row, positions = np.arange(n)[:, None], known[:, None] + step
        self.tokens[row, positions] = emitted.tokens
        self._log_probs[row, positions] = emitted.log_probs
        allowed = np.minimum(emitted.counts, limit - known)
        stops = (emitted.tokens[..., None] == self._stops[:n, None]).any(axis=-1)
        stops &= step < allowed[:, None]
        stopped = stops.any(axis=1)
        kept = np.where(stopped, stops.argmax(axis=1) + 1, allowed)
        known += kept
        if emitted.top_ids is not None and emitted.top_log_probs is not None:
            for r, q in enumerate(self.queued):
                if wanted := q.request.alternatives:
                    new = np.s_[r, : kept[r], :wanted]
                    q.top.append((emitted.top_ids[new], emitted.top_log_probs[new]))
        return np.flatnonzero(stopped | (known == limit)).tolist(), kept

    def generated(self, row: int, start: int = 0) -> Tokens:
        """Tokens number `start` and on that an active row has generated."""
        queued = self.queued[row]
        new = slice(len(queued.prompt) + start, int(self.known[row]))
        token_ids, log_probs = self.tokens[row, new].astype(np.int32), self._log_probs[row, new]
        if not queued.top:
            return Tokens(token_ids, log_probs.copy())
        ids, probs = (np.concatenate(parts) for parts in zip(*queued.top, strict=True))
        queued.top = [(ids, probs)]  # a long stream need not join all steps anew for each piece
        return Tokens(token_ids, log_probs.copy(), ids[start:], probs[start:])

    def completion(self, row: int, aborted: bool = False) -> Completion:
        """What row `row` has generated so far, as its request's answer."""
        request, done = self.queued[row].request, self.generated(row)
        reason: FinishReason = "length"
        if aborted:
            reason = "aborted"
        elif len(done.token_ids) and int(done.token_ids[-1]) in request.stop_ids:
            reason = "stop"
        return Completion(
            request.id,
            done.token_ids,
            done.log_probs,
            reason,
            done.top_ids,
            done.top_log_probs,
            prompt_of(self.queued[row]),
            cached_tokens=self.queued[row].cached,
        )

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy the state of rows to others, all at once."""
        source, target = list(sources), list(targets)
        for state in (
            self.tokens, self._log_probs, self.known, self._limit, self.seeds, self._stops
        ):  # fmt: skip
            state[target] = state[source]

    def remove(self, rows: Sequence[int]) -> tuple[list[int], list[int]]:
        """Drop rows and close the holes with the last rows.

        Returns:
            (sources, targets): the moves made, for the owner of the caches to repeat.
        """
        gone = set(rows)
        count = self.count - len(gone)
        targets = sorted(row for row in gone if row < count)
        sources = [row for row in range(count, self.count) if row not in gone]
        if sources:
            self.move(sources, targets)
            for source, target in zip(sources, targets, strict=True):
                self.queued[target] = self.queued[source]
        del self.queued[count:]
        self.count = count
        self._changed()
        return sources, targets


def prompt_of(queued: QueuedRequest) -> Tokens | None:
    """The scored prompt; None if that was not asked for, or is not done."""
    scored = sum(len(piece.token_ids) for piece in queued.prompt_scores)
    if not queued.request.score_prompt or scored != len(queued.prompt) - 1:
        return None
    wanted = queued.request.alternatives
    first = Tokens(
        queued.prompt[:1].astype(np.int32),
        np.full(1, np.nan, np.float32),
        np.full((1, wanted), -1, np.int32),
        np.full((1, wanted), np.nan, np.float32),
    )
    pieces = [first, *queued.prompt_scores]
    return Tokens(
        np.concatenate([piece.token_ids for piece in pieces]),
        np.concatenate([piece.log_probs for piece in pieces]),
        np.concatenate([piece.top_ids for piece in pieces]),
        np.concatenate([piece.top_log_probs for piece in pieces]),
    )
