"""Training steps of transformers' Trainer, as a peer of benchmarks/train.py.

    python benchmarks/peers/train_hf.py 135m

The same trunk as a `Qwen2ForCausalLM`, the same rows, documents kept apart by `position_ids`,
AdamW (fused, the Trainer's default), clipping, the same type and threads.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from train_work import SETTINGS, SHAPES, WORKS, Turns, Work, fill, own_stdout, packed_rows, parse

os.environ.setdefault("HF_HUB_OFFLINE", "1")
IGNORE = -100


def main() -> None:
    options = parse(__doc__.splitlines()[0])
    out = own_stdout()
    work = WORKS[options.work]

    from transformers import Trainer, TrainerCallback, TrainingArguments

    model = trunk(work)
    turns, seen = Turns(work, out), watch_loss(model)

    class TakeTurns(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = not turns.step_done(
                work.rows * work.length, float(seen[-1])
            )
            seen.clear()

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(folder, **arguments(work)),
            train_dataset=Rows(work),
            callbacks=[TakeTurns()],
        )
        trainer.train()


def trunk(work: Work) -> Any:
    """The model with the common weights, in float32."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        **SHAPES[work.shape],
        max_position_embeddings=max(work.length, work.rows * work.length),
        rope_theta=10_000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    config.use_cache = False
    model = Qwen2ForCausalLM(config)
    fill(model.named_parameters())
    return model


def arguments(work: Work) -> dict[str, Any]:
    """TrainingArguments that differ from their defaults."""
    return {
        "per_device_train_batch_size": work.rows,
        "max_steps": 10**6,
        "learning_rate": SETTINGS["learning_rate"],
        "adam_beta1": SETTINGS["beta1"],
        "adam_beta2": SETTINGS["beta2"],
        "weight_decay": SETTINGS["weight_decay"],
        "max_grad_norm": SETTINGS["clip"],
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }


def watch_loss(model: torch.nn.Module) -> list[torch.Tensor]:
    """The losses of the forward passes, as they come."""
    seen: list[torch.Tensor] = []

    def keep(_module: Any, _args: Any, output: Any) -> None:
        if output.loss is not None:
            seen.append(output.loss.detach())

    model.register_forward_hook(keep)
    return seen


class Rows(torch.utils.data.IterableDataset):
    """The batch's rows, again and again."""

    def __init__(self, work: Work) -> None:
        ids, positions = map(torch.from_numpy, packed_rows(work))
        # A document's first token is not predicted from the document before.
        labels = torch.where(positions == 0, IGNORE, ids)
        self._rows = [
            {"input_ids": i, "labels": label} | ({"position_ids": p} if work.document else {})
            for i, p, label in zip(ids, positions, labels, strict=True)
        ]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            yield from self._rows


if __name__ == "__main__":
    sys.exit(main())
