"""Two more MTP layers for inference (report, section 2.3 and Figure 2).

The pre-trained MTP layer is copied; trunk, embedding, head and the first layer are frozen; the
copies learn to predict one and two tokens further from the same hidden state. A fresh first layer
(`mimo import --add-mtp`) is tuned too. They learn from the corpus, as in the report, or from the
model's own answers, which are what the drafts must match.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from openmimo.config.base import config_hash
from openmimo.config.schema import MTPHeadsConfig, Recipe
from openmimo.model.checkpoint import load_model
from openmimo.model.mimo import MiMo
from openmimo.runs import Run
from openmimo.tokenizer import Tokenizer
from openmimo.training.answers import Answers
from openmimo.training.batch import batch_rows
from openmimo.training.loop import Source, Step, constant_with_warmup, train
from openmimo.training.loss import Objective
from openmimo.training.packed_samples import PackedSamples, SampleSource
from openmimo.training.pretrain import open_corpus
from openmimo.training.stream import PackedStream


def with_copied_layers(model: MiMo, layers: int) -> MiMo:
    """A model with `layers` MTP layers, the new ones equal to layer 0; all else is the same."""
    config = model.config.model_copy(update={"num_nextn_predict_layers": layers})
    grown = MiMo(config)
    grown.rope_base = model.rope_base
    weights = model.state_dict()
    prefix = "model.mtp_layers."
    for name, tensor in model.model.mtp_layers[0].state_dict().items():
        for layer in range(1, layers):
            weights[f"{prefix}{layer}.{name}"] = tensor.clone()
    grown.load_state_dict(weights)
    return grown


def freeze_all_but(model: MiMo, layers: range) -> None:
    """Only these MTP layers stay trainable."""
    model.requires_grad_(False)
    for layer in layers:
        model.mtp_layers[layer].requires_grad_(True)


class StreamSource:
    """Constant settings over a packed stream."""

    def __init__(
        self, config: MTPHeadsConfig, stream: PackedStream, rope_base: float, pad_id: int
    ) -> None:
        self._config, self._stream = config, stream
        self._rope_base, self._pad_id = rope_base, pad_id
        self.total_steps = config.steps
        stream.use(config.mixture)

    def step(self, index: int) -> Step:
        config = self._config
        rows = [self._stream.row(config.length) for _ in range(config.batch)]
        return Step(
            stage="mtp_heads",
            batch=batch_rows(rows, config.length, self._pad_id),
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
        self, config: MTPHeadsConfig, answers: PackedSamples, model: MiMo, pad_id: int
    ) -> None:
        super().__init__("mtp_heads", config, answers, 1.0, model.rope_base, pad_id)
        self._model = model
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
        hidden = self._model.hidden(ids, positions)
        if (len(self._kept) + 1) * hidden.nbytes <= KEPT_BYTES:
            self._kept[place] = hidden
        return hidden


def run(recipe: Recipe, run: Run) -> None:
    """Stage `mtp_heads`: the result, `stages/mtp_heads/model`, is Base as it is released.

    With `generations`, `stages/mtp_heads/acceptance.json` says what the training was worth.
    """
    upstream = run.require("pretrain")
    stage = run.stage("mtp_heads", config_hash(recipe.mtp_heads, str(recipe.seed), upstream))
    if stage.is_done():
        return
    config = recipe.mtp_heads
    base = load_model(run.dir / "stages" / "pretrain" / "model", dtype=torch.float32)
    model = with_copied_layers(base, config.layers)
    tuned = range(0 if config.tune_first else 1, config.layers)
    freeze_all_but(model, tuned)
    tokenizer = Tokenizer.load(run.dir / "stages" / "data" / "tokenizer")
    answers = Answers(recipe, run, stage, tokenizer) if config.generations else None
    source: Source
    if answers is None:
        data = run.dir / "stages" / "data"
        stream = PackedStream(open_corpus(data, [config.mixture], recipe.seed))
        source = StreamSource(config, stream, model.rope_base, tokenizer.doc_end_id)
    else:
        if not answers.generate(model):
            return
        answers.measure(model, "before")
        packed = PackedSamples(answers.segments(), config.length, recipe.seed, "mtp_heads")
        source = AnswerSource(config, packed, model, tokenizer.doc_end_id)
    finished = train(
        run,
        stage,
        model,
        source,
        Objective(mtp_layers=tuned, main=False),
        config.optimizer,
        config.tokens_per_microbatch,
        config.checkpoint_every,
    )
    if finished and answers is not None:
        answers.measure(model, "after")
    if finished:
        stage.finish(
            layers=config.layers, tune_first=config.tune_first, generations=config.generations
        )
