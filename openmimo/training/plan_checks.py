"""What would stop a planned run, found before anything is launched; and what it would waste.

A fault is a sentence that says what is wrong and what would repair it. A note is about something
that works and costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openmimo.config.schema import Recipe
from openmimo.training.plan import Cluster, StagePlan, fewest_ranks, fits
from openmimo.units import size, tokens

MOST_IDLE = 0.1
"""Share of a stage's GPU time that may be spent waiting; more is a fault."""
MANY_EPOCHS = 4
"""Up to four epochs, repeated text is worth about as much as new (Muennighoff et al. 2023,
arXiv 2305.16264)."""
TOO_MANY_EPOCHS = 40
"""And about there one more repetition is worth nothing (the same paper, Figure 1)."""
SMALL_HEAD_CHUNK = 1024
"""As a remedy; with a smaller one the head's products are slow."""

Change = tuple[str, str, Any]
"""Section, key and value of a setting."""


@dataclass(frozen=True)
class SourceUse:
    """How much of a source a stage reads.

    Attributes:
        wanted: tokens that its mixture asks for.
        stored: tokens of the source's shard, 0 if it cannot be read; None if there is no data.
    """

    stage: str
    source: str
    wanted: int
    stored: int | None

    @property
    def epochs(self) -> float | None:
        """How often the source is read from end to end."""
        return self.wanted / self.stored if self.stored else None


def source_uses(
    recipe: Recipe, plans: Sequence[StagePlan], stored: Mapping[str, int] | None
) -> list[SourceUse]:
    """What each stage reads of each source in its mixtures; `stored` is as in `SourceUse`."""
    uses = []
    for plan in plans:
        wanted: dict[str, float] = {}
        for part in plan.parts:
            for source, share in _mixture(recipe, plan.name, part.row).items():
                if share:
                    wanted[source] = wanted.get(source, 0.0) + share * part.tokens
        for source, count in wanted.items():
            has = None if stored is None else stored.get(source, 0)
            uses.append(SourceUse(plan.name, source, round(count), has))
    return uses


def _mixture(recipe: Recipe, stage: str, row: int | None) -> Mapping[Any, float]:
    if row is not None:
        return recipe.pretrain.schedule[row].mixture
    if stage == "mtp_heads" and not recipe.mtp_heads.generations:
        return recipe.mtp_heads.mixture
    return {}  # SFT reads samples, and MTP layers may learn from the model's own answers


def judge(
    recipe: Recipe, cluster: Cluster, plans: Sequence[StagePlan], uses: Sequence[SourceUse]
) -> tuple[list[str], list[str]]:
    """Faults and notes."""
    faults: list[str] = []
    notes: list[str] = []
    for plan in plans:
        faults += _memory(recipe, cluster, plan)
        faults += _microbatch(plan)
        (faults if plan.idle > MOST_IDLE else notes).extend(_division(plan, cluster.ranks))
        notes += _skipped_rows(recipe, plan)
    for use in uses:
        # The report repeats its synthetic responses very often, and without harm.
        useless = (use.epochs or 0) > TOO_MANY_EPOCHS and use.source != "synthetic"
        (faults if useless else notes).extend(_repeated(use))
    return faults, notes


def _memory(recipe: Recipe, cluster: Cluster, plan: StagePlan) -> Iterator[str]:
    if plan.memory.total > cluster.memory:
        help = remedies(recipe, cluster, plan) or ["shorter rows"]
        yield (
            f"{plan.name} does not fit: a rank needs {size(plan.memory.total)}, and "
            f"{cluster.gpu} has {size(cluster.memory)}. What would do: {'; or '.join(help)}"
        )


def remedies(recipe: Recipe, cluster: Cluster, plan: StagePlan) -> list[str]:
    """What would make a stage fit: each change that is enough alone, else the fewest together."""
    changes = _possible_changes(recipe, plan)

    def enough(some: Sequence[Change]) -> bool:
        return fits(_changed(recipe, some), (plan.name,), cluster)

    found = [_spelled([change]) for change in changes if enough([change])]
    if not found:
        several = (changes[:count] for count in range(2, len(changes) + 1))
        found = [_spelled(some) for some in several if enough(some)][:1]
    ranks = fewest_ranks(recipe, (plan.name,), cluster)
    if ranks:
        found.append(f"{ranks:,} GPUs")
    elif not found and changes:
        ranks = fewest_ranks(_changed(recipe, changes), (plan.name,), cluster)
        found = [f"{ranks:,} GPUs with {_spelled(changes)}"] if ranks else []
    return found


def _possible_changes(recipe: Recipe, plan: StagePlan) -> list[Change]:
    """Settings that save memory, those first that cost least."""
    compute, row = recipe.compute, max(part.length for part in plan.parts)
    changes: list[Change] = []
    if getattr(recipe, plan.name).tokens_per_microbatch > row:
        changes.append((plan.name, "tokens_per_microbatch", row))
    if compute.dtype == "float32":
        changes.append(("compute", "dtype", "bfloat16"))
    if not compute.activation_checkpointing:
        changes.append(("compute", "activation_checkpointing", True))
    if compute.head_chunk > SMALL_HEAD_CHUNK:
        changes.append(("compute", "head_chunk", SMALL_HEAD_CHUNK))
    return changes


def _changed(recipe: Recipe, changes: Sequence[Change]) -> Recipe:
    for section, key, value in changes:
        part = getattr(recipe, section).model_copy(update={key: value})
        recipe = recipe.model_copy(update={section: part})
    return recipe


def _spelled(changes: Sequence[Change]) -> str:
    """As the command line takes them."""
    return " ".join(f"{section}.{key}={str(value).lower()}" for section, key, value in changes)


def _microbatch(plan: StagePlan) -> Iterator[str]:
    for part in plan.parts:
        if part.length > part.tokens_per_microbatch:
            yield (
                f"{plan.name}.tokens_per_microbatch is {part.tokens_per_microbatch:,}, less than a "
                f"sequence of {part.length:,} tokens, which is computed in one piece: set it to "
                f"{part.length} or more"
            )
            return


def _division(plan: StagePlan, ranks: int) -> Iterator[str]:
    """Batches that leave ranks waiting. One that grows passes through every number, and is only
    worth a word where that costs much."""
    steady = [part for part in plan.parts if not part.grows]
    if plan.idle <= MOST_IDLE and not any(part.batch % ranks for part in steady):
        return
    worst = max(plan.parts, key=lambda part: part.idle * part.seconds)
    common = math.gcd(*(part.batch for part in steady or plan.parts))
    divisors = [n for n in range(1, min(common, 2 * ranks) + 1) if common % n == 0]
    better = [max((n for n in divisors if n < ranks), default=1)]
    better += [n for n in divisors if n > ranks][:1]
    yield (
        f"{plan.name}: {worst.batch:,} sequences a step do not divide by {ranks:,} ranks, which "
        f"wait {plan.idle:.1%} of the stage's time: take {' or '.join(map(str, better))}"
    )


def _skipped_rows(recipe: Recipe, plan: StagePlan) -> Iterator[str]:
    if plan.name != "pretrain":
        return
    used = {part.row for part in plan.parts}
    for row in range(len(recipe.pretrain.schedule)):
        if row not in used:
            yield f"pretrain.schedule.{row} ends before a step begins in it: it is never used"


def _repeated(use: SourceUse) -> Iterator[str]:
    if use.epochs and use.epochs > MANY_EPOCHS:
        yield (
            f"{use.stage} reads {use.source!r} {use.epochs:,.1f} times: it has "
            f"{tokens(use.stored or 0)} tokens, the mixture asks for {tokens(use.wanted)}"
        )
