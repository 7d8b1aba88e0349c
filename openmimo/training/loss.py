"""Language-model and MTP losses over packed rows.

Every loss is a sum over valid targets divided by a count that covers the whole step, so the
result depends neither on micro-batches nor on ranks. The MTP losses have counts of their own:
each layer loses one more target at every document's end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openmimo.model.masks import shifted_within_document
from openmimo.model.mimo import MiMo
from openmimo.training.batch import IGNORE, Batch


@dataclass(frozen=True)
class Objective:
    """What is optimised.

    Attributes:
        mtp_layers: MTP layers whose losses count.
        main: False skips the main loss (MTP layers are tuned alone).
        detach_after: layers from this one on read a detached hidden state. Layer 0 is part of
            the pre-training objective (assumed: not detached); the copies are for inference only
            and must not move the trunk's layers. They share embedding and head with the trunk,
            which they move like any other layer.
    """

    mtp_layers: Sequence[int]
    main: bool = True
    detach_after: int = 1

    @property
    def shifts(self) -> tuple[int, ...]:
        """How far ahead of its position each loss's target lies, the main loss first."""
        return (1, *(2 + layer for layer in self.mtp_layers))


def count_targets(batch: Batch, objective: Objective) -> Tensor:
    """Valid targets of the main loss and of each MTP layer in `batch`, int64 [1 + L]."""
    return torch.stack([(batch.labels(shift) != IGNORE).sum() for shift in objective.shifts])


class LossParts(NamedTuple):
    """Losses of one (micro-)batch; L MTP layers in the order of the objective.

    A tuple, not a dataclass: FSDP looks for the tensors of a module's output in tuples.

    Attributes:
        total: what `backward` is called on, a scalar.
        sums: summed cross entropies in nats of the main loss and of each layer, float32 [1 + L],
            detached; 0 for a main loss that is not computed.
        agree: at how many targets each layer's most likely token is the trunk's own, int64 [L]:
            what drafts are accepted by under greedy decoding.
    """

    total: Tensor
    sums: Tensor
    agree: Tensor


class TrainingLoss(nn.Module):
    """The model and its losses as one module.

    Embedding and head are used by the trunk and by the MTP layers, so nothing smaller than this
    module can be the root that FSDP shards.

    Args:
        model: the model; `model.rope_base` is used.
        objective: which losses.
        head_chunk: tokens whose logits are in memory at once.
    """

    def __init__(self, model: MiMo, objective: Objective, head_chunk: int) -> None:
        super().__init__()
        self.model, self.objective, self.head_chunk = model, objective, head_chunk

    def forward(self, batch: Batch, counts: Tensor, mtp_weight: float) -> LossParts:
        """main / counts[0] + mtp_weight * mean over layers of mtp[i] / counts[1 + i].

        Args:
            batch: packed rows.
            counts: valid targets of each loss in the whole step, over all micro-batches and
                ranks, as `count_targets` gives them; int64 [1 + L].
            mtp_weight: of the mean over the MTP layers.
        """
        model, objective = self.model, self.objective
        context = model.context(batch.positions)
        hidden = batch.hidden
        if hidden is None:
            hidden = model.hidden(batch.ids, batch.positions, context)
        total = hidden.new_zeros((), dtype=torch.float32)
        sums = torch.zeros(len(counts), device=hidden.device)
        tops = torch.zeros_like(batch.ids)
        labels = batch.labels(1)
        if objective.main:
            loss, tops[labels != IGNORE] = self._head(model.model.norm(hidden), labels)
            sums[0] = loss.detach()
            total = total + loss / counts[0].clamp(min=1)
        else:
            with torch.no_grad():
                _, tops[labels != IGNORE] = self._head(model.model.norm(hidden), labels)
        agree = torch.zeros(len(counts) - 1, dtype=torch.int64, device=hidden.device)
        for index, layer in enumerate(objective.mtp_layers):
            source = hidden if layer < objective.detach_after else hidden.detach()
            # Where there is no such token the input is token 0: its target is ignored, and
            # nothing that has a target attends to it.
            ids = shifted_within_document(batch.ids, batch.positions, 1 + layer, fill=0)
            draft = model.mtp_draft(layer, source, ids, batch.positions, context)
            labels = batch.labels(2 + layer)
            loss, guesses = self._head(draft, labels)
            expected = shifted_within_document(tops, batch.positions, 1 + layer, fill=0)
            agree[index] = (guesses == expected[labels != IGNORE]).sum()
            sums[1 + index] = loss.detach()
            share = mtp_weight / len(objective.mtp_layers)
            total = total + share * loss / counts[1 + index].clamp(min=1)
        return LossParts(total, sums, agree)

    @torch.no_grad()
    def hidden(self, ids: Tensor, positions: Tensor) -> Tensor:
        """The trunk's output for rows int64 [B, T] on any device; [B, T, D] on the model's."""
        device = self.model.lm_head.weight.device
        return self.model.hidden(ids.to(device), positions.to(device))

    def _head(self, head_input: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Summed cross entropy at the positions with a label, and the top tokens there."""
        valid = labels != IGNORE
        logits = self.model.lm_head(head_input[valid]).float()
        loss = F.cross_entropy(logits, labels[valid], reduction="sum")
        return loss, logits.detach().argmax(dim=-1)


def backward_step(
    model: MiMo,
    batch: Batch,
    mtp_layers: Sequence[int],
    mtp_weight: float,
    tokens_per_microbatch: int,
    *,
    main: bool = True,
    detach_after: int = 1,
) -> tuple[float, list[float]]:
    """Accumulate the gradient of main + mtp_weight * mean(mtp) over `batch`.

    Returns:
        the main loss and each MTP layer's loss, per valid target, in nats.
    """
    objective = Objective(mtp_layers, main, detach_after)
    module = TrainingLoss(model, objective, head_chunk=4096)
    counts = count_targets(batch, objective)
    sums = torch.zeros(len(counts))
    for part in batch.split(tokens_per_microbatch):
        parts = module(part, counts, mtp_weight)
        parts.total.backward()
        sums += parts.sums
    first, *rest = (sums / counts.clamp(min=1)).tolist()
    return first, rest
