"""The gates in order, each a stage of a run folder: done once, and redone when its settings change.

OUT/stages/<gate>/kept.jsonl, dropped.jsonl     what each gate kept and dropped
OUT/stages/rollouts_<model>/samples.jsonl       every answer, as it was judged
OUT/problems.parquet                            the result
OUT/funnel.json, funnel.md                      how many are left after each gate, and examples
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from openmimo.config.base import config_hash
from openmimo.curation import gates
from openmimo.curation.formats import Problem
from openmimo.curation.funnel import write_funnel
from openmimo.curation.golden import check_references
from openmimo.curation.keep import Outcomes, Sampling, keep
from openmimo.curation.parquet import write_parquet
from openmimo.curation.rows import digest, import_parquet
from openmimo.curation.sources import Source, read_items, read_sources
from openmimo.data.documents import read_records, write_records
from openmimo.errors import UserError
from openmimo.judge.connect import LOCAL
from openmimo.runs import Run

GATES = ("read", "dedup", "decontaminate", "kinds", "references", "keep")
"""In order; rollouts, if any, come before the last one."""


@dataclass(frozen=True)
class Settings:
    """What decides which problems stay.

    fields: our names -> a file's, for sources of the format `problems`.
    similarity: Jaccard similarity of 5-grams from which two problems are duplicates.
    ngram: words that a problem and an evaluation item must share.
    judgement: MODULE:FUNCTION, see `gates.Judgement`; None: the rules alone.
    strong, own: folders of the models that solve the problems; None: no rollouts.
    judge: where programs are judged, see `open_judge`; changes no result.
    """

    similarity: float
    ngram: int
    sampling: Sampling
    fields: Mapping[str, str] = field(default_factory=dict)
    judgement: str | None = None
    strong: Path | None = None
    own: Path | None = None
    judge: str = LOCAL


def curate(sources: list[Source], against: list[Source], settings: Settings, folder: Path) -> Path:
    """Run all gates that are not done; returns the Parquet file.

    Raises:
        UserError: for whatever the gates refuse, and where a gate leaves nothing.
        KeyboardInterrupt: a stop was asked for; the same call goes on from there.
    """
    import_parquet()  # now rather than after hours of rollouts
    judgement = load_judgement(settings.judgement)
    sampling = settings.sampling
    with Run(folder) as run:
        chain = _Chain(run, settings.judge)
        read_key = {"sources": [each.key for each in sources], "fields": dict(settings.fields)}
        problems = chain.gate("read", read_key, lambda _: read_sources(sources, settings.fields))
        problems = chain.gate(
            "dedup",
            {"similarity": settings.similarity},
            lambda problems: gates.deduplicate(problems, settings.similarity),
        )
        items_key = {"against": [each.key for each in against], "ngram": settings.ngram}
        problems = chain.gate(
            "decontaminate",
            items_key,
            lambda problems: gates.decontaminate(problems, read_items(against), settings.ngram),
        )
        problems = chain.gate(
            "kinds",
            {"judgement": settings.judgement},
            lambda problems: gates.sift_kinds(problems, judgement),
        )
        problems = chain.gate(
            "references",
            {"seconds": sampling.test_seconds},
            lambda problems: check_references(
                problems, sampling.test_seconds, run.interrupt, settings.judge
            ),
        )
        strong = chain.rollouts("strong", settings.strong, problems, sampling)
        own = chain.rollouts("own", settings.own, problems, sampling)
        problems = chain.gate("keep", {}, lambda problems: keep(problems, strong, own))
        write_parquet(run.dir / "problems.parquet", problems)
        write_funnel(run.dir, GATES)
    return run.dir / "problems.parquet"


class _Chain:
    """Gates one after the other. What a gate was made of is its settings and the content of what
    it read, so that a gate which comes to the same again redoes nothing after it."""

    def __init__(self, run: Run, judge: str) -> None:
        self._run, self._judge = run, judge
        self._problems: list[Problem] = []
        self._kept = ""  # hash of the last gate's problems
        self._measured: list[str] = []  # the models' names, and hashes of their outcomes

    def gate(
        self, name: str, key: Mapping[str, object], sift: Callable[[list[Problem]], gates.Sifted]
    ) -> list[Problem]:
        """What the gate keeps of what the one before kept; read back if it is done."""
        self._run.interrupt.check()
        stage = self._run.stage(name, config_hash(dict(key), self._kept, *self._measured))
        file = stage.dir / "kept.jsonl"
        if not stage.is_done():
            kept, dropped = sift(self._problems)
            write_records(stage.dir / "dropped.jsonl", (drop.record() for drop in dropped))
            write_records(file, kept)
            if not kept:
                lost = stage.dir / "dropped.jsonl"
                raise UserError(f"the gate {name} left no problem of {len(dropped):,}: see {lost}")
            stage.finish(kept=len(kept), dropped=len(dropped))
            print(f"curate {name}: {len(kept):,} kept, {len(dropped):,} dropped", flush=True)
        self._problems, self._kept = [record for _, record in read_records(file)], digest(file)
        return self._problems

    def rollouts(
        self, name: str, folder: Path | None, problems: list[Problem], sampling: Sampling
    ) -> dict[str, Outcomes] | None:
        """How often a model solves each problem; None without a model."""
        if folder is None:
            return None
        if not folder.is_dir():
            raise UserError(f"no model folder {folder}")
        self._run.interrupt.check()
        model = {path.name: digest(path) for path in sorted(folder.iterdir()) if path.is_file()}
        key = {"model": model, **asdict(sampling)}
        stage = self._run.stage(f"rollouts_{name}", config_hash(key, self._kept))
        file = stage.dir / "outcomes.jsonl"
        if not stage.is_done():
            from openmimo.curation.rollouts import roll_out  # torch takes seconds to import

            samples = stage.dir / "samples.jsonl"
            interrupt = self._run.interrupt
            found = roll_out(
                f"rollouts {name}", folder, problems, sampling, samples, interrupt, self._judge
            )
            write_records(file, ({"id": each} | asdict(found[each]) for each in found))
            stage.finish(answers=sum(each.answers for each in found.values()))
        self._measured.append(f"{name} {digest(file)}")
        return {
            record["id"]: Outcomes(record["answers"], record["right"], tuple(record["tests"]))
            for _, record in read_records(file, "id")
        }


def load_judgement(name: str | None) -> gates.Judgement | None:
    """The function that MODULE:FUNCTION names. Raises UserError if there is none."""
    if name is None:
        return None
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"no filter {name!r} ({error}): write MODULE:FUNCTION") from error
    if not callable(found):
        raise UserError(f"the filter {name} is no function")
    judgement: gates.Judgement = found
    return judgement
