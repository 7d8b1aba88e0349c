"""Two more MTP layers for inference (report, section 2.3 and Figure 2).

The pre-trained MTP layer is copied; trunk, embedding, head and the first layer are frozen; the
copies learn to predict one and two tokens further from the same hidden state. A fresh first layer
(`mimo import --add-mtp`) is tuned too. They learn from the corpus, as in the report, or from the
model's own answers, which are what the drafts must match.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openmimo.config.base import config_hash
from openmimo.config.schema import MTPHeadsConfig, Recipe
from openmimo.errors import UserError
from openmimo.model.checkpoint import load_config, load_model
from openmimo.model.layout import MTP
from openmimo.model.mimo import MiMo
from openmimo.runs import Run
from openmimo.tokenizer import Tokenizer
from openmimo.training.answers import Answers
from openmimo.training.batch import WHOLE, Share, batch_rows
from openmimo.training.loop import constant_with_warmup, train
from openmimo.training.loss import Objective, TrainingLoss
from openmimo.training.packed_samples import PackedSamples, SampleSource
from openmimo.training.parallel import prepare
from openmimo.training.prefetch import Prefetched
from openmimo.training.pretrain import open_corpus, warn_never_read
from openmimo.training.source import Source, Step
from openmimo.training.stream import PackedStream
from openmimo.training.weights import Weights, empty_model, fill, stored_weights


def copied_layers(folder: Path, layers: int) -> tuple[MiMo, Weights]:
    """A model with `layers` MTP layers, still empty, and its weights from a model folder: the MTP
    layers are all equal to the folder's first one."""
    config = load_config(folder).model_copy(update={"num_nextn_predict_layers": layers})

    def first(name: str) -> str:
        if not name.startswith(MTP):
            return name
        return f"{MTP}0.{name.removeprefix(MTP).partition('.')[2]}"

    return empty_model(config), stored_weights(folder, config, first)


def freeze_all_but(model: MiMo, layers: range) -> None:
    """Only these MTP layers stay trainable."""
    model.requires_grad_(False)
    for layer in layers:
        model.mtp_layers[layer].requires_grad_(True)


class StreamSource:
    """Constant settings over a packed stream."""

    def __init__(
        self,
        config: MTPHeadsConfig,
        stream: PackedStream,
        rope_base: float,
        pad_id: int,
        share: Share = WHOLE,
    ) -> None:
        self._config, self._stream, self._share = config, stream, share
        self._rope_base, self._pad_id = rope_base, pad_id
        self.total_steps = config.steps
        stream.use(config.mixture)

    def step(self, index: int) -> Step:
        config = self._config
        rows = self._stream.rows(config.batch, config.length, self._share)
        return Step(
            stage="mtp_heads",
            batch=batch_rows(rows, config.length, self._pad_id),
            rows=config.batch,
            learning_rate=constant_with_warmup(index, config.learning_rate, config.warmup_steps),
            mtp_weight=1.0,  # the only loss there is
            rope_base=self._rope_base,
        )

    def state(self) -> dict[str, Any]:
        return self._stream.state()

    def restore(self, state: dict[str, Any]) -> None:
        self._stream.restore(state)


KEPT_BYTES = 2 * 10**9
"""Of the trunk's outputs; rows beyond it are computed again in every epoch."""


class AnswerSource(SampleSource):
    """Constant settings over the model's own answers.

    The trunk is frozen: its output for a row is computed in the first epoch and kept, because it
    takes more than half of a step.
    """

    def __init__(
        self, config: MTPHeadsConfig, answers: PackedSamples, module: TrainingLoss, pad_id: int
    ) -> None:
        super().__init__("mtp_heads", config, answers, 1.0, module.model.rope_base, pad_id)
        self._module = module
        self._kept: dict[int, Tensor] = {}

    def step(self, index: int) -> Step:
        step = super().step(index)
        ids, positions = step.batch.ids, step.batch.positions
        hidden = [
            self._hidden(self.samples.place(number), ids[[row]], positions[[row]])
            for row, number in enumerate(self.numbers(index))
        ]
        return replace(step, batch=replace(step.batch, hidden=torch.cat(hidden)))

    @torch.no_grad()
    def _hidden(self, place: int, ids: Tensor, positions: Tensor) -> Tensor:
        """[1, T, D] of a packed row; alone, so that its bits do not depend on the step."""
        if place in self._kept:
            return self._kept[place]
        hidden = self._module.hidden(ids, positions).cpu()
        if (len(self._kept) + 1) * hidden.nbytes <= KEPT_BYTES:
            self._kept[place] = hidden
        return hidden


def run(recipe: Recipe, run: Run) -> None:
    """Stage `mtp_heads`: the result, `stages/mtp_heads/model`, is Base as it is released.

    With `generations`, `stages/mtp_heads/acceptance.json` says what the training was worth.

    Raises:
        UserError: `generations` on several ranks: only one process answers the prompts.
    """
    upstream = [config_hash(recipe.compute), run.require("pretrain")]
    stage = run.stage("mtp_heads", config_hash(recipe.mtp_heads, str(recipe.seed), *upstream))
    if stage.is_done():
        return
    config = recipe.mtp_heads
    if config.generations and run.world.size > 1:
        raise UserError(
            "mtp_heads.generations needs a single process, without torchrun: set it to 0 to learn "
            "from the corpus on several ranks, as the report does"
        )
    tokenizer = Tokenizer.load(run.dir / "stages" / "data" / "tokenizer")
    answers = Answers(recipe, run, stage, tokenizer) if config.generations else None
    base = run.dir / "stages" / "pretrain" / "model"
    if answers is not None and not answer_prompts(answers, base, config.layers):
        return
    model, weights = copied_layers(base, config.layers)
    tuned = range(0 if config.tune_first else 1, config.layers)
    freeze_all_but(model, tuned)
    objective = Objective(mtp_layers=tuned, main=False)
    module = prepare(model, weights, objective, recipe.compute, run.world)
    reading: AbstractContextManager[Source]
    stream = None
    if answers is None:
        stream = PackedStream(open_corpus(run, [config.mixture], recipe.seed))
        share = Share(run.world.rank, run.world.size)
        source = StreamSource(config, stream, model.rope_base, tokenizer.doc_end_id, share)
        reading = Prefetched(source, recipe.compute.collective_timeout)
    else:
        packed = PackedSamples(answers.segments(), config.length, recipe.seed, "mtp_heads")
        # Not ahead: it runs the trunk, and a module serves one thread at a time.
        reading = nullcontext(AnswerSource(config, packed, module, tokenizer.doc_end_id))
    with reading as steps:
        finished = train(
            run,
            stage,
            module,
            steps,
            config.optimizer,
            recipe.compute,
            config.tokens_per_microbatch,
            config.checkpoint_every,
        )
    if finished and answers is not None:
        answers.measure(load_model(stage.dir / "model"), "after")
    if finished:
        never_read = [] if stream is None else stream.never_read
        if never_read and run.world.main:
            warn_never_read("mtp_heads", never_read)
        stage.finish(
            layers=config.layers,
            tune_first=config.tune_first,
            generations=config.generations,
            never_read=never_read,
        )


def answer_prompts(answers: Answers, base: Path, layers: int) -> bool:
    """Let the model answer, and measure how well its copies draft before they are tuned.

    The engine works on the CPU with a model of its own. False if it was interrupted.
    """
    model, weights = copied_layers(base, layers)
    model.to_empty(device="cpu")
    fill(model, weights)
    if not answers.generate(model):
        return False
    answers.measure(model, "before")
    return True
