"""Pre-training: Base in three stages from one table in tokens (report, section 2.3).

It starts from nothing, or goes on from the model of `init_from`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from openmimo.config.base import config_hash
from openmimo.config.schema import Recipe
from openmimo.data.shards import Corpus
from openmimo.model.folder import copy_papers
from openmimo.runs import Run, atomic_write
from openmimo.tokenizer import Tokenizer
from openmimo.training.batch import WHOLE, Share, batch_rows
from openmimo.training.loop import train
from openmimo.training.loss import Objective
from openmimo.training.parallel import prepare
from openmimo.training.prefetch import Prefetched
from openmimo.training.schedule import Point, Schedule
from openmimo.training.source import Step
from openmimo.training.start import check_start, start_digest
from openmimo.training.stream import PackedStream
from openmimo.training.weights import Weights, empty_model, random_weights, stored_weights

PAPERS = "papers"
"""In the stage's folder: licence and notice of the model of `init_from`, for the releases."""


class PretrainSource:
    """Steps of the schedule over the packed stream; keeps what each stage really read.

    Args:
        share: whose rows are read; what is counted covers all of them.
    """

    def __init__(
        self, schedule: Schedule, stream: PackedStream, pad_id: int, share: Share = WHOLE
    ) -> None:
        self._schedule, self._starts = schedule, schedule.starts()
        self._stream, self._pad_id, self._share = stream, pad_id, share
        self.total_steps = len(self._starts)
        self._read: dict[str, dict[str, dict[str, float]]] = {}

    def step(self, index: int) -> Step:
        point = self._schedule.at(self._starts[index])
        self._stream.use(point.mixture)
        before = dict(self._stream.tokens)
        rows = self._stream.rows(point.batch, point.length, self._share)
        self._count(point, before)
        return Step(
            stage=point.stage,
            batch=batch_rows(rows, point.length, self._pad_id),
            rows=point.batch,
            learning_rate=point.learning_rate,
            mtp_weight=point.mtp_weight,
            rope_base=point.rope_base,
            mixture=shares(self._read[point.stage]["read"]),
        )

    def _count(self, point: Point, before: Mapping[str, int]) -> None:
        """Add a step to what its stage wanted to read and has read, in tokens by source."""
        stage = self._read.setdefault(point.stage, {"wanted": {}, "read": {}})
        for source, share in point.mixture.items():
            wanted = share * point.batch * point.length
            stage["wanted"][source] = stage["wanted"].get(source, 0.0) + wanted
            read = self._stream.tokens[source] - before[source]
            stage["read"][source] = stage["read"].get(source, 0) + read

    @property
    def mixture(self) -> dict[str, dict[str, Any]]:
        """For each stage `target` and `realised` shares over all of its rows, `tokens`, and the
        sources `never_read` although they have a share."""
        return {
            name: {
                "target": shares(stage["wanted"]),
                "realised": shares(stage["read"]),
                "tokens": stage["read"],
                "never_read": [s for s, n in stage["wanted"].items() if n and not stage["read"][s]],
            }
            for name, stage in self._read.items()
        }

    def state(self) -> dict[str, Any]:
        return {"stream": self._stream.state(), "read": self._read}

    def restore(self, state: dict[str, Any]) -> None:
        self._stream.restore(state["stream"])
        self._read = state["read"]


def shares(amounts: Mapping[str, float]) -> dict[str, float]:
    """Each amount as a share of their sum."""
    total = sum(amounts.values()) or 1
    return {name: amount / total for name, amount in amounts.items()}


VERIFIED_BYTES = 100 * 10**9
"""Sources up to this size are compared with their fingerprint at every start, at about 1 GB a
second; of larger ones the sizes alone are checked."""


def open_corpus(run: Run, mixtures: Iterable[Mapping[Any, float]], seed: int) -> Corpus:
    """The tokenised sources that any of the mixtures reads, verified by the ranks together.

    Raises:
        UserError: a source is missing or damaged.
    """
    used = {name for mixture in mixtures for name, weight in mixture.items() if weight}
    corpus = Corpus(run.dir / "stages" / "data" / "shards", sorted(used), seed, verify=False)
    mine = list(corpus.readers.values())[run.world.rank :: run.world.size]

    def verify() -> None:
        for reader in mine:
            if reader.bytes <= VERIFIED_BYTES:
                reader.verify()

    run.world.together(verify)
    return corpus


def run(recipe: Recipe, run: Run) -> None:
    """Stage `pretrain`: from the data stage's shards to `stages/pretrain/model`.

    With `init_from` training goes on from that model; without a schedule it is handed on.

    Raises:
        UserError: the data stage is not finished, or `init_from` does not fit the recipe.
    """
    upstream = [config_hash(recipe.compute), run.require("data")]
    if recipe.init_from:
        upstream.append(run.world.from_main(start_digest(recipe) if run.world.main else ""))
    stage = run.stage(
        "pretrain",
        config_hash(recipe.pretrain, config_hash(recipe.model), str(recipe.seed), *upstream),
    )
    if stage.is_done():
        return
    tokenizer = Tokenizer.load(run.dir / "stages" / "data" / "tokenizer")
    model = empty_model(recipe.model)
    mixtures = [row.mixture for row in recipe.pretrain.schedule]
    stream = PackedStream(open_corpus(run, mixtures, recipe.seed))
    share = Share(run.world.rank, run.world.size)
    source = PretrainSource(Schedule(recipe.pretrain.schedule), stream, tokenizer.doc_end_id, share)
    objective = Objective(mtp_layers=range(len(model.mtp_layers)))
    module = prepare(model, first_weights(recipe), objective, recipe.compute, run.world)
    with Prefetched(source, recipe.compute.collective_timeout) as ahead:
        finished = train(
            run,
            stage,
            module,
            ahead,
            recipe.pretrain.optimizer,
            recipe.compute,
            recipe.pretrain.tokens_per_microbatch,
            recipe.pretrain.checkpoint_every,
        )
    if finished:
        parameters = sum(p.numel() for p in model.parameters())
        start = Path(recipe.init_from).resolve().name if recipe.init_from else None
        if run.world.main:
            record = json.dumps({"mixture": source.mixture}, indent=2)
            atomic_write(stage.dir / "mixture.json", record)
            for name, part in source.mixture.items():
                if part["never_read"]:
                    warn_never_read(name, part["never_read"])
            if recipe.init_from:
                (stage.dir / PAPERS).mkdir(exist_ok=True)
                copy_papers(Path(recipe.init_from), stage.dir / PAPERS)
        stage.finish(parameters=parameters, rope_base=model.rope_base, init_from=start)


def warn_never_read(stage: str, sources: Iterable[str]) -> None:
    """Say that a mixture has sources of which not one token was read."""
    print(
        f"warning: {stage} never read {', '.join(sources)}, although the mixture has a share of "
        "it: the stage is too short for such a share",
        flush=True,
    )


def first_weights(recipe: Recipe) -> Weights:
    """What pre-training begins with: random weights, or those of `init_from`.

    Of a folder with more MTP layers the first one is taken; the others are copies for inference,
    and the stage `mtp_heads` makes them anew.

    Raises:
        UserError: `init_from` cannot be read or does not fit the recipe.
    """
    if recipe.init_from is None:
        return random_weights(recipe.model, recipe.seed)
    check_start(recipe)
    return stored_weights(Path(recipe.init_from), recipe.model)
