"""Exact speculative decoding with parallel MTP layers.

With tokens x_0..x_n known and hidden states h_0..h_{n-1} computed, a step drafts d_1..d_k, layer i
from entry t = n-1, and checks them all in one trunk forward over [x_n, d_1, .., d_k]. Rejection
sampling (Leviathan et al., 2023; Chen et al., 2023) makes the output's distribution the trunk's
own, whatever the drafts; greedy output is the same token for token.

Layer i's entry t reads (h_t, embed(x_{t+1+i})) at RoPE position t and predicts x_{t+2+i} (MiMo
report, Figure 2). Entries whose token was only drafted go stale when the draft is rejected. So a
step recomputes, for layer i, the last k+1+i entries: the previous step left entries up to
t = n'-1-i real, and n <= n'+k+1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openmimo.errors import UserError
from openmimo.inference.engine import prefill_trunk, trunk_cache
from openmimo.inference.rows import Emitted, Rows
from openmimo.inference.sampling import (
    ACCEPT,
    DRAFT,
    SAMPLE,
    Settings,
    pick,
    sampled_from,
    tempered,
    uniforms,
)
from openmimo.model.cache import CacheView, KVCache
from openmimo.model.mimo import MiMo


def accept_drafts(
    target: Tensor, draft: Tensor, drafted: Tensor, settings: Settings, position: Tensor
) -> tuple[Tensor, Tensor]:
    """Rejection sampling: accept x with probability min(1, p(x)/q(x)), in order, until one fails.

    The token after the accepted ones is drawn from max(p - q, 0), normalised, or from p if all
    were accepted.

    Args:
        target: p, [N, k+1, V]; p[:, j] given the first j drafts.
        draft: q, [N, k, V]; what draft j was actually drawn from.
        drafted: int64 [N, k].
        settings: of the N rows.
        position: int64 [N], position of the first draft.

    Returns:
        tokens int64 [N, k+1] and accepted bool [N, k] (a run of True, then False); the row's new
        tokens are the first accepted.sum() + 1.
    """
    rows, k = drafted.shape
    step = torch.arange(k, device=drafted.device)
    p = target[:, :k].gather(-1, drafted[..., None])[..., 0]
    q = draft.gather(-1, drafted[..., None])[..., 0]
    u = uniforms(settings.seeds[:, None], position[:, None] + step, ACCEPT)
    accepted = (u * q < p).int().cumprod(dim=1).bool()
    count = accepted.sum(dim=1)

    row = torch.arange(rows, device=drafted.device)
    next_target = target[row, count]
    q_or_nothing = torch.nn.functional.pad(draft, (0, 0, 0, 1))  # no draft after the last one
    residual = (next_target - q_or_nothing[row, count]).clamp(min=0)
    # p <= q everywhere means p = q up to rounding, where any rejection is itself rounding.
    possible = residual.sum(dim=-1, keepdim=True) > 0
    residual = torch.where(possible, residual, next_target)
    last = pick(residual, uniforms(settings.seeds, position + count, SAMPLE))
    tokens = torch.nn.functional.pad(drafted, (0, 1))
    tokens[row, count] = last
    return tokens, accepted


class SpeculativeDecoder:
    """A decoder for `engine.Engine` that emits 1 to drafts+1 tokens a step.

    Args:
        model: with at least `drafts` MTP layers.
        drafts: how many tokens to draft, 1 or more; draft i comes from MTP layer i.
    """

    def __init__(self, model: MiMo, drafts: int) -> None:
        layers = len(model.mtp_layers)
        if not 1 <= drafts <= layers:
            raise UserError(
                f"cannot draft {drafts} tokens a step: the model has {layers} MTP layers, and each "
                "drafts one"
            )
        self.model = model
        self.drafts = drafts
        # A window of 2k entries that starts at 0 reads tokens up to 3k - 1.
        self.spare = 3 * drafts

    def allocate(self, slots: int, max_length: int, used_vocab: int) -> None:
        """Make the caches of trunk and MTP layers, and the store of hidden states."""
        length = max_length + self.spare
        self._trunk = trunk_cache(self.model, slots, length)
        config, weight = self.model.config, self.model.lm_head.weight
        self._mtp = KVCache(config, self.drafts, slots, length, weight.dtype, weight.device)
        self._hidden = weight.new_zeros(slots, length, config.hidden_size)
        self._used_vocab = used_vocab

    def prefill(self, rows: slice, tokens: Tensor, length: int) -> None:
        """Fill the first `length` entries of trunk and MTP caches.

        The last i+1 entries of MTP layer i may lack their token; the first step recomputes them.
        """
        hidden, positions = prefill_trunk(self.model, self._trunk, rows, tokens, length)
        self._hidden[rows, :length] = hidden
        for layer in range(self.drafts):
            ids = tokens[:, 1 + layer : 1 + layer + length]
            view = CacheView(self._mtp, rows, length, first_layer=layer)
            self.model.mtp_draft(layer, hidden, ids, positions, view)

    def decode(self, rows: Rows) -> Emitted:
        """Draft, check, and return the accepted drafts plus one token."""
        longest, settings = rows.longest, rows.settings()
        known = rows.known[: rows.count]
        drafted, draft = self.draft(rows, longest)

        active = slice(0, rows.count)
        row = torch.arange(rows.count, device=known.device)[:, None]
        positions = known[:, None] + torch.arange(-1, self.drafts, device=known.device)
        ids = torch.cat([rows.tokens[row, positions[:, :1]], drafted], dim=1)
        view = CacheView(self._trunk, active, longest + self.drafts)
        hidden = self.model.hidden(ids, positions, view)
        self._hidden[row, positions] = hidden
        probabilities = tempered(self._used(self.model.logits(hidden)), settings)
        target = sampled_from(probabilities, settings)
        tokens, accepted = accept_drafts(target, draft, drafted, settings, known)

        log_probs = probabilities.gather(-1, tokens[..., None])[..., 0].log()
        return Emitted(tokens, log_probs, accepted.sum(dim=1) + 1)

    def draft(self, rows: Rows, longest: int) -> tuple[Tensor, Tensor]:
        """Draft the next tokens of every active row.

        Args:
            longest: most known tokens of an active row.

        Returns:
            drafts int64 [N, k] and the distributions they were drawn from, float32 [N, k, V].
        """
        settings, active = rows.settings(), slice(0, rows.count)
        known = rows.known[active]
        row = torch.arange(rows.count, device=known.device)[:, None]
        drafted, distributions = [], []
        for layer in range(self.drafts):
            width = self.drafts + 1 + layer
            # Entries last-width+1..last, moved to start at 0 in a short row: what then lies past
            # `last` is meaningless, but no query sees it before it is computed again. (A row with
            # one known token has no `last` yet and drafts from entry 0, for one step.)
            last = (known - 2).clamp(min=0)
            start = (last - width + 1).clamp(min=0)
            positions = start[:, None] + torch.arange(width, device=known.device)
            view = CacheView(self._mtp, active, max(longest - 1, width), first_layer=layer)
            hidden = self.model.mtp_draft(
                layer,
                self._hidden[row, positions],
                rows.tokens[row, positions + 1 + layer],
                positions,
                view,
            )
            logits = self.model.lm_head(hidden[row[:, 0], last - start])
            q = sampled_from(tempered(self._used(logits), settings), settings)
            position = known + layer
            token = pick(q, uniforms(settings.seeds, position, DRAFT))
            rows.tokens[row[:, 0], position] = token
            drafted.append(token)
            distributions.append(q)
        return torch.stack(drafted, dim=1), torch.stack(distributions, dim=1)

    def copy_rows(self, source: Tensor, target: Tensor, length: int) -> None:
        """Copy rows of all caches."""
        self._trunk.copy_rows(source, target, length)
        self._mtp.copy_rows(source, target, length)
        self._hidden[target, :length] = self._hidden[source, :length]

    def _used(self, logits: Tensor) -> Tensor:
        return logits[..., : self._used_vocab]
