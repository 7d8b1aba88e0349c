"""The verb plan: what a recipe takes on a cluster, and what would stop it, before it is launched.

torch is not imported: the answer comes at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmimo.errors import UserError

if TYPE_CHECKING:
    from openmimo.config.schema import Recipe
    from openmimo.training.plan import Cluster, StagePlan
    from openmimo.training.plan_checks import SourceUse


def add_plan_verb(verbs: Any, epilog: str) -> None:
    """Add the verb to argparse's subparsers."""
    text = "say what a recipe takes on a cluster, and what would stop it, before it is launched"
    verb = verbs.add_parser("plan", help=text, description=text, epilog=epilog)
    add = verb.add_argument
    add("recipe", metavar="RECIPE", help="a preset or a TOML file")
    add("--smoke", action="store_true", help="the preset's small twin")
    add("--out", metavar="RUN", type=Path, help="with the data of this run (default: runs/RECIPE)")
    add("--stage", choices=("pretrain", "mtp_heads", "sft"), help="this one alone (default: all)")
    add("--gpu", default="H100", help="of docs/plan.md, or cpu: this machine (default: H100)")
    add("--peak", metavar="TFLOPS", type=above_zero, help="of another GPU, dense, in compute.dtype")
    add("--memory", metavar="GB", type=above_zero, help="of another GPU")
    add(
        "--gpus",
        metavar="N",
        type=at_least_one,
        help="(default: the fewest that suffice, 1, 2, 4, ...)",
    )
    add(
        "--ranks",
        metavar="N",
        type=at_least_one,
        help="processes, each with a GPU (default: all GPUs)",
    )
    add("--mfu", type=share, default=0.4, help="share of the peak that is reached (default: 0.4)")
    add("--price", metavar="AMOUNT", type=price, help="of a GPU for an hour")
    text = "mean length of the documents in a row (default: one fills it)"
    add("--document", metavar="TOKENS", type=above_zero, help=text)
    add("--json", metavar="FILE", help="write it as JSON; - is standard output")
    verb.set_defaults(seed=None)


def plan(options: argparse.Namespace, folder: Path, recipe: Recipe) -> None:
    """`mimo plan RECIPE`: everything that can be said, then the reason if it would not run.

    Raises:
        UserError: an option makes no sense, or a check failed.
    """
    from openmimo.training.plan import STAGES, plan_stage
    from openmimo.training.plan_checks import judge, source_uses

    stages = (options.stage,) if options.stage else STAGES
    cluster = make_cluster(options, recipe, stages)
    plans = [plan_stage(recipe, name, cluster, options.document) for name in stages]
    uses = source_uses(recipe, plans, None)
    stored, faults, notes = read_stored(folder, {use.source for use in uses}, bool(options.out))
    uses = source_uses(recipe, plans, stored)
    if options.gpus is not None and cluster.ranks > options.gpus:
        faults.append(f"{cluster.ranks:,} ranks need as many GPUs, and there are {options.gpus:,}")
    judged = judge(recipe, cluster, plans, uses)
    faults, notes = faults + judged[0], notes + judged[1]
    if options.json:
        record = as_record(recipe, cluster, plans, uses, faults, notes)
        write_json(options.json, record)
    if options.json != "-":
        from rich.console import Console

        from openmimo.training.plan_text import render

        render(Console(highlight=False), recipe, cluster, plans, uses, faults, notes)
    if faults:
        many = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise UserError(f"this would not run as planned: {faults[0]}{many}")


def make_cluster(options: argparse.Namespace, recipe: Recipe, stages: Sequence[str]) -> Cluster:
    """The hardware that the options describe.

    Raises:
        UserError: an unknown GPU, without its peak and memory.
    """
    from openmimo.training.gpus import find_gpu
    from openmimo.training.plan import Cluster, fewest_ranks

    name, memory, peak = options.gpu, options.memory, options.peak
    if name.lower() == "cpu":
        memory = this_memory() if memory is None else memory
        peak = this_peak(recipe.compute.dtype) if peak is None else peak
    elif memory is None or peak is None:
        gpu = find_gpu(name)
        name = gpu.name
        memory = gpu.memory / 1e9 if memory is None else memory
        peak = gpu.peak(recipe.compute.dtype) / 1e12 if peak is None else peak
    name = name.lower() if name.lower() == "cpu" else name
    cluster = Cluster(name, 1, memory * 1e9, peak * 1e12, options.mfu, options.price)
    ranks = options.ranks or options.gpus or fewest_ranks(recipe, stages, cluster) or 1
    return dataclasses.replace(cluster, ranks=ranks)


def this_memory() -> float:
    """Of this machine, in GB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def this_peak(dtype: str) -> float:
    """What this machine reaches in matrix products, in TFLOPS; measured, which imports torch."""
    import torch

    from openmimo.training.throughput import matmul_peak

    return matmul_peak(torch.device("cpu"), getattr(torch, dtype)) / 1e12


def read_stored(
    run: Path, sources: Iterable[str], asked_for: bool
) -> tuple[dict[str, int] | None, list[str], list[str]]:
    """What the data stage of a run has made.

    Args:
        run: its folder.
        sources: that are read.
        asked_for: whether the user named the run, and so expects data there.

    Returns:
        tokens by source, 0 where one cannot be read, or None without data; faults; notes.
    """
    data = run / "stages" / "data"
    if not (data / "shards").is_dir():
        missing = f"no data in {data}: make it with `mimo data`"
        return None, [missing] if asked_for else [], [] if asked_for else [missing]
    from openmimo.data.shards import ShardReader

    stored, faults = {}, []
    for source in sorted(sources):
        try:
            reader = ShardReader(data / "shards", source, seed=0, verify=False)
            stored[source] = reader.meta.tokens
        except UserError as error:
            stored[source] = 0
            faults.append(str(error))
    return stored, faults, []


def write_json(target: str, record: dict[str, Any]) -> None:
    """Write to a file; `-` is standard output."""
    text = json.dumps(record, indent=2) + "\n"
    if target == "-":
        print(text, end="")
        return
    try:
        Path(target).write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {target}: {error}") from error


def as_record(
    recipe: Recipe,
    cluster: Cluster,
    plans: Sequence[StagePlan],
    uses: Sequence[SourceUse],
    faults: Sequence[str],
    notes: Sequence[str],
) -> dict[str, Any]:
    """The plan in plain values. Units: bytes, seconds, operations, tokens."""
    from openmimo.training.flops import parameters

    size = parameters(recipe.model)
    stages = {}
    for each in plans:
        stages[each.name] = dataclasses.asdict(each)
        stages[each.name]["memory"] = each.memory.parts | {"total": each.memory.total}
        for part, values in zip(each.parts, stages[each.name]["parts"], strict=True):
            values["flops_per_token"] = values.pop("flops") | {"total": part.flops.total}
    return {
        "recipe": recipe.name,
        "parameters": dataclasses.asdict(size) | {"total": size.total},
        "cluster": dataclasses.asdict(cluster),
        "schedule": [row.model_dump(mode="json") for row in recipe.pretrain.schedule],
        "stages": stages,
        "sources": [dataclasses.asdict(use) | {"epochs": use.epochs} for use in uses],
        "faults": list(faults),
        "notes": list(notes),
    }


def at_least_one(text: str) -> int:
    """A count."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(_within(text, 1, 1e6))


def above_zero(text: str) -> float:
    """An amount."""
    return _within(text, 1e-6, 1e12)


def price(text: str) -> float:
    """An amount, perhaps nothing."""
    return _within(text, 0, 1e9)


def share(text: str) -> float:
    """A share of a whole."""
    return _within(text, 1e-6, 1)


def _within(text: str, least: float, most: float) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not least <= number <= most:  # nan neither
        raise argparse.ArgumentTypeError(f"{text} is not from {least:g} to {most:g}")
    return number
