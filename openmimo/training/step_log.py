"""What a training stage says about each step; docs/training-metrics.md lists the fields."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Any, Self

import torch

from openmimo.config.schema import ComputeConfig
from openmimo.metrics import MetricsWriter
from openmimo.progress import Progress
from openmimo.runs import Run, Stage
from openmimo.trackers import Trackers
from openmimo.training.loss import TrainingLoss
from openmimo.training.source import Step
from openmimo.training.spikes import SpikeWatch
from openmimo.training.step import StepResult
from openmimo.training.throughput import StepClock, Throughput


class StepLog:
    """A stage's metrics.jsonl, trackers, progress lines and warnings; a context manager.

    Every rank has one and counts; rank 0 alone speaks.

    Attributes:
        clock: the loop marks the parts of a step on it.
    """

    def __init__(
        self,
        run: Run,
        stage: Stage,
        module: TrainingLoss,
        compute: ComputeConfig,
        total_steps: int,
        first: int,
    ) -> None:
        self._name = stage.dir.name
        self._tokens = 0
        self._watch = SpikeWatch()
        self._speaks = run.world.main
        self._open = contextlib.ExitStack()

        def start() -> None:
            enter = self._open.enter_context
            self._metrics = enter(MetricsWriter(stage.dir / "metrics.jsonl", resume_step=first))
            self._trackers = enter(Trackers(compute.trackers, run.dir, stage.dir, first))
            self._progress = enter(Progress(self._name, total_steps, start=first))
            self._throughput = Throughput(
                module.model.config,
                len(module.objective.mtp_layers),
                module.objective.main,
                run.world.device,
                getattr(torch, compute.dtype),
                run.world.size,
            )

        try:
            run.world.together(lambda: start() if self._speaks else None)
        except BaseException:
            self._open.close()
            raise
        self.clock = StepClock(run.world.device)

    def step(self, number: int, step: Step, result: StepResult, checkpoint: bool) -> None:
        """Step `number`, the first one is 1, has ended; a regular checkpoint follows or not.

        Raises:
            UserError: no gradient has been finite for many steps.
        """
        self._tokens += step.tokens
        loss = result.loss
        if loss is None:
            loss = sum(result.mtp_loss) / len(result.mtp_loss)
        unusual = self._watch.observe(number, step.stage, loss, result.norm)
        seconds = self.clock.read()
        if not self._speaks:
            return
        speed = self._throughput.fields(step.batch, step.tokens, result.targets, seconds)
        values: dict[str, Any] = {
            "tokens": self._tokens,
            "stage": step.stage,
            "lr": step.learning_rate,
            "loss": result.loss,
            "mtp_loss": result.mtp_loss,
            "mtp_acceptance": result.mtp_acceptance,
            "grad_norm": result.norm,
            **self._watch.counts(),
            "batch_tokens": step.tokens,
            "seq_len": step.length,
            "rope_base": step.rope_base,
            "mtp_weight": step.mtp_weight,
            **speed,
        }
        if checkpoint and step.mixture:
            values["mixture"] = dict(step.mixture)
        self._metrics.log(number, **values)
        self._trackers.log(number, values)
        for line in unusual:
            print(f"{self._name}: {line}", flush=True)
        shown = {"stage": step.stage, "loss": loss, "tok_s": f"{speed['tokens_per_second']:,.0f}"}
        for name, label in (("mfu", "mfu"), ("peak_share", "peak")):
            if name in speed:
                shown[label] = f"{speed[name]:.0%}"
        self._progress.step(number, **shown)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it; JSON, the same on every rank."""
        return {"tokens": self._tokens, "spikes": self._watch.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on counting where `state` was taken."""
        self._tokens = state["tokens"]
        self._watch.restore(state["spikes"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)
