"""The native engine: continuous batching with torch alone.

The engine decides who is active; a decoder (plain here, speculative in `speculative.py`) turns the
active rows into their next tokens. A prompt's last token is never prefilled: the first decode step
feeds it, so the first new token takes the same path as all others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from openmimo.errors import UserError
from openmimo.inference.protocol import Completion, EngineStats, Request, RequestId, Tokens
from openmimo.inference.rows import Emitted, QueuedRequest, Rows
from openmimo.inference.sampling import sample
from openmimo.model.cache import CacheView, KVCache
from openmimo.model.mimo import MiMo


class Decoder(Protocol):
    """Model and caches; row r of the caches belongs to row r of `Rows`."""

    model: MiMo
    spare: int
    """Positions past max_length that a step may touch."""
    drafts: int
    """Tokens drafted in a step; 0 where nothing is drafted."""

    def allocate(self, slots: int, max_length: int, used_vocab: int) -> None:
        """Make caches of `slots` rows and max_length + spare entries."""

    def prefill(self, rows: slice, tokens: Tensor, length: int) -> None:
        """Fill entries 0..length-1 of `rows` from tokens int64 [len(rows), max_length + spare]."""

    def decode(self, rows: Rows) -> Emitted:
        """Feed every active row's last known token; return what follows."""

    def copy_rows(self, source: Tensor, target: Tensor, length: int) -> None:
        """Copy the first `length` entries of rows `source` to rows `target`."""


class PlainDecoder:
    """One token a step."""

    def __init__(self, model: MiMo) -> None:
        self.model = model
        self.spare = 0
        self.drafts = 0

    def allocate(self, slots: int, max_length: int, used_vocab: int) -> None:
        """Make the cache of `slots` rows and `max_length` entries."""
        self._cache = trunk_cache(self.model, slots, max_length)
        self._used_vocab = used_vocab

    def prefill(self, rows: slice, tokens: Tensor, length: int) -> None:
        """Fill the first `length` cache entries of `rows`."""
        prefill_trunk(self.model, self._cache, rows, tokens, length)

    def decode(self, rows: Rows) -> Emitted:
        """One trunk forward and one draw for every active row."""
        active = slice(0, rows.count)
        known = rows.known[active]
        positions = (known - 1)[:, None]
        ids = rows.tokens[active].gather(1, positions)
        view = CacheView(self._cache, active, rows.longest)
        logits = self.model.logits(self.model.hidden(ids, positions, view))
        logits = logits[:, 0, : self._used_vocab]
        tokens, log_probs = sample(logits, rows.settings(), known)
        return Emitted(tokens[:, None], log_probs[:, None], torch.ones_like(known))

    def copy_rows(self, source: Tensor, target: Tensor, length: int) -> None:
        """Copy cache rows."""
        self._cache.copy_rows(source, target, length)


class Engine:
    """Implements `protocol.InferenceEngine` with a fixed number of slots.

    Args:
        decoder: how tokens are made; holds the model, whose device and dtype the engine uses.
        slots: sequences decoded at once.
        max_length: longest prompt plus answer, in tokens.
        used_vocab: ids from this one on are never sampled (rows of the head that the tokenizer
            does not use); default: all may be.
        prefill_tokens: most prompt tokens in one forward pass, which bounds its memory; a single
            longer prompt is still one pass.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        slots: int,
        max_length: int,
        used_vocab: int | None = None,
        prefill_tokens: int = 16_384,
    ) -> None:
        vocab = decoder.model.config.vocab_size
        if slots < 1:
            raise UserError(f"the engine has {slots} slots; give it at least 1")
        if used_vocab is not None and not 0 < used_vocab <= vocab:
            raise UserError(f"used_vocab is {used_vocab}, but the model's head has {vocab} rows")
        self._decoder = decoder
        self._max_length = max_length
        self._prefill_tokens = prefill_tokens
        with torch.inference_mode():
            decoder.allocate(slots, max_length, used_vocab or vocab)
            device = decoder.model.lm_head.weight.device
            self._rows = Rows(slots, max_length, decoder.spare, device)
        self._waiting: deque[QueuedRequest] = deque()
        self._in_flight: set[RequestId] = set()
        self._stats = EngineStats(
            slots,
            drafts_offered=[0] * decoder.drafts,
            drafts_reached=[0] * decoder.drafts,
            drafts_accepted=[0] * decoder.drafts,
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
        self._waiting += queued

    def _check(self, queued: QueuedRequest) -> None:
        request, prompt = queued.request, queued.prompt
        total = len(prompt) + request.max_new_tokens
        if total > self._max_length:
            raise UserError(
                f"request {request.id}: {len(prompt)} prompt tokens and {request.max_new_tokens} "
                f"new ones make {total}, but the engine's max_length is {self._max_length}; "
                "shorten one or raise max_length"
            )
        vocab = self._decoder.model.config.vocab_size
        if prompt.min() < 0 or prompt.max() >= vocab:
            raise UserError(
                f"request {request.id}: the prompt has a token id outside 0..{vocab - 1}; was it "
                "made with another tokenizer?"
            )

    @torch.inference_mode()
    def step(self) -> list[Completion]:
        """Admit waiting requests to free slots, then advance every active row."""
        self._admit()
        rows = self._rows
        if not rows.count:
            return []
        active = rows.count
        emitted = self._decoder.decode(rows)
        finished, kept = rows.append(emitted)
        self._stats.steps += 1
        self._stats.row_steps += active
        self._stats.generated_tokens += int(kept.sum())
        self._count_drafts(emitted, kept, finished)
        return self._retire(finished)

    @torch.inference_mode()
    def abort(self, ids: Collection[RequestId]) -> list[Completion]:
        """End requests now and return what they have so far; ids not in flight are ignored."""
        gone = self._in_flight.intersection(ids)
        if not gone:
            return []
        nothing = np.zeros(0, np.int32), np.zeros(0, np.float32)
        dropped = [q.request.id for q in self._waiting if q.request.id in gone]
        self._waiting = deque(q for q in self._waiting if q.request.id not in gone)
        self._in_flight.difference_update(dropped)
        active = [row for row, q in enumerate(self._rows.queued) if q.request.id in gone]
        waiting = [Completion(request_id, *nothing, "aborted") for request_id in dropped]
        return waiting + self._retire(active, aborted=True)

    @torch.inference_mode()
    def update_weights(self, weights: MiMo | Mapping[str, Tensor]) -> None:
        """Continue with other weights from the next step on.

        A model is used as it is (not copied, so it must not change while requests run); a state
        dict is copied into the current model. The caches of active requests are recomputed, so
        nothing that the old weights computed is seen again; tokens already generated, and their
        log-probabilities, stay.
        """
        if isinstance(weights, MiMo):
            self._decoder.model = weights
        else:
            self._decoder.model.load_state_dict(weights)
        if self._rows.count:
            self._prefill(list(range(self._rows.count)))

    def stats(self) -> EngineStats:
        """A snapshot of the counters."""
        return replace(
            self._stats,
            waiting=len(self._waiting),
            active=self._rows.count,
            drafts_offered=list(self._stats.drafts_offered),
            drafts_reached=list(self._stats.drafts_reached),
            drafts_accepted=list(self._stats.drafts_accepted),
        )

    def generated(self, request_id: RequestId, start: int = 0) -> Tokens:
        """Tokens number `start` and on that a request in flight has so far, for streaming."""
        for row, q in enumerate(self._rows.queued):
            if q.request.id == request_id:
                done = self._rows.completion(row)
                return Tokens(done.token_ids[start:], done.log_probs[start:])
        return Tokens(np.zeros(0, np.int32), np.zeros(0, np.float32))

    def run(self, requests: Sequence[Request]) -> list[Completion]:
        """Complete `requests` on an idle engine; the answers come in the requests' order."""
        if self._in_flight:
            raise ValueError("the engine is busy: use submit and step")
        self.submit(requests)
        done: dict[RequestId, Completion] = {}
        while self._in_flight:
            done.update((completion.request_id, completion) for completion in self.step())
        return [done[request.id] for request in requests]

    def _count_drafts(self, emitted: Emitted, kept: Tensor, finished: Sequence[int]) -> None:
        """Drafts beyond the end of an answer, right or wrong, are thrown away and not counted."""
        used = torch.minimum(kept, emitted.counts - 1)
        goes_on = torch.ones_like(kept, dtype=torch.bool)
        goes_on[list(finished)] = False
        for draft in range(self._decoder.drafts):
            offered = goes_on | (kept > draft)
            self._stats.drafts_offered[draft] += int(offered.sum())
            self._stats.drafts_reached[draft] += int((offered & (used >= draft)).sum())
            self._stats.drafts_accepted[draft] += int((used > draft).sum())

    def _admit(self) -> None:
        """Move waiting requests to the free slots and fill their caches.

        Of several requests with the same prompt one is prefilled and the others copy its row; so
        do requests whose prompt is already active, whatever that row has generated since.
        """
        free = min(self._stats.slots - self._rows.count, len(self._waiting))
        if not free:
            return
        source_of = {q.key: row for row, q in enumerate(self._rows.queued)}
        leaders: list[QueuedRequest] = []
        followers: list[QueuedRequest] = []
        for q in (self._waiting.popleft() for _ in range(free)):
            if q.key in source_of:
                followers.append(q)
            else:
                source_of[q.key] = self._rows.count + len(leaders)
                leaders.append(q)
        first = self._rows.count
        self._rows.add(leaders + followers)
        self._prefill(list(range(first, first + len(leaders))))
        if followers:
            sources = [source_of[q.key] for q in followers]
            target = range(first + len(leaders), self._rows.count)
            self._copy(sources, list(target), max(len(q.prompt) for q in followers))

    def _prefill(self, rows: Sequence[int]) -> None:
        """Fill the caches of consecutive rows from their known tokens, all but the last."""
        known = self._rows.known.tolist()
        for chunk in _chunks(rows, known, self._prefill_tokens):
            # At least one, although nothing may need it: a one-token prompt's first draft reads
            # the hidden state at position 0, which must not be what another request left there.
            length = max(1, max(known[row] for row in chunk) - 1)
            span = slice(chunk[0], chunk[-1] + 1)
            self._decoder.prefill(span, self._rows.tokens[span], length)
        self._stats.prefilled_tokens += sum(known[row] - 1 for row in rows)

    def _retire(self, rows: Sequence[int], aborted: bool = False) -> list[Completion]:
        """Take rows out and close the holes."""
        if not rows:
            return []
        completions = [self._rows.completion(row, aborted) for row in rows]
        self._in_flight.difference_update(c.request_id for c in completions)
        longest = self._rows.longest
        sources, targets = self._rows.remove(rows)
        self._copy(sources, targets, longest)
        return completions

    def _copy(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        if sources:
            device = self._rows.tokens.device
            source = torch.tensor(sources, device=device)
            target = torch.tensor(targets, device=device)
            self._decoder.copy_rows(source, target, length)


def trunk_cache(model: MiMo, slots: int, length: int) -> KVCache:
    """A cache for all trunk layers, in the model's dtype and on its device."""
    weight = model.lm_head.weight
    layers = model.config.num_hidden_layers
    return KVCache(model.config, layers, slots, length, weight.dtype, weight.device)


def prefill_trunk(
    model: MiMo, cache: KVCache, rows: slice, tokens: Tensor, length: int
) -> tuple[Tensor, Tensor]:
    """Run the trunk over tokens[:, :length] at positions 0..length-1, filling the cache.

    Returns:
        hidden states [len(rows), length, D] before the final norm, and the positions.
    """
    ids = tokens[:, :length]
    positions = torch.arange(length, device=ids.device).expand_as(ids)
    return model.hidden(ids, positions, CacheView(cache, rows, length)), positions


def _chunks(rows: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Cut consecutive rows into runs whose padded size (rows x longest) keeps to the budget."""
    chunks: list[list[int]] = []
    longest = 0
    for row in rows:
        longest = max(longest, lengths[row])
        if not chunks or (len(chunks[-1]) + 1) * longest > budget:
            chunks.append([])
            longest = lengths[row]
        chunks[-1].append(row)
    return chunks
