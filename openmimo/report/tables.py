"""The tables of the report: the summary's numbers as text, the same for both pages."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from openmimo.report.summary import (
    INCIDENTS,
    RL_COUNTS,
    RL_METRICS,
    RL_SHARES,
    SCHEDULE,
    VARIANTS,
)

Summary = dict[str, Any]


@dataclass(frozen=True)
class Table:
    header: list[str]
    rows: list[list[str]]


def make_tables(summary: Summary) -> dict[str, Table]:
    """Every table that the run has numbers for, by name."""
    tables = {
        "variants": _variants(summary),
        **{by: _scores(summary, by) for by in ("by_domain", "by_tier", "by_family")},
        "training": _training(summary),
        "losses": _losses(summary),
        "rl": _rl(summary),
        "mtp": _mtp(summary),
        "sources": _sources(summary),
        "cleaning": _cleaning(summary),
        "stages": _stages(summary),
    }
    return {name: table for name, table in tables.items() if table.rows}


def percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def number(value: Any, digits: int = 3) -> str:
    """``digits`` significant ones, whole numbers in full, text as it is."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if abs(value) >= 1000 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def decimals(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _variants(summary: Summary) -> Table:
    rows = [
        [
            VARIANTS[name], percent(score["pass_at_1"]),
            f"{100 * score['low']:.1f} to {percent(score['high'])}", number(score["n"]),
            number(score["samples"]), number(score["response_length"]),
            percent(score["truncated"]), number(score["unscorable"]),
        ]
        for name, score in _evaluated(summary)
    ]  # fmt: skip
    header = ["variant", "pass@1", "95 % interval", "problems", "samples each"]
    return Table([*header, "tokens an answer", "cut off", "unscorable"], rows)


def _scores(summary: Summary, by: str) -> Table:
    """One row a group (a domain, tier or family), one column a variant."""
    variants = _evaluated(summary)
    groups = dict.fromkeys(group for _, score in variants for group in score[by])
    rows = []
    for group in groups:
        scores = [score[by].get(group, {}) for _, score in variants]
        problems = max(score.get("n", 0) for score in scores)
        rows.append([group, number(problems), *(percent(s.get("pass_at_1")) for s in scores)])
    names = [VARIANTS[name] for name, _ in variants]
    return Table([by.removeprefix("by_"), "problems", *names], rows)


def _training(summary: Summary) -> Table:
    rows = [
        [
            phase["phase"], number(phase["updates"]), number(phase["tokens_at_end"]),
            *(_ends(phase[key]) for key in SCHEDULE),
        ]
        for phase in summary["training"]
    ]  # fmt: skip
    header = ["phase", "updates", "tokens at end", "length", "RoPE base", "batch (tokens)"]
    return Table([*header, "learning rate", "MTP weight"], rows)


def _losses(summary: Summary) -> Table:
    """Means over the first and the last ten updates of a phase."""
    rows = [
        [
            phase["phase"],
            _ends(phase["loss"], decimals),
            ", ".join(decimals(loss) for loss in phase["mtp_loss"]) or "–",
            ", ".join(percent(share) for share in phase["mtp_acceptance"]) or "–",
            number(phase["tokens_per_second"]),
            percent(phase["peak_share"]),
            ", ".join(number(phase[key]) for key in INCIDENTS),
        ]
        for phase in summary["training"]
    ]
    header = ["phase", "loss", "MTP loss at the end, by layer", "MTP acceptance at the end"]
    return Table([*header, "tokens/s", "of the peak", "spikes of loss, norm; skipped"], rows)


def _rl(summary: Summary) -> Table:
    """First to last ten steps of each RL run."""
    runs = {name: ends for name, ends in summary["rl"].items() if ends}
    if not runs:
        return Table([], [])
    rows = [["steps", *(number(ends["steps"]) for ends in runs.values())]]
    for key, label in RL_METRICS.items():
        show = percent if key in RL_SHARES else number
        rows.append([label, *(_ends(ends[key], show) for ends in runs.values())])
    for key in RL_COUNTS:
        rows.append([key.replace("_", " "), *(number(ends[key]) for ends in runs.values())])
    return Table(["first → last ten steps", *(VARIANTS[name] for name in runs)], rows)


def _mtp(summary: Summary) -> Table:
    rows = [
        [
            VARIANTS.get(name, name),
            ", ".join(percent(share) for share in record["acceptance"]),
            ", ".join(percent(share) for share in record["conditional"]) or "–",
            number(record["tokens_per_forward"]),
            number(record["prompts"]),
            f"{number(record['plain_seconds'])} s, {number(record['speculative_seconds'])} s",
            "yes" if record["identical"] else "NO",
        ]
        for name, record in summary["mtp"].items()
    ]
    header = ["variant", "accepted up to layer 0, 1, 2", "given the layer before"]
    header += ["tokens a forward pass", "prompts", "plain, speculative", "same greedy output"]
    return Table(header, rows)


def _sources(summary: Summary) -> Table:
    data = summary["data"] or {"sources": {}}
    mixtures = summary["mixture"]
    rows = []
    for source, size in data["sources"].items():
        shares = [
            f"{percent(mix['realised'].get(source), 1)} ({percent(mix['target'].get(source), 0)})"
            for mix in mixtures.values()
        ]
        sizes = [number(size[key]) for key in ("documents", "tokens", "characters")]
        rows.append([source, *sizes, *shares])
    columns = [f"{name}: realised (target)" for name in mixtures]
    return Table(["source", "documents", "tokens", "characters", *columns], rows)


def _cleaning(summary: Summary) -> Table:
    """Counts of deduplication, decontamination and domains, as the data stage names them."""
    data = summary["data"] or {}
    rows = [
        [step.replace("_", " "), key.replace("_", " "), number(value)]
        for step in ("dedup", "decontamination", "domains")
        for key, value in data.get(step, {}).items()
        if isinstance(value, int | float | str)
    ]
    return Table(["step", "what", "count"], rows)


def _stages(summary: Summary) -> Table:
    rows = [
        [name, number(stage["seconds"]), number(stage["peak_memory_gb"])]
        for name, stage in summary["stages"].items()
    ]
    if rows:
        rows.append(["all", number(summary["seconds"]), number(summary["peak_memory_gb"])])
    return Table(["stage", "wall time (s)", "peak memory so far (GB)"], rows)


def _evaluated(summary: Summary) -> list[tuple[str, dict[str, Any]]]:
    return [(name, score) for name, score in summary["variants"].items() if score]


def _ends(pair: list[float | None], show: Callable[[float | None], str] = number) -> str:
    first, last = map(show, pair)
    return first if first == last else f"{first} → {last}"
