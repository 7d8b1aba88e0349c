"""How a fresh MTP layer should begin: share of greedy tokens guessed, before and after training.

    python benchmarks/fresh_mtp.py RUN --steps 40 --json -

RUN has finished `mtp_heads` with `generations`. From each beginning the layer is trained on three
quarters of the model's answers, with the recipe's settings but for the steps. Then it guesses what
the trunk would choose two tokens on, at every token of the other answers. The frozen trunk's output
is computed once.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from openmimo.config.load import load_config
from openmimo.config.schema import Recipe
from openmimo.interop.fresh_mtp import FreshMTP, last_input_size
from openmimo.model.checkpoint import load_model
from openmimo.model.masks import shifted_within_document
from openmimo.model.mimo import MiMo
from openmimo.training.answers import read_answers
from openmimo.training.batch import IGNORE
from openmimo.training.loop import constant_with_warmup
from openmimo.training.loss import Objective, TrainingLoss, backward_step
from openmimo.training.mtp_heads import AnswerSource, freeze_all_but
from openmimo.training.optim import build_optimizer, update
from openmimo.training.packed_samples import PackedSamples


def beginnings(model: MiMo) -> dict[str, dict[str, torch.Tensor]]:
    """Candidates, each as tensors that differ from `FreshMTP`'s."""
    size = last_input_size(model.config, model.state_dict().__getitem__)
    width = model.config.hidden_size
    eye, zero, one = torch.eye(width), torch.zeros(width, width), torch.ones(width)
    random = 0.02 * torch.randn(width, 2 * width, generator=torch.Generator().manual_seed(0))
    unit = {"hidden_layernorm.weight": one, "token_layernorm.weight": one}
    return {
        "[I, 0], norms at the last layer's size": {},
        "[I, 0], norms 1": unit,
        "[I, 0] times the size, norms 1": unit
        | {"input_proj.weight": torch.cat([size * eye, zero], 1)},
        "[0, I] times the size, norms 1": unit
        | {"input_proj.weight": torch.cat([zero, size * eye], 1)},
        "random 0.02, norms 1": unit | {"input_proj.weight": random},
    }


@torch.no_grad()
def guessed(model: MiMo, source: AnswerSource, steps: int) -> float:
    """Share of the answers' tokens where the layer chooses what the trunk will choose."""
    right = count = 0
    for index in range(steps):
        batch = source.step(index).batch
        assert batch.hidden is not None
        ids = shifted_within_document(batch.ids, batch.positions, 1, fill=0)
        wanted = batch.labels(2) != IGNORE
        draft = model.mtp_draft(0, batch.hidden, ids, batch.positions)[wanted]
        trunk = model.logits(batch.hidden.roll(-1, 1)[wanted]).argmax(-1)
        right += int((model.lm_head(draft).argmax(-1) == trunk).sum())
        count += len(trunk)
    return right / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--json", type=argparse.FileType("w"), default=sys.stdout)
    options = parser.parse_args()
    recipe = load_config(Recipe, str(options.run / "config.toml"))
    stages = options.run / "stages"
    model = load_model(stages / "pretrain" / "model", dtype=torch.float32)
    freeze_all_but(model, range(1))
    answers = read_answers(stages / "mtp_heads" / "answers")
    held = max(1, len(answers) // 4)
    config = recipe.mtp_heads
    train, test = (
        PackedSamples(part, config.length, recipe.seed, "mtp_heads")
        for part in (answers[:-held], answers[-held:])
    )
    module = TrainingLoss(model, Objective([0], main=False), recipe.compute.head_chunk)
    learned = AnswerSource(config, train, module, 0)
    unseen = AnswerSource(config, test, module, 0)
    epoch = -(-len(test) // config.batch)
    results = []
    for name, changes in beginnings(model).items():
        fresh = FreshMTP(model.config, model.state_dict().__getitem__)
        layer = model.mtp_layers[0]
        layer.load_state_dict({part: fresh.tensor(part) for part in layer.state_dict()} | changes)
        before = guessed(model, unseen, epoch)
        began = time.process_time()
        optimizer = build_optimizer(model.named_parameters(), config.optimizer)
        for index in range(options.steps):
            batch = learned.step(index).batch
            backward_step(model, batch, [0], 1.0, config.tokens_per_microbatch, main=False)
            rate = constant_with_warmup(index, config.learning_rate, config.warmup_steps)
            update(optimizer, rate, config.optimizer.clip)
        results.append(
            {
                "beginning": name,
                "before": before,
                "after": guessed(model, unseen, epoch),
                "cpu_seconds": time.process_time() - began,
            }
        )
        print(results[-1], file=sys.stderr, flush=True)
    json.dump(results, options.json, indent=2)


if __name__ == "__main__":
    main()
