"""From the groups of a rollout to optimiser updates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from openmimo.config.schema import RLConfig
from openmimo.model.mimo import MiMo
from openmimo.rl.advantage import group_advantages
from openmimo.rl.loss import grpo_loss, merge_metrics, token_weights
from openmimo.rollout.records import Group
from openmimo.training.optim import update

PAD = -1


@dataclass(frozen=True)
class Samples:
    """Responses side by side, padded on the right.

    Attributes:
        ids: int64 [N, T], prompt and response.
        mask: float32 [N, T], 1 where ids[n, t] is a response token to train on.
        old_logp: float32 [N, T], log-probability when it was sampled.
        advantages: float32 [N].
        prompt: int64 [N], which prompt the row answers.
    """

    ids: Tensor
    mask: Tensor
    old_logp: Tensor
    advantages: Tensor
    prompt: Tensor

    def rows(self, index: Tensor) -> Samples:
        """Some rows, cut to the longest of them."""
        used = int(self.lengths[index].max())
        return Samples(
            self.ids[index, :used],
            self.mask[index, :used],
            self.old_logp[index, :used],
            self.advantages[index],
            self.prompt[index],
        )

    @property
    def lengths(self) -> Tensor:
        """Tokens of each row up to its last response token, int64 [N]."""
        columns = torch.arange(1, self.mask.shape[1] + 1)
        return (self.seen * columns).amax(dim=1)

    @property
    def seen(self) -> Tensor:
        return (self.ids != PAD).long()


def gather_samples(groups: Sequence[Group]) -> Samples:
    """All samples of `groups`; padding ids are PAD (they are replaced before the forward pass).

    Samples without a score keep their row with mask 0: they count nowhere.
    """
    rows = [
        (number, group, k) for number, group in enumerate(groups) for k in range(len(group.results))
    ]
    advantage = [group_advantages(group.scores) for group in groups]
    width = max(
        len(group.prompt.ids) + len(group.completions[k].token_ids)  # type: ignore[union-attr]
        for _, group, k in rows
    )
    ids = np.full((len(rows), width), PAD, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.float32)
    old = np.zeros((len(rows), width), dtype=np.float32)
    for row, (number, group, k) in enumerate(rows):
        completion = group.completions[k]
        assert completion is not None
        start = len(group.prompt.ids)
        end = start + len(completion.token_ids)
        ids[row, :start] = group.prompt.ids
        ids[row, start:end] = completion.token_ids
        mask[row, start:end] = advantage[number][1][k]
        old[row, start:end] = completion.log_probs
    return Samples(
        torch.from_numpy(ids),
        torch.from_numpy(mask),
        torch.from_numpy(old),
        torch.tensor([advantage[number][0][k] for number, _, k in rows], dtype=torch.float32),
        torch.tensor([number for number, _, _ in rows]),
    )


def micro_batches(lengths: Tensor, tokens: int) -> Iterator[Tensor]:
    """Row numbers in groups of similar length, each of at most `tokens` padded tokens."""
    order = torch.argsort(lengths, stable=True)
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and int(lengths[order[end]]) * (end + 1 - start) <= tokens:
            end += 1
        yield order[start:end]
        start = end


def token_logp(
    model: MiMo, ids: Tensor, mask: Tensor, used_vocab: int | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of every masked token, float32 [B, T]; 0 elsewhere.

    ids int64 [B, T], padding PAD; mask float [B, T]. The token at t is predicted at t - 1.
    used_vocab: ids from this one on cannot be sampled, as in the engine; default: all can.
    """
    inputs = ids.clamp(min=0)
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    hidden = model.hidden(inputs[:, :-1], positions[:, :-1])
    wanted = mask[:, 1:] > 0
    logits = model.logits(hidden[wanted])[:, :used_vocab].float()
    all_logp = logits.log_softmax(dim=-1)
    chosen = all_logp.gather(1, inputs[:, 1:][wanted][:, None])[:, 0]
    with torch.no_grad():
        spread = -(all_logp.exp() * all_logp).sum(dim=-1)
    shape = mask.shape
    logp = torch.zeros(shape).index_put(_shifted(wanted), chosen)
    entropy = torch.zeros(shape).index_put(_shifted(wanted), spread)
    return logp, entropy


def _shifted(wanted: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = wanted.nonzero(as_tuple=True)
    return rows, columns + 1


def grpo_update(
    model: MiMo,
    optimizer: torch.optim.Optimizer,
    groups: Sequence[Group],
    config: RLConfig,
    learning_rate: float,
    used_vocab: int | None = None,
) -> dict[str, float]:
    """One optimiser update on `groups`; returns its metrics, the gradient norm among them.

    used_vocab: that of the engine which sampled them.
    """
    samples = gather_samples(groups)
    weights = token_weights(samples.mask, samples.prompt, config.loss_agg)
    parts = []
    for rows in micro_batches(samples.lengths, config.tokens_per_microbatch):
        part = samples.rows(rows)
        logp, entropy = token_logp(model, part.ids, part.mask, used_vocab)
        loss, metrics = grpo_loss(
            logp,
            part.old_logp,
            part.advantages,
            weights[rows][:, : part.ids.shape[1]],
            eps_low=config.eps_low,
            eps_high=config.eps_high,
            entropy=entropy,
        )
        loss.backward()
        parts.append(metrics)
    norm = update(optimizer, learning_rate, config.optimizer.clip)
    return merge_metrics(parts) | {"grad_norm": norm}
