"""Supervised fine-tuning: SFT from Base (report, section 3.1).

Samples are packed to the maximum length, each attends to itself alone, the loss is on responses,
and the MTP layers are tuned too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from openmimo.config.base import config_hash
from openmimo.config.schema import Recipe, SFTConfig
from openmimo.data.documents import read_records
from openmimo.data.shards import epoch_order
from openmimo.errors import UserError
from openmimo.model.checkpoint import load_model
from openmimo.runs import Run
from openmimo.tokenizer import Tokenizer
from openmimo.training.batch import Segment, batch_rows, pack
from openmimo.training.loop import Objective, Step, constant_with_warmup, train


def chat_segment(tokenizer: Tokenizer, prompt: str, response: str) -> Segment:
    """One sample as tokens: the chat prompt without loss, the response and its end with loss."""
    context = tokenizer.chat_prompt(prompt)
    ids = [*context, *tokenizer.encode(response), tokenizer.eos_id]
    return Segment(np.asarray(ids, dtype=np.int64), loss_from=len(context))


class PackedSamples:
    """Endless rows of whole samples, a pure function of (seed, row number).

    The samples are packed once into rows of `length` tokens; every epoch reads the rows in an order
    of its own. Samples that are longer than a row are left out and counted in `too_long`.
    """

    def __init__(self, samples: Sequence[Segment], length: int, seed: int) -> None:
        self._samples = [sample for sample in samples if len(sample.ids) <= length]
        self.too_long = len(samples) - len(self._samples)
        if not self._samples:
            raise UserError(f"no SFT sample fits sft.length = {length} tokens")
        self._length, self._seed = length, seed
        self._rows = pack([len(sample.ids) for sample in self._samples], length)

    @property
    def fill(self) -> float:
        """Share of the rows' tokens that is not padding."""
        used = sum(len(sample.ids) for sample in self._samples)
        return used / (len(self._rows) * self._length)

    def row(self, number: int) -> list[Segment]:
        """Row `number`, counted on over epochs."""
        epoch, place = divmod(number, len(self._rows))
        order = epoch_order(len(self._rows), self._seed, "sft", epoch)
        return [self._samples[index] for index in self._rows[order[place]]]


class SFTSource:
    """Constant settings over the packed samples."""

    def __init__(
        self, config: SFTConfig, samples: PackedSamples, rope_base: float, pad_id: int
    ) -> None:
        self._config, self._samples = config, samples
        self._rope_base, self._pad_id = rope_base, pad_id
        self.total_steps = config.steps

    def step(self, index: int) -> Step:
        config = self._config
        numbers = range(index * config.batch, (index + 1) * config.batch)
        rows = [self._samples.row(number) for number in numbers]
        return Step(
            stage="sft",
            batch=batch_rows(rows, config.length, self._pad_id),
            learning_rate=constant_with_warmup(index, config.learning_rate, config.warmup_steps),
            mtp_weight=config.mtp_weight,
            rope_base=self._rope_base,
        )

    def state(self) -> dict[str, Any]:
        return {}  # the step's index says it all

    def restore(self, state: dict[str, Any]) -> None:
        return


def run(recipe: Recipe, run: Run) -> None:
    """Stage `sft`: from Base and `stages/data/sft.jsonl` to `stages/sft/model`."""
    upstream = [run.require("data"), run.require("mtp_heads")]
    stage = run.stage("sft", config_hash(recipe.sft, str(recipe.seed), *upstream))
    if stage.is_done():
        return
    config = recipe.sft
    data = run.dir / "stages" / "data"
    tokenizer = Tokenizer.load(data / "tokenizer")
    samples = PackedSamples(
        [
            chat_segment(tokenizer, record["prompt"], record["response"])
            for _, record in read_records(data / "sft.jsonl", "prompt", "response")
        ],
        config.length,
        recipe.seed,
    )
    model = load_model(run.dir / "stages" / "mtp_heads" / "model", dtype=torch.float32)
    finished = train(
        run,
        stage,
        model,
        SFTSource(config, samples, model.rope_base, tokenizer.doc_end_id),
        Objective(mtp_layers=range(len(model.mtp_layers))),
        config.optimizer,
        config.tokens_per_microbatch,
        config.checkpoint_every,
    )
    if finished:
        stage.finish(packing_fill=samples.fill, too_long=samples.too_long)
