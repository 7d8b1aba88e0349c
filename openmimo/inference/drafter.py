"""Drafts from parallel MTP layers, and the caches that they need.

With tokens x_0..x_{n-1} known and hidden states h_0..h_{n-2} computed, layer i drafts x_{n+i} from
its entry t = n-2. Entry t of layer i reads (h_t, embed(x_{t+1+i})) at RoPE position t and predicts
x_{t+2+i} (MiMo report, Figure 2). So the last i entries read tokens that are only drafted. They go
stale when a draft turns out wrong, and are computed again in the next step, in one window with the
entries of the tokens that have come since. The same window makes up for steps without drafts: after
a prompt, or when the engine did not draft for a while, it is just longer.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openmimo.inference.cache import KVCache, zeros_on_demand
from openmimo.inference.packed import PackedModel, Span
from openmimo.inference.rows import Rows
from openmimo.inference.sampling import Settings, draw, log_probabilities

USUAL = 8
"""Tokens that a row may be behind before they are made up for in a pass of their own."""


class Drafter:
    """MTP layers 0..drafts-1, their caches, and the trunk's hidden states.

    Args:
        length: entries a row.
        window: most entries computed in one pass.
    """

    def __init__(
        self,
        model: PackedModel,
        slots: int,
        length: int,
        used_vocab: int,
        drafts: int,
        window: int,
    ) -> None:
        self._model, self._used_vocab, self._window = model, used_vocab, window
        config = model.config
        self._cache = KVCache(config, drafts, slots, length, model.dtype, model.device)
        shape = (slots, length, config.hidden_size)
        self._hidden = zeros_on_demand(shape, model.dtype, model.device)
        # Layer i has final entries for the tokens before _done[i]: entries 0.._done[i]-1-i.
        self._done = np.zeros((drafts, slots), np.int64)

    @property
    def bytes(self) -> int:
        """Memory of caches and hidden states when every row is full."""
        return self._cache.bytes + self._hidden.numel() * self._hidden.element_size()

    def remember(self, rows: slice, positions: Tensor, hidden: Tensor) -> None:
        """Keep the trunk's hidden states [N, T, D] of rows at positions int64 [N, T]."""
        index = torch.arange(rows.start, rows.stop, device=positions.device)[:, None]
        self._hidden[index, positions] = hidden

    def hidden(self, row: int, length: int) -> Tensor:
        """A copy of the first `length` hidden states of a row, [length, D]."""
        return self._hidden[row, :length].clone()

    def backlog(self, rows: Rows, drafts: int) -> int:
        """Entries that `catch_up` would compute, over all rows and layers 0..drafts-1."""
        missing = rows.known[: rows.count] - 1 - self._done[:drafts, : rows.count]
        return int(np.where(missing > USUAL, missing, 0).sum())

    def forget(self) -> None:
        """The weights are others: compute every entry again."""
        self._done[:] = 0

    def copy_rows(
        self, sources: NDArray[np.int64], targets: NDArray[np.int64], filled: NDArray[np.int64]
    ) -> None:
        """Copy rows of which the first `filled` tokens' entries stay valid."""
        # The entry of the last of them reads a token that the target may not share.
        done = np.minimum(self._done[:, sources], np.maximum(filled - 1, 0))
        moved = (filled > 0) & (sources != targets)
        if moved.any():
            source = torch.from_numpy(sources[moved]).to(self._model.device)
            target = torch.from_numpy(targets[moved]).to(self._model.device)
            longest = int(filled[moved].max())
            self._hidden[target, :longest] = self._hidden[source, :longest]
            self._cache.copy_rows(source, target, longest)
        self._done[:, targets] = done

    def draft(self, rows: Rows, drafts: int, settings: Settings, uniform: Tensor) -> None:
        """Write the drafts of every active row to rows.tokens, at known..known+drafts-1.

        Args:
            uniform: float64 [N, drafts or more], the numbers that the trunk will draw with.
        """
        n = rows.count
        known = rows.known[:n]
        # A row with one known token has no such entry yet, and drafts nonsense for one step.
        last = np.maximum(known - 2, 0)
        for layer in range(drafts):
            self.catch_up(layer, rows)
            width = max(1, int((known - 1 - self._done[layer, :n]).max())) + layer
            # Moved to start at 0 in a short row: what then lies past `last` is meaningless, but
            # nothing sees it before it is computed again.
            start = np.maximum(last - width + 1, 0)
            out = self._compute(layer, slice(0, n), rows.tokens, start, width)
            row = torch.arange(n, device=out.device)
            out = out[row, torch.from_numpy(last - start).to(out.device)]
            logits = self._model.draft_head(out)[:, None, : self._used_vocab]
            log_probs = log_probabilities(logits, settings)
            tokens, _ = draw(log_probs, settings, uniform[:, layer : layer + 1])
            rows.tokens[np.arange(n), known + layer] = tokens[:, 0].cpu().numpy()
            self._done[layer, :n] = known - 1

    def catch_up(self, layer: int, rows: Rows) -> None:
        """Compute what `layer` lacks, up to the entry that drafts, where that is more than usual.

        All rows in one pass if the window is large enough for that, else one after the other.
        """
        n = rows.count
        final = rows.known[:n] - 2 - layer  # entries to have; the draft adds one
        missing = final + layer - self._done[layer, :n]
        behind = np.flatnonzero(missing >= USUAL)
        if not len(behind):
            return
        width = int(missing.max()) + layer
        if n * width <= self._window:
            self._compute(layer, slice(0, n), rows.tokens, np.maximum(final - width, 0), width)
        else:
            for row in behind.tolist():
                begin = max(int(self._done[layer, row]) - layer, 0)
                for start in range(begin, int(final[row]), self._window):
                    width = min(self._window, int(final[row]) - start)
                    one = slice(row, row + 1)
                    self._compute(layer, one, rows.tokens, np.array([start]), width)
        self._done[layer, behind] = np.maximum(final[behind], 0) + layer

    def _compute(
        self,
        layer: int,
        rows: slice,
        tokens: NDArray[np.int64],
        start: NDArray[np.int64],
        width: int,
    ) -> Tensor:
        """Entries start..start+width-1 of a layer; returns the head's input, [N, width, D]."""
        positions = start[:, None] + np.arange(width)
        ids = tokens[np.arange(rows.start, rows.stop)[:, None], positions + 1 + layer]
        at = torch.from_numpy(positions).to(self._model.device)
        span = Span(self._model, rows, at, int(positions.max()) + 1)
        hidden = self._hidden[span.index, at]
        return self._model.draft(
            layer, hidden, torch.from_numpy(ids).to(at.device), span, self._cache
        )
