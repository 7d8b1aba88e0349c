"""The training loop that pre-training, MTP tuning and SFT share.

A stage says what each step reads (`Source`) and hands over the module to train
(`training.parallel.prepare`); the loop does the rest: steps, metrics, checkpoints, resuming. It
runs on every rank; rank 0 alone writes metrics and reports progress.
"""

from __future__ import annotations

from openmimo.config.schema import ComputeConfig, OptimizerConfig
from openmimo.runs import Run, Stage
from openmimo.training.checkpoint import Checkpoints
from openmimo.training.loss import TrainingLoss
from openmimo.training.optim import build_optimizer
from openmimo.training.source import Source
from openmimo.training.step import train_step
from openmimo.training.step_log import StepLog
from openmimo.training.weights import save_weights


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
        UserError: a checkpoint cannot be written or read, another rank did not answer, a tracker
            is not installed, or no gradient is finite any more.
    """
    world, model = run.world, module.model
    optimizer = build_optimizer(model.named_parameters(), optimizer_config)
    checkpoints = Checkpoints(
        stage.dir / "checkpoints", world, compute.keep_checkpoints, stage.save_clock
    )
    state = checkpoints.load(model, optimizer)
    first = 0
    if state is not None:
        first = state["step"]
        model.rope_base = state["rope_base"]  # no step sets it if all are done
        source.restore(state["source"])
    model.train()
    with checkpoints, StepLog(run, stage, module, compute, source.total_steps, first) as log:
        if state is not None:
            log.restore(state)
        for index in range(first, source.total_steps):
            log.clock.mark("other")
            step = source.step(index)
            log.clock.mark("data")
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
                log.clock,
            )
            last = index + 1 == source.total_steps
            due = last or (index + 1) % checkpoint_every == 0
            log.step(index + 1, step, result, checkpoint=due)
            stop, failed = world.any(run.interrupt.requested, checkpoints.failed)
            if failed:
                checkpoints.wait()  # raises why
            if due or stop:
                record = {
                    **log.state(),
                    "rope_base": model.rope_base,
                    "source": source.state(),
                }
                checkpoints.save(index + 1, model, optimizer, record)
            if stop and not last:
                return False
    model.eval()
    save_weights(model, stage.dir / "model", world)
    return True


def constant_with_warmup(index: int, learning_rate: float, warmup_steps: int) -> float:
    """Learning rate of step `index` (from 0): linear warm-up, then constant."""
    return learning_rate * min(1.0, (index + 1) / (warmup_steps + 1))
