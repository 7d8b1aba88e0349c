"""Language-model and MTP losses over packed rows.

Every loss is a sum over valid targets divided by a count that covers the whole step, so the
result depends neither on micro-batches nor on ranks. The MTP losses have counts of their own:
each layer loses one more target at every document's end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from openmimo.model.masks import shifted_within_document
from openmimo.model.mimo import MiMo
from openmimo.training.batch import IGNORE, Batch


def count_targets(batch: Batch, mtp_layers: Sequence[int]) -> tuple[int, list[int]]:
    """Valid targets of the main loss and of each MTP layer in `batch`."""
    counts = [
        int((batch.labels(shift) != IGNORE).sum()) for shift in (1, *(2 + i for i in mtp_layers))
    ]
    return counts[0], counts[1:]


def cross_entropy_sum(model: MiMo, head_input: Tensor, labels: Tensor) -> Tensor:
    """Summed cross entropy of lm_head(head_input [B, T, D]) against labels [B, T].

    Only positions with a label go through the head: it is the largest matrix of a small model.
    """
    valid = labels != IGNORE
    logits = model.lm_head(head_input[valid])
    return F.cross_entropy(logits.float(), labels[valid], reduction="sum")


@dataclass(frozen=True)
class Losses:
    """Summed losses of one (micro-)batch; `mtp` in the order of the layers asked for."""

    main: Tensor
    mtp: list[Tensor]


def losses(
    model: MiMo,
    batch: Batch,
    mtp_layers: Sequence[int],
    *,
    main: bool = True,
    detach_after: int = 1,
) -> Losses:
    """Summed main and MTP losses.

    Args:
        model: the model; `model.rope_base` is used.
        batch: packed rows.
        mtp_layers: MTP layers to compute.
        main: False skips the main head (MTP layers are tuned alone).
        detach_after: layers from this one on read a detached hidden state. Layer 0 is part of
            the pre-training objective (assumed: not detached); the copies are for inference only
            and must not move the trunk's layers. They share embedding and head with the trunk,
            which they move like any other layer.
    """
    hidden = batch.hidden
    if hidden is None:
        hidden = model.hidden(batch.ids, batch.positions)
    main_loss = hidden.new_zeros(())
    if main:
        main_loss = cross_entropy_sum(model, model.model.norm(hidden), batch.labels(1))
    mtp_losses = []
    for layer in mtp_layers:
        source = hidden if layer < detach_after else hidden.detach()
        # Where there is no such token the input is token 0: its target is ignored, and nothing
        # that has a target attends to it.
        ids = shifted_within_document(batch.ids, batch.positions, 1 + layer, fill=0)
        draft = model.mtp_draft(layer, source, ids, batch.positions)
        mtp_losses.append(cross_entropy_sum(model, draft, batch.labels(2 + layer)))
    return Losses(main_loss, mtp_losses)


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
    main_count, mtp_counts = count_targets(batch, mtp_layers)
    main_total, mtp_totals = 0.0, [0.0] * len(mtp_layers)
    for part in batch.split(tokens_per_microbatch):
        part_losses = losses(model, part, mtp_layers, main=main, detach_after=detach_after)
        total = part_losses.main / max(main_count, 1)
        for loss, count in zip(part_losses.mtp, mtp_counts, strict=True):
            total = total + mtp_weight / len(mtp_layers) * loss / max(count, 1)
        total.backward()
        main_total += float(part_losses.main.detach()) / max(main_count, 1)
        for index, (loss, count) in enumerate(zip(part_losses.mtp, mtp_counts, strict=True)):
            mtp_totals[index] += float(loss.detach()) / max(count, 1)
    return main_total, mtp_totals
