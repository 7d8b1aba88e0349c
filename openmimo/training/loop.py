"""The training loop that pre-training, MTP tuning and SFT share.

A stage says what each step reads (`Source`) and which losses count (`Objective`); the loop
does the rest: steps, metrics, checkpoints, resuming.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from openmimo.config.schema import OptimizerConfig
from openmimo.metrics import MetricsWriter
from openmimo.model.checkpoint import save_model
from openmimo.model.mimo import MiMo
from openmimo.progress import Progress
from openmimo.runs import Run, Stage
from openmimo.training.batch import Batch
from openmimo.training.checkpoint import load_checkpoint, save_checkpoint
from openmimo.training.loss import Objective, backward_step
from openmimo.training.optim import build_optimizer, update


@dataclass(frozen=True)
class Step:
    """One step's input and settings; `length` and `rope_base` are as in the schedule."""

    stage: str
    batch: Batch
    learning_rate: float
    mtp_weight: float
    rope_base: float

    @property
    def tokens(self) -> int:
        return self.batch.ids.numel()


class Source(Protocol):
    """Where a stage's steps come from."""

    total_steps: int

    def step(self, index: int) -> Step:
        """Step `index`; called in order, once each, except after `restore`."""

    def state(self) -> dict[str, Any]:
        """JSON state after the last step."""

    def restore(self, state: dict[str, Any]) -> None:
        """Continue after that state."""


def train(
    run: Run,
    stage: Stage,
    model: MiMo,
    source: Source,
    objective: Objective,
    optimizer_config: OptimizerConfig,
    tokens_per_microbatch: int,
    checkpoint_every: int,
) -> bool:
    """Run all steps; the final model goes to `stage.dir/model`.

    Returns:
        False if it was interrupted (a checkpoint is on disk), True if it is finished.
    """
    optimizer = build_optimizer(model.named_parameters(), optimizer_config)
    checkpoints = stage.dir / "checkpoints"
    state = load_checkpoint(checkpoints, model, optimizer)
    first, tokens, skipped = 0, 0, 0
    if state is not None:
        first, tokens, skipped = state["step"], state["tokens"], state["skipped"]
        model.rope_base = state["rope_base"]  # no step sets it if all are done
        source.restore(state["source"])
    name = stage.dir.name

    def checkpoint(step: int) -> None:
        record = {
            "tokens": tokens,
            "skipped": skipped,
            "rope_base": model.rope_base,
            "source": source.state(),
        }
        save_checkpoint(checkpoints, step, model, optimizer, record)
        stage.save_clock()

    model.train()
    with (
        MetricsWriter(stage.dir / "metrics.jsonl", resume_step=first) as metrics,
        Progress(name, source.total_steps, start=first) as progress,
    ):
        for index in range(first, source.total_steps):
            began = time.monotonic()
            step = source.step(index)
            model.rope_base = step.rope_base
            loss, mtp_losses = backward_step(
                model,
                step.batch,
                objective.mtp_layers,
                step.mtp_weight,
                tokens_per_microbatch,
                main=objective.main,
                detach_after=objective.detach_after,
            )
            norm = update(optimizer, step.learning_rate, optimizer_config.clip)
            skipped += not math.isfinite(norm)
            tokens += step.tokens
            speed = step.tokens / (time.monotonic() - began)
            metrics.log(
                index + 1,
                tokens=tokens,
                stage=step.stage,
                lr=step.learning_rate,
                loss=loss if objective.main else None,
                mtp_loss=mtp_losses,
                grad_norm=norm,
                skipped=skipped,
                batch_tokens=step.tokens,
                seq_len=step.batch.ids.shape[1],
                rope_base=step.rope_base,
                mtp_weight=step.mtp_weight,
                tokens_per_second=speed,
            )
            shown = loss if objective.main else sum(mtp_losses) / len(mtp_losses)
            progress.step(index + 1, stage=step.stage, loss=shown, tok_s=speed)
            last = index + 1 == source.total_steps
            if last or run.interrupt.requested or (index + 1) % checkpoint_every == 0:
                checkpoint(index + 1)
            if run.interrupt.requested and not last:
                return False
    model.eval()
    save_model(model, stage.dir / "model", torch.float32)
    return True


def constant_with_warmup(index: int, learning_rate: float, warmup_steps: int) -> float:
    """Learning rate of step `index` (from 0): linear warm-up, then constant."""
    return learning_rate * min(1.0, (index + 1) / (warmup_steps + 1))
