"""The training loop that pre-training, MTP tuning and SFT share.

A stage says what each step reads (`Source`) and hands over the module to train
(`training.parallel.prepare`); the loop does the rest: steps, metrics, checkpoints, resuming. It
runs on every rank; rank 0 alone writes metrics and reports progress.
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from typing import Any, Protocol

from openmimo.config.schema import ComputeConfig, OptimizerConfig
from openmimo.metrics import MetricsWriter
from openmimo.progress import Progress
from openmimo.runs import Run, Stage
from openmimo.training.batch import Batch
from openmimo.training.checkpoint import Checkpoints
from openmimo.training.loss import TrainingLoss
from openmimo.training.optim import build_optimizer
from openmimo.training.step import StepResult, train_step
from openmimo.training.weights import save_weights
from openmimo.world import World


@dataclass(frozen=True)
class Step:
    """One step's input and settings; `rope_base` is as in the schedule.

    Attributes:
        batch: the rows of this rank.
        rows: of the whole step, over all ranks.
    """

    stage: str
    batch: Batch
    rows: int
    learning_rate: float
    mtp_weight: float
    rope_base: float

    @property
    def length(self) -> int:
        return self.batch.ids.shape[1]

    @property
    def tokens(self) -> int:
        """Of the whole step."""
        return self.rows * self.length


class Source(Protocol):
    """Where a stage's steps come from. Every rank has one; they differ in the rows they read."""

    total_steps: int

    def step(self, index: int) -> Step:
        """Step `index`; called in order, once each, except after `restore`."""

    def state(self) -> dict[str, Any]:
        """JSON state after the last step, the same on every rank."""

    def restore(self, state: dict[str, Any]) -> None:
        """Continue after that state."""


def train(
    run: Run,
    stage: Stage,
    module: TrainingLoss,
    source: Source,
    optimizer_config: OptimizerConfig,
    compute: ComputeConfig,
    tokens_per_microbatch: int,
    checkpoint_every: int,
) -> bool:
    """Run all steps; the final model goes to `stage.dir/model`.

    Returns:
        False if it was interrupted (a checkpoint is on disk), True if it is finished.

    Raises:
        UserError: a checkpoint cannot be written or read, or another rank did not answer.
    """
    world, model = run.world, module.model
    optimizer = build_optimizer(model.named_parameters(), optimizer_config)
    checkpoints = Checkpoints(
        stage.dir / "checkpoints", world, compute.keep_checkpoints, stage.save_clock
    )
    state = checkpoints.load(model, optimizer)
    first, tokens, skipped = 0, 0, 0
    if state is not None:
        first, tokens, skipped = state["step"], state["tokens"], state["skipped"]
        model.rope_base = state["rope_base"]  # no step sets it if all are done
        source.restore(state["source"])
    model.train()
    with checkpoints, Report(stage, source.total_steps, first, world) as report:
        for index in range(first, source.total_steps):
            began = time.monotonic()
            step = source.step(index)
            model.rope_base = step.rope_base
            result = train_step(
                module,
                optimizer,
                step.batch,
                step.rows,
                step.learning_rate,
                step.mtp_weight,
                optimizer_config.clip,
                tokens_per_microbatch,
                world,
            )
            skipped += not math.isfinite(result.norm)
            tokens += step.tokens
            report.step(index + 1, step, result, tokens, skipped, time.monotonic() - began)
            last = index + 1 == source.total_steps
            stop, failed = world.any(run.interrupt.requested, checkpoints.failed)
            if failed:
                checkpoints.wait()  # raises why
            if last or stop or (index + 1) % checkpoint_every == 0:
                record = {
                    "tokens": tokens,
                    "skipped": skipped,
                    "rope_base": model.rope_base,
                    "source": source.state(),
                }
                checkpoints.save(index + 1, model, optimizer, record)
            if stop and not last:
                return False
    model.eval()
    save_weights(model, stage.dir / "model", world)
    return True


class Report:
    """What rank 0 says about each step, in metrics.jsonl and on the terminal."""

    def __init__(self, stage: Stage, total_steps: int, first: int, world: World) -> None:
        self._speaks = world.main
        self._open = contextlib.ExitStack()
        if self._speaks:
            metrics = MetricsWriter(stage.dir / "metrics.jsonl", resume_step=first)
            self._metrics = self._open.enter_context(metrics)
            self._progress = self._open.enter_context(
                Progress(stage.dir.name, total_steps, start=first)
            )

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.close()

    def step(
        self, number: int, step: Step, result: StepResult, tokens: int, skipped: int, seconds: float
    ) -> None:
        """Step `number`, the first one is 1, took `seconds`."""
        if not self._speaks:
            return
        speed = step.tokens / seconds
        self._metrics.log(
            number,
            tokens=tokens,
            stage=step.stage,
            lr=step.learning_rate,
            loss=result.loss,
            mtp_loss=result.mtp_loss,
            mtp_acceptance=result.mtp_acceptance,
            grad_norm=result.norm,
            skipped=skipped,
            batch_tokens=step.tokens,
            seq_len=step.length,
            rope_base=step.rope_base,
            mtp_weight=step.mtp_weight,
            tokens_per_second=speed,
        )
        shown = result.loss
        if shown is None:
            shown = sum(result.mtp_loss) / len(result.mtp_loss)
        self._progress.step(number, stage=step.stage, loss=shown, tok_s=speed)


def constant_with_warmup(index: int, learning_rate: float, warmup_steps: int) -> float:
    """Learning rate of step `index` (from 0): linear warm-up, then constant."""
    return learning_rate * min(1.0, (index + 1) / (warmup_steps + 1))
