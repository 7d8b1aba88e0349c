"""Supervised fine-tuning: SFT from Base (report, section 3.1).

Samples are packed to the maximum length, each attends to itself alone, the loss is on responses,
and the MTP layers are tuned too.
"""

from __future__ import annotations

import numpy as np

from openmimo.config.base import config_hash
from openmimo.config.schema import Recipe
from openmimo.data.documents import read_records
from openmimo.model.checkpoint import load_config
from openmimo.runs import Run
from openmimo.tokenizer import Tokenizer
from openmimo.training.batch import Segment, Share
from openmimo.training.loop import train
from openmimo.training.loss import Objective
from openmimo.training.packed_samples import PackedSamples, SampleSource
from openmimo.training.parallel import prepare
from openmimo.training.prefetch import Prefetched
from openmimo.training.weights import empty_model, stored_weights


def chat_segment(tokenizer: Tokenizer, prompt: str, response: str) -> Segment:
    """One sample as tokens: the chat prompt without loss, the response and its end with loss."""
    context = tokenizer.chat_prompt(prompt)
    ids = [*context, *tokenizer.encode(response), tokenizer.eos_id]
    return Segment(np.asarray(ids, dtype=np.int64), loss_from=len(context))


def run(recipe: Recipe, run: Run) -> None:
    """Stage `sft`: from Base and `stages/data/sft.jsonl` to `stages/sft/model`."""
    upstream = [config_hash(recipe.compute), run.require("data"), run.require("mtp_heads")]
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
        name="sft",
    )
    if run.world.main:
        print(
            f"sft: {len(samples)} rows of {config.length} tokens, {samples.padding:.1%} padding; "
            f"{samples.too_long} samples are too long and left out",
            flush=True,
        )
    folder = run.dir / "stages" / "mtp_heads" / "model"
    model = empty_model(load_config(folder))
    objective = Objective(mtp_layers=range(len(model.mtp_layers)))
    weights = stored_weights(folder, model.config)
    source = SampleSource(
        "sft",
        config,
        samples,
        config.mtp_weight,
        model.rope_base,
        tokenizer.doc_end_id,
        Share(run.world.rank, run.world.size),
    )
    module = prepare(model, weights, objective, recipe.compute, run.world)
    with Prefetched(source, recipe.compute.collective_timeout) as ahead:
        finished = train(
            run,
            stage,
            module,
            ahead,
            config.optimizer,
            recipe.compute,
            config.tokens_per_microbatch,
            config.checkpoint_every,
        )
    if finished:
        stage.finish(packing_fill=samples.fill, padding=samples.padding, too_long=samples.too_long)
