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
from torch import Tensor, nn

from openmimo.model.masks import shifted_within_document
from openmimo.model.mimo import Context, MiMo
from openmimo.training.batch import IGNORE, Batch
from openmimo.training.head_loss import head_loss


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
            what drafts are accepted by under greedy decoding. Without the main loss the trunk's
            choice is unknown, and the target stands for it.
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
        # Sizes must be known on the CPU: they come before the work, so that a GPU never waits.
        labels = [batch.labels(shift).flatten() for shift in objective.shifts]
        if not objective.main:
            labels[0] = torch.full_like(labels[0], IGNORE)
        places = [(label != IGNORE).nonzero()[:, 0] for label in labels]
        sizes = [len(place) for place in places]
        context = model.context(batch.positions)
        hidden = batch.hidden
        if hidden is None:
            hidden = model.hidden(batch.ids, batch.positions, context)
        inputs = [model.model.norm(hidden) if objective.main else hidden.detach()]
        inputs += [self._draft(layer, hidden, batch, context) for layer in objective.mtp_layers]
        scale = 1 / counts.clamp(min=1)
        scale[1:] *= mtp_weight / max(len(objective.mtp_layers), 1)
        found = head_loss(
            torch.cat([x.flatten(0, 1)[at] for x, at in zip(inputs, places, strict=True)]),
            model.lm_head.weight,
            torch.cat([label[at] for label, at in zip(labels, places, strict=True)]),
            torch.cat([share.expand(n) for share, n in zip(scale, sizes, strict=True)]),
            self.head_chunk,
        )
        sums = torch.stack([losses.sum() for losses in found.losses.split(sizes)])
        return LossParts(found.total, sums.float(), self._agree(found.top, places, labels))

    @torch.no_grad()
    def hidden(self, ids: Tensor, positions: Tensor) -> Tensor:
        """The trunk's output for rows int64 [B, T] on any device; [B, T, D] on the model's."""
        device = self.model.lm_head.weight.device
        return self.model.hidden(ids.to(device), positions.to(device))

    def _draft(self, layer: int, hidden: Tensor, batch: Batch, context: Context) -> Tensor:
        """Head input of MTP layer `layer`, [B, T, D]."""
        source = hidden if layer < self.objective.detach_after else hidden.detach()
        # Where there is no such token the input is token 0: its target is ignored, and nothing
        # that has a target attends to it.
        ids = shifted_within_document(batch.ids, batch.positions, 1 + layer, fill=0)
        return self.model.mtp_draft(layer, source, ids, batch.positions, context)

    def _agree(self, top: Tensor, places: list[Tensor], labels: list[Tensor]) -> Tensor:
        """`LossParts.agree` from the top tokens at `places`, flat indices of each target."""
        main, *drafts = top.split([len(at) for at in places])
        trunk = labels[0].index_copy(0, places[0], main)
        layers = self.objective.mtp_layers
        found = [
            (draft == (trunk[at + 1 + layer] if self.objective.main else label[at])).sum()
            for layer, draft, at, label in zip(layers, drafts, places[1:], labels[1:], strict=True)
        ]
        return torch.stack(found) if found else top.new_zeros(0)


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
    """Accumulate the gradient of main + mtp_weight * mean(mtp) over `batch`, on one process.

    Returns:
        the main loss and each MTP layer's loss, per valid target, in nats.
    """
    objective = Objective(mtp_layers, main, detach_after)
    module = TrainingLoss(model, objective, head_chunk=4096)
    counts = count_targets(batch, objective)
    sums = torch.zeros(len(counts), device=counts.device)
    for part in batch.split(tokens_per_microbatch):
        parts = module(part, counts, mtp_weight)
        parts.total.backward()
        sums += parts.sums
    first, *rest = (sums / counts.clamp(min=1)).tolist()
    return first, rest
