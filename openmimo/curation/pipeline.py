"""The gates in order, each a stage of a run folder: done once, and redone when its settings change.

OUT/stages/<gate>/kept.jsonl, dropped.jsonl     what each gate kept and dropped
OUT/journals/*.jsonl                            golden solutions, a filter's words, rollouts
OUT/problems.parquet                            the result
OUT/funnel.json, funnel.md                      how many are left after each gate, and examples

Problems pass from file to file, one by one, so that memory does not grow with their texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

from openmimo.config.base import config_hash
from openmimo.curation import gates
from openmimo.curation.filters import load_filter
from openmimo.curation.formats import Problem
from openmimo.curation.funnel import write_funnel
from openmimo.curation.golden import check_references
from openmimo.curation.journal import Journal, content_key
from openmimo.curation.keep import Outcomes, keep
from openmimo.curation.parquet import write_parquet
from openmimo.curation.sifted import DROPPED, KEPT, Problems, write_sifted
from openmimo.curation.solver import Sampling, Solver
from openmimo.curation.sources import Source, read_items, read_sources
from openmimo.data.rows import digest, import_parquet
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
    filter: MODULE:FUNCTION, see `gates.Judgement`; None: the rules alone.
    strong, own: the models that solve the problems; None: no rollouts.
    judge: where programs are judged, see `open_judge`; changes no result.
    """

    similarity: float
    ngram: int
    sampling: Sampling
    fields: Mapping[str, str] = field(default_factory=dict)
    filter: str | None = None
    strong: Solver | None = None
    own: Solver | None = None
    judge: str = LOCAL


def curate(sources: list[Source], against: list[Source], settings: Settings, folder: Path) -> Path:
    """Run all gates that are not done; returns the Parquet file.

    Raises:
        UserError: for whatever the gates refuse, and where a gate leaves nothing.
        KeyboardInterrupt: a stop was asked for; the same call goes on from there.
    """
    import_parquet()  # now rather than after hours of rollouts
    sampling = settings.sampling
    with Run(folder) as run:
        chain = _Chain(run, settings.judge)
        read_key = {"sources": [each.key for each in sources], "fields": dict(settings.fields)}
        chain.gate("read", read_key, lambda _: read_sources(sources, settings.fields))
        chain.gate(
            "dedup",
            {"similarity": settings.similarity},
            lambda problems: gates.deduplicate(problems, settings.similarity),
        )
        chain.gate(
            "decontaminate",
            {"against": [each.key for each in against], "ngram": settings.ngram},
            lambda problems: gates.decontaminate(problems, read_items(against), settings.ngram),
        )
        _sift_kinds(chain, settings.filter)
        with Journal(chain.journal("golden"), "reason", "detail") as journal:
            chain.gate(
                "references",
                {"seconds": sampling.test_seconds},
                lambda problems: check_references(
                    problems, sampling.test_seconds, journal, run.interrupt, settings.judge
                ),
            )
        strong = chain.rollouts("strong", settings.strong, sampling)
        own = chain.rollouts("own", settings.own, sampling)
        chain.gate("keep", {}, lambda problems: keep(problems, strong, own))
        write_parquet(run.dir / "problems.parquet", chain.problems)
        write_funnel(run.dir, GATES)
    return run.dir / "problems.parquet"


class _Chain:
    """Gates one after the other. What a gate was made of is its settings and the content of what
    it read, so that a gate which comes to the same again redoes nothing after it.

    problems: what the latest gate kept.
    """

    def __init__(self, run: Run, judge: str) -> None:
        self._run, self._judge = run, judge
        self.problems: Iterable[Problem] = ()
        self._kept = ""  # hash of the last gate's problems
        self._measured: list[str] = []  # the models' names, and hashes of their outcomes

    def journal(self, name: str) -> Path:
        return self._run.dir / "journals" / f"{name}.jsonl"

    def gate(
        self,
        name: str,
        key: Mapping[str, object],
        sift: Callable[[Iterable[Problem]], gates.Sifted],
    ) -> None:
        """Sift what the gate before kept, unless that is done.

        A gate that could not decide on a problem is not done: the next run asks it again.
        """
        self._run.interrupt.check()
        stage = self._run.stage(name, config_hash(dict(key), self._kept, *self._measured))
        if not stage.is_done():
            with closing(sift(self.problems)) as sifted:
                counts = write_sifted(stage.dir, sifted)
            if not counts.kept:
                lost = stage.dir / DROPPED
                raise UserError(
                    f"the gate {name} left no problem of {counts.dropped:,}: see {lost}"
                )
            open_ends = ""
            if counts.undecided:
                open_ends = f", {counts.undecided:,} of them not judged: repeat the command"
            else:
                stage.finish(kept=counts.kept, dropped=counts.dropped)
            print(
                f"curate {name}: {counts.kept:,} kept, {counts.dropped:,} dropped{open_ends}",
                flush=True,
            )
        self.problems = Problems(stage.dir / KEPT)
        self._kept = digest(stage.dir / KEPT)

    def rollouts(
        self, name: str, solver: Solver | None, sampling: Sampling
    ) -> dict[str, Outcomes] | None:
        """How often a model solves each problem; None without a model."""
        if solver is None:
            return None
        from openmimo.curation.rollouts import open_journal, roll_out  # torch takes seconds

        self._run.interrupt.check()
        # The same file for both models, if they are the same.
        path = self.journal(f"rollouts-{solver.fingerprint(sampling)}")
        with open_journal(path) as journal:
            found = roll_out(
                f"rollouts {name}", solver, self.problems, sampling, journal, self._run.interrupt,
                self._judge,
            )  # fmt: skip
        values = {each: asdict(outcomes) for each, outcomes in found.items()}
        self._measured.append(f"{name} {content_key(values)}")
        return found


def _sift_kinds(chain: _Chain, name: str | None) -> None:
    if name is None:
        chain.gate("kinds", {}, lambda problems: gates.sift_kinds(problems, None))
        return
    own = load_filter(name)
    with Journal(chain.journal("filter"), "reason") as journal:
        judgement = own.remembering(journal)
        key = {"filter": own.name, "version": own.version}
        chain.gate("kinds", key, lambda problems: gates.sift_kinds(problems, judgement))
