"""One decode step: feed the known tokens and the drafts, draw what follows, keep what matches.

Drafts are checked exactly, at any temperature. The trunk draws the token of every position with the
number that plain decoding would use there (`sampling.uniforms`), and a draft is right if it is that
token. So the output is not only distributed as without drafts: it is the same, token for token (up
to rounding of the logits). It is rejection sampling (Leviathan et al., 2023) with another coupling:
x is drawn from p whatever the draft. Because a draft uses the same number, it agrees with x nearly
as often as is possible at all; docs/inference.md has the measurement.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openmimo.inference.cache import KVCache
from openmimo.inference.drafter import Drafter
from openmimo.inference.graphs import FixedSteps
from openmimo.inference.packed import PackedModel, Span
from openmimo.inference.rows import Emitted, Rows
from openmimo.inference.sampling import draw, log_probabilities, uniforms


class Decoder:
    """Model and caches; row r of the caches belongs to row r of `Rows`.

    Args:
        model: with at least `drafts` MTP layers, and RoPE tables for max_length + spare positions.
        drafts: most tokens drafted in a step; 0 makes no MTP caches.
        window: most tokens that one pass over the MTP layers computes again.
        fixed_shapes: decode in `graphs.FixedSteps`; None: on a GPU.
    """

    def __init__(
        self,
        model: PackedModel,
        slots: int,
        max_length: int,
        used_vocab: int,
        drafts: int,
        window: int,
        fixed_shapes: bool | None = None,
    ) -> None:
        self._model, self._used_vocab = model, used_vocab
        length = max_length + spare(drafts)
        layers = model.config.num_hidden_layers
        self._cache = KVCache(model.config, layers, slots, length, model.dtype, model.device)
        fixed = model.device.type == "cuda" if fixed_shapes is None else fixed_shapes
        self._steps = FixedSteps(model, self._cache, slots) if fixed else None
        self.drafter: Drafter | None = None
        if drafts:
            self.drafter = Drafter(model, slots, length, used_vocab, drafts, window)

    @property
    def bytes(self) -> int:
        """Memory of all caches when every row is full."""
        return self._cache.bytes + (self.drafter.bytes if self.drafter else 0)

    def prefill(
        self, rows: slice, tokens: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> Tensor:
        """Compute the cache entries `positions` of `rows` from their tokens, both [N, T].

        Returns:
            hidden states before the final norm, [N, T, D].
        """
        at = self._to_device(positions)
        span = Span(self._model, rows, at, int(positions.max()) + 1)
        hidden = self._model.hidden(self._to_device(tokens), span, self._cache)
        if self.drafter:
            self.drafter.remember(rows, at, hidden)
        return hidden

    def _step(self, tokens: NDArray[np.int64], positions: NDArray[np.int64]) -> Tensor:
        """`prefill` of the active rows, for the next step."""
        if self._steps is None:
            return self.prefill(slice(0, len(tokens)), tokens, positions)
        hidden = self._steps.hidden(tokens, positions)
        if self.drafter:
            self.drafter.remember(slice(0, len(tokens)), self._to_device(positions), hidden)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of the ids that may be drawn."""
        return self._model.logits(hidden)[..., : self._used_vocab]

    def decode(self, rows: Rows, drafts: int) -> Emitted:
        """Draft `drafts` tokens, check them, return the right ones and one more."""
        known = rows.known[: rows.count, None]
        settings = rows.settings(self._model.device)
        ahead = np.arange(drafts + 1)
        uniform = np.zeros((rows.count, drafts + 1))
        if not settings.all_greedy:
            uniform = uniforms(rows.seeds[: rows.count, None], known + ahead)
        chance = self._to_device(uniform)
        if drafts and self.drafter:
            self.drafter.draft(rows, drafts, settings, chance)

        row, positions = np.arange(rows.count)[:, None], known + ahead - 1
        fed = rows.tokens[row, positions]
        hidden = self._step(fed, positions)
        log_probs = log_probabilities(self.logits(hidden), settings)
        drawn, chosen = draw(log_probs, settings, chance)
        tokens = drawn.cpu().numpy()
        right = np.logical_and.accumulate(tokens[:, :-1] == fed[:, 1:], axis=1)
        top_ids, top_log_probs = likeliest(log_probs, rows.alternatives)
        return Emitted(tokens, chosen.cpu().numpy(), right.sum(axis=1) + 1, top_ids, top_log_probs)

    def copy_rows(
        self, sources: NDArray[np.int64], targets: NDArray[np.int64], filled: NDArray[np.int64]
    ) -> None:
        """Copy the first `filled` entries of rows to others, all at once; [n] each."""
        if self.drafter:
            self.drafter.copy_rows(sources, targets, filled)
        moved = (filled > 0) & (sources != targets)
        if moved.any():
            source, target = self._to_device(sources[moved]), self._to_device(targets[moved])
            self._cache.copy_rows(source, target, int(filled[moved].max()))

    def _to_device(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self._model.device)


def spare(drafts: int) -> int:
    """Positions past the longest sequence that a step may touch.

    A window of MTP entries that starts at 0 reads up to two tokens a layer more than it is long.
    """
    return 3 * drafts + 1


def likeliest(
    log_probs: Tensor, count: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]] | tuple[None, None]:
    """The `count` most likely ids of log_probs [..., V] and their entries, best first."""
    if not count:
        return None, None
    best = log_probs.topk(min(count, log_probs.shape[-1]), dim=-1)
    return best.indices.to(torch.int32).cpu().numpy(), best.values.cpu().numpy()
