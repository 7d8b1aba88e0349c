"""A plan as tables for a terminal, a pipe or a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Literal

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from openmimo.config.schema import SOURCES, Recipe
from openmimo.training.flops import Flops, parameters
from openmimo.training.plan import Cluster, StagePlan
from openmimo.training.plan_checks import SourceUse
from openmimo.units import duration, size, tokens


def render(
    console: Console,
    recipe: Recipe,
    cluster: Cluster,
    plans: Sequence[StagePlan],
    uses: Sequence[SourceUse],
    faults: Sequence[str],
    notes: Sequence[str],
) -> None:
    """Print everything; faults last, where they are seen."""
    for part in _parts(recipe, cluster, plans, uses):
        console.print(part)
        console.print()
    for sentence in notes:
        console.print(Text(f"- {sentence}"))
    for sentence in faults:
        console.print(Text(f"! {sentence}", style="bold red"))
    if not faults:
        console.print("nothing found that would stop it")


def _parts(
    recipe: Recipe, cluster: Cluster, plans: Sequence[StagePlan], uses: Sequence[SourceUse]
) -> Iterator[RenderableType]:
    count = parameters(recipe.model)
    yield Text(
        f"{recipe.name}: {count.total:,} parameters: embedding {count.embedding:,}, layers "
        f"{count.layers:,}, head {count.head:,}, MTP {count.mtp:,}"
    )
    yield Text(
        f"{cluster.ranks:,} x {cluster.gpu}: {size(cluster.memory)} and "
        f"{cluster.peak / 1e12:,.3g} TFLOPS in {recipe.compute.dtype} each, of which the model "
        f"uses {cluster.mfu:.0%} (MFU)"
    )
    if recipe.pretrain.schedule and any(plan.name == "pretrain" for plan in plans):
        yield _schedule(recipe, next(plan for plan in plans if plan.name == "pretrain"))
    yield _stages(plans, cluster.price is not None)
    yield _flops(plans)
    yield _memory(plans, cluster)
    if any(use.stored is not None for use in uses):
        yield _data(uses)


def _table(title: str, *columns: str, left: int = 1, wrap: Sequence[str] = ()) -> Table:
    """The first `left` columns are words, the others numbers; those in `wrap` may take lines."""
    table = Table(
        title=title, title_justify="left", title_style="bold", caption_justify="left",
        box=box.SIMPLE_HEAD, show_edge=False, padding=0,
    )  # fmt: skip
    for index, column in enumerate(columns):
        justify: Literal["left", "right"] = "left" if index < left else "right"
        wraps = column in wrap
        table.add_column(column, justify=justify, no_wrap=not wraps, min_width=7 if wraps else None)
    return table


def _schedule(recipe: Recipe, plan: StagePlan) -> Table:
    table = _table(
        "Schedule, in tokens",
        "stage", "until", "tokens", "steps", "learning rate", "batch", "length", "RoPE", "MTP",
        "mixture",
        wrap=("learning rate", "batch", "mixture"),
    )  # fmt: skip
    table.caption = f"mixture: % of {', '.join(SOURCES)}; batch: sequences a step"
    parts = {part.row: part for part in plan.parts}
    for index, row in enumerate(recipe.pretrain.schedule):
        part = parts.get(index)
        mixture = {str(name): value for name, value in row.mixture.items()}
        table.add_row(
            row.stage,
            tokens(row.until),
            tokens(part.tokens) if part else "0",
            f"{part.steps:,}" if part else "0",
            _range(*(_short(rate) for rate in row.learning_rate))
            + (" cosine" if row.shape == "cosine" else ""),
            _range(*(f"{batch:,}" for batch in row.batch)),
            f"{row.length:,}",
            tokens(round(row.rope_base)),
            f"{row.mtp_weight:g}",
            " ".join(f"{100 * mixture.get(name, 0):.3g}" for name in SOURCES),
        )
    return table


def _short(rate: float) -> str:
    """1.07e-4 rather than 0.000107."""
    mantissa, exponent = f"{rate:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if rate else "0"


def _range(first: str, last: str) -> str:
    return first if first == last else f"{first} to {last}"


def _stages(plans: Sequence[StagePlan], priced: bool) -> Table:
    columns = ["stage", "tokens", "steps", "FLOPs", "time", "GPU hours", "waiting"]
    table = _table("Time", *columns, *(["cost"] if priced else []))
    for plan in plans:
        table.add_row(
            plan.name,
            tokens(plan.tokens),
            f"{plan.steps:,}",
            f"{plan.flops:.3g}",
            duration(plan.seconds),
            _amount(plan.gpu_hours),
            f"{plan.idle:.1%}",
            *([_amount(plan.cost)] if plan.cost is not None else []),
        )
    return table


def _amount(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _flops(plans: Sequence[StagePlan]) -> Table:
    plans = [plan for plan in plans if plan.tokens]
    table = _table("GFLOPs a token", "part", *(plan.name for plan in plans))
    for name in [field.name for field in fields(Flops)] + ["total"]:
        means = [
            sum(getattr(part.flops, name) * part.tokens for part in plan.parts) / plan.tokens
            for plan in plans
        ]
        table.add_row(name, *(f"{mean / 1e9:,.4g}" for mean in means))
    return table


def _memory(plans: Sequence[StagePlan], cluster: Cluster) -> Table:
    used = [(plan, plan.workload) for plan in plans if plan.workload]
    title = f"Memory of a rank, of {size(cluster.memory)}"
    table = _table(title, "part", *(plan.name for plan, _ in used))
    table.caption = "a row is trained on one GPU: there is no context parallelism"
    names = dict.fromkeys(name for plan, _ in used for name in plan.memory.parts)
    for name in names:
        needs = [plan.memory.parts.get(name, 0) for plan, _ in used]
        if any(needs):
            table.add_row(name, *(size(need) if need else "-" for need in needs))
    table.add_row("total", *(size(plan.memory.total) for plan, _ in used))
    table.add_row("with micro-batches of", *(f"{work.tokens:,} tokens" for _, work in used))
    table.add_row("in rows of", *(f"{work.length:,} tokens" for _, work in used))
    table.add_row("longest row that fits", *(f"{plan.longest:,} tokens" for plan, _ in used))
    return table


def _data(uses: Sequence[SourceUse]) -> Table:
    table = _table("Data", "stage", "source", "tokens read", "tokens there", "times", left=2)
    for use in uses:
        epochs = "-" if use.epochs is None else f"{use.epochs:,.3g}"
        table.add_row(use.stage, use.source, tokens(use.wanted), tokens(use.stored or 0), epochs)
    return table
