"""One optimiser step over all ranks: micro-batches, global counts, one clip, one update.

Targets are counted over the whole step before the first forward pass, and gradients are summed
over micro-batches and ranks; so the update does not depend on how the rows were divided.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from openmimo.training.batch import Batch, rows_at_once
from openmimo.training.loss import TrainingLoss, count_targets
from openmimo.training.optim import update
from openmimo.training.throughput import StepClock
from openmimo.world import World


@dataclass(frozen=True)
class StepResult:
    """What a step says about itself, over all ranks.

    Attributes:
        loss: main loss a target in nats; None if it is not part of the objective.
        mtp_loss: each MTP layer's loss a target.
        mtp_acceptance: share of each layer's targets where its top token is the trunk's; where the
            trunk is frozen and its head not computed, where it is the target.
        targets: valid targets of the main loss.
        norm: of the gradient before clipping; not finite if the step was skipped.
    """

    loss: float | None
    mtp_loss: list[float]
    mtp_acceptance: list[float]
    targets: int
    norm: float


def train_step(
    module: TrainingLoss,
    optimizer: torch.optim.AdamW,
    batch: Batch,
    rows: int,
    learning_rate: float,
    mtp_weight: float,
    clip: float,
    tokens_per_microbatch: int,
    world: World,
    clock: StepClock,
) -> StepResult:
    """Update the weights once. A step whose gradient is not finite on any rank changes nothing.

    Args:
        module: as `parallel.prepare` made it.
        optimizer: over its parameters.
        batch: this rank's rows of the step, on the CPU; it may have none.
        rows: the step's rows over all ranks.
        learning_rate, mtp_weight: of this step.
        clip: largest norm of the gradient, taken over all shards.
        tokens_per_microbatch: in one forward and backward pass of one rank.
        world: the ranks.
        clock: the ends of `forward_backward` and `update` are marked on it.
    """
    counts = world.sum(count_targets(batch, module.objective))
    device = world.device
    on_device = counts.to(device)
    sums = torch.zeros(len(counts), device=device)
    agree = torch.zeros(len(counts) - 1, dtype=torch.int64, device=device)
    with world.waiting():
        for part in micro_batches(batch, rows, tokens_per_microbatch, world):
            parts = module(part.to(device), on_device, mtp_weight)
            # Each pass sums its gradients over the ranks at once: keeping them whole up to the last
            # one would take 4 bytes a parameter on every GPU.
            parts.total.backward()
            sums += parts.sums
            agree += parts.agree
        clock.mark("forward_backward")
        norm = update(optimizer, learning_rate, clip)
        clock.mark("update")
    losses = (world.sum(sums.cpu().double()) / counts.clamp(min=1)).tolist()
    accepted = (world.sum(agree.cpu().double()) / counts[1:].clamp(min=1)).tolist()
    main = losses[0] if module.objective.main else None
    return StepResult(main, losses[1:], accepted, int(counts[0]), norm)


def micro_batches(batch: Batch, rows: int, tokens: int, world: World) -> list[Batch]:
    """The batch in parts, as many on every rank: they gather weights together.

    A rank with fewer rows takes part with rows that have no target.
    """
    most = -(-rows // world.size)
    wanted = -(-most // rows_at_once(tokens, batch.ids.shape[1]))
    parts = list(batch.split(tokens))
    return parts + [batch.blank() for _ in range(wanted - len(parts))]
