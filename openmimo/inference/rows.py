"""The token state of the active requests: tensors whose first `count` rows are in use.

Active rows stay contiguous (0..count-1), so that a decode step works on views. All per-step work
here is vectorised; Python touches a row only when it starts or ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from openmimo.inference.protocol import Completion, FinishReason, Request
from openmimo.inference.sampling import Settings, signed64

_NO_STOP = -1  # pads the stop lists; no token has this id


class QueuedRequest:
    """A request and its prompt as bytes: a key that hashes once, to find equal prompts fast."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.prompt = np.asarray(request.prompt_ids, dtype=np.int64)
        self.key = self.prompt.tobytes()


@dataclass(frozen=True)
class Emitted:
    """Tokens that one decode step adds to n rows.

    tokens: int64 [n, m]; log_probs: float32 [n, m]; counts: int64 [n], how many of the m are
    meant, at least 1.
    """

    tokens: Tensor
    log_probs: Tensor
    counts: Tensor


class Rows:
    """State of up to `slots` sequences of up to `max_length` tokens.

    tokens: int64 [slots, max_length + spare]; entries from `known` on are 0 or discarded drafts.
    known: int64 [slots], how many tokens are known. The caches hold `known - 1` of them: a decode
        step feeds the last one.
    """

    def __init__(self, slots: int, max_length: int, spare: int, device: torch.device) -> None:
        self.count = 0
        self.queued: list[QueuedRequest] = []
        self.tokens = torch.zeros(slots, max_length + spare, dtype=torch.int64, device=device)
        self.log_probs = torch.zeros(slots, max_length + spare, device=device)
        self.known = torch.zeros(slots, dtype=torch.int64, device=device)
        self._limit = torch.zeros(slots, dtype=torch.int64, device=device)
        self._temperature = torch.ones(slots, device=device)
        self._top_p = torch.ones(slots, device=device)
        self._seeds = torch.zeros(slots, dtype=torch.int64, device=device)
        self._stops = torch.full((slots, 1), _NO_STOP, dtype=torch.int64, device=device)
        self._settings: Settings | None = None

    @property
    def longest(self) -> int:
        """Most known tokens of an active row."""
        return int(self.known[: self.count].max())

    def settings(self) -> Settings:
        """Sampling settings of the active rows."""
        if self._settings is None:
            n = self.count
            plain = all(q.request.temperature == q.request.top_p == 1 for q in self.queued)
            self._settings = Settings(
                self._temperature[:n], self._top_p[:n], self._seeds[:n], plain
            )
        return self._settings

    def add(self, queued: Sequence[QueuedRequest]) -> None:
        """Start sequences in rows count..count+len-1."""
        device = self.tokens.device
        new = slice(self.count, self.count + len(queued))
        requests = [q.request for q in queued]
        longest = max(len(q.prompt) for q in queued)
        prompts = np.zeros((len(queued), longest), dtype=np.int64)
        for line, q in zip(prompts, queued, strict=True):
            line[: len(q.prompt)] = q.prompt
        self.tokens[new] = 0
        self.tokens[new, :longest] = torch.from_numpy(prompts).to(device)
        lengths = torch.tensor([len(q.prompt) for q in queued], device=device)
        self.known[new] = lengths
        self._limit[new] = lengths + torch.tensor(
            [r.max_new_tokens for r in requests], device=device
        )
        self._temperature[new] = torch.tensor(
            [float(r.temperature) for r in requests], device=device
        )
        self._top_p[new] = torch.tensor([float(r.top_p) for r in requests], device=device)
        self._seeds[new] = torch.tensor([signed64(r.seed) for r in requests], device=device)
        self._set_stops(new, [tuple(r.stop_ids) for r in requests])
        self.queued += queued
        self.count += len(queued)
        self._settings = None

    def _set_stops(self, new: slice, stops: Sequence[tuple[int, ...]]) -> None:
        missing = max(map(len, stops)) - self._stops.shape[1]
        if missing > 0:
            self._stops = torch.nn.functional.pad(self._stops, (0, missing), value=_NO_STOP)
        width = self._stops.shape[1]
        padded = [[*ids, *[_NO_STOP] * (width - len(ids))] for ids in stops]
        self._stops[new] = torch.tensor(padded, device=self._stops.device)

    def append(self, emitted: Emitted) -> tuple[list[int], Tensor]:
        """Add tokens to all active rows, each cut after a stop token or at its limit.

        Returns:
            the rows that are finished now, ascending, and the tokens added to each, int64 [n].
        """
        n, width = emitted.tokens.shape
        known = self.known[:n]
        row = torch.arange(n, device=known.device)[:, None]
        step = torch.arange(width, device=known.device)
        positions = known[:, None] + step
        self.tokens[row, positions] = emitted.tokens
        self.log_probs[row, positions] = emitted.log_probs
        allowed = torch.minimum(emitted.counts, self._limit[:n] - known)
        stops = (emitted.tokens[..., None] == self._stops[:n, None]).any(dim=-1)
        stops &= step < allowed[:, None]
        stopped = stops.any(dim=1)
        kept = torch.where(stopped, stops.int().argmax(dim=1) + 1, allowed)
        known += kept
        finished = (stopped | (known == self._limit[:n])).nonzero()[:, 0]
        return finished.tolist(), kept

    def completion(self, row: int, aborted: bool = False) -> Completion:
        """What row `row` has generated so far."""
        queued = self.queued[row]
        generated = slice(len(queued.prompt), int(self.known[row]))
        tokens = self.tokens[row, generated].to("cpu", torch.int32, copy=True).numpy()
        log_probs = self.log_probs[row, generated].to("cpu", copy=True).numpy()
        reason: FinishReason = "length"
        if aborted:
            reason = "aborted"
        elif len(tokens) and int(tokens[-1]) in queued.request.stop_ids:
            reason = "stop"
        return Completion(queued.request.id, tokens, log_probs, reason)

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
            source = torch.tensor(sources, device=self.tokens.device)
            target = torch.tensor(targets, device=self.tokens.device)
            for state in (
                self.tokens, self.log_probs, self.known, self._limit,
                self._temperature, self._top_p, self._seeds, self._stops,
            ):  # fmt: skip
                state[target] = state[source]
            for source_row, target_row in zip(sources, targets, strict=True):
                self.queued[target_row] = self.queued[source_row]
        del self.queued[count:]
        self.count = count
        self._settings = None
        return sources, targets
