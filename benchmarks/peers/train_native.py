"""Training steps of openmimo, as a peer of benchmarks/train.py.

python benchmarks/peers/train_native.py 135m --mtp 1
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import torch
from train_work import SETTINGS, SHAPES, WORKS, Turns, Work, fill, own_stdout, packed_rows, parse
from train_work import samples as sft_samples

from openmimo.config.schema import ModelConfig, OptimizerConfig
from openmimo.model.mimo import MiMo
from openmimo.training.batch import Batch, Segment, batch_rows
from openmimo.training.loss import Objective, TrainingLoss, count_targets
from openmimo.training.optim import build_optimizer, update
from openmimo.training.packed_samples import PackedSamples

PAD = 0


def main() -> None:
    options = parse(__doc__.splitlines()[0])
    out = own_stdout()
    work = WORKS[options.work]
    config = ModelConfig(
        **SHAPES[work.shape],
        max_position_embeddings=work.length,
        num_nextn_predict_layers=options.mtp,
    )
    model = MiMo(config)
    model.init_weights()
    fill(model.named_parameters())
    model.train()
    settings = OptimizerConfig(
        beta1=SETTINGS["beta1"],
        beta2=SETTINGS["beta2"],
        weight_decay=SETTINGS["weight_decay"],
        clip=SETTINGS["clip"],
    )
    optimizer = build_optimizer(model.named_parameters(), settings)
    objective = Objective(mtp_layers=range(options.mtp))
    loss = TrainingLoss(model, objective, head_chunk=4096)
    turns = Turns(work, out)
    for batch, tokens in batches(work):
        counts = count_targets(batch, objective)
        parts = loss(batch, counts, 0.3)
        parts.total.backward()
        update(optimizer, SETTINGS["learning_rate"], settings.clip)
        if not turns.step_done(tokens, float(parts.sums[0] / counts[0])):
            return


def batches(work: Work) -> Iterator[tuple[Batch, int]]:
    """Batches and their tokens without padding."""
    if not work.sft:
        ids, positions = map(torch.from_numpy, packed_rows(work))
        while True:
            yield Batch(ids, positions, ids), ids.numel()
    segments = [Segment(np.array(ids), loss_from) for ids, loss_from in sft_samples(work)]
    packed = PackedSamples(segments, work.length, 0, "sft")
    number = 0
    while True:
        rows = [packed.row(number + n) for n in range(work.rows)]
        number += work.rows
        yield batch_rows(rows, work.length, PAD), sum(len(s.ids) for row in rows for s in row)


if __name__ == "__main__":
    sys.exit(main())
