"""Reading prompts: rows that follow one another are computed in lockstep, a piece at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openmimo.inference.decoder import likeliest
from openmimo.inference.protocol import Tokens
from openmimo.inference.rows import QueuedRequest, Rows

SCORED = 256
"""Positions of a prompt whose log-probabilities are computed at a time: each is a whole row of the
vocabulary."""


@dataclass
class Reader:
    """A row that is read up to cache entry `end`; the first `filled` entries are there."""

    queued: QueuedRequest
    filled: int
    end: int


class Reading:
    """Readers in the rows first, first + 1, ..; their tokens are in `rows`."""

    def __init__(self, rows: Rows, readers: Sequence[Reader], first: int) -> None:
        self._rows, self.readers, self.first = rows, list(readers), first

    @property
    def done(self) -> bool:
        """Whether nothing is left to read."""
        return all(reader.filled == reader.end for reader in self.readers)

    def next_piece(self, budget: int) -> tuple[slice, NDArray[np.int64], NDArray[np.int64]]:
        """What to compute next: rows, tokens [N, T], positions [N, T], with N * T in the budget.

        A row with less to read than others reads on past its end, into entries that are written
        again before anything sees them.
        """
        count = len(self.readers)
        self._begins = np.array([reader.filled for reader in self.readers])
        longest = max(reader.end - reader.filled for reader in self.readers)
        self._width = max(1, min(longest, budget // count))
        positions = self._begins[:, None] + np.arange(self._width)
        positions = np.minimum(positions, self._rows.tokens.shape[1] - 1)
        for reader in self.readers:
            reader.filled = min(reader.filled + self._width, reader.end)
        rows = slice(self.first, self.first + count)
        return (
            rows,
            self._rows.tokens[np.arange(rows.start, rows.stop)[:, None], positions],
            positions,
        )

    @property
    def piece_tokens(self) -> int:
        """Entries that the latest piece was really for."""
        return sum(reader.filled for reader in self.readers) - int(self._begins.sum())

    def score(self, hidden: Tensor, logits: Callable[[Tensor], Tensor]) -> None:
        """Score the tokens that follow the latest piece's, where a request wants that.

        Args:
            hidden: of the latest piece, [N, T, D].
            logits: of hidden states [T, D], the logits [T, V].
        """
        for row, reader in enumerate(self.readers):
            begin = int(self._begins[row])
            if not reader.queued.request.score_prompt:
                continue
            for start in range(begin, reader.filled, SCORED):
                stop = min(start + SCORED, reader.filled)
                _score(reader.queued, start, logits(hidden[row, start - begin : stop - begin]))


def _score(queued: QueuedRequest, start: int, logits: Tensor) -> None:
    """Append the scores of tokens start+1.. under logits [T, V]."""
    request = queued.request
    log_probs = torch.log_softmax(logits.float() / (request.temperature or 1.0), dim=-1)
    token_ids = queued.prompt[start + 1 : start + 1 + len(logits)]
    known = torch.from_numpy(token_ids).to(logits.device)[:, None]
    # A prompt may hold ids that are never drawn.
    possible = known < logits.shape[-1]
    chosen = log_probs.gather(1, torch.where(possible, known, 0)).where(possible, -torch.inf)
    top_ids, top_log_probs = likeliest(log_probs, request.alternatives)
    if top_ids is None or top_log_probs is None:
        top_ids = np.zeros((len(token_ids), 0), np.int32)
        top_log_probs = np.zeros((len(token_ids), 0), np.float32)
    scores = chosen[:, 0].cpu().numpy()
    queued.prompt_scores.append(Tokens(token_ids.astype(np.int32), scores, top_ids, top_log_probs))
