"""The plots, as inline SVG whose colours are CSS variables, so that they follow light and dark.

Importing this module needs matplotlib. Every figure is one small panel: on a phone the page shows
one a row, wide enough to read.
"""

import io
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from openmimo.report.level_plot import draw_levels
from openmimo.report.load import Run, Variant
from openmimo.report.summary import (
    RL_METRICS,
    RL_SHARES,
    VARIANTS,
    mtp_layers,
    series,
    split_stages,
)

Points = list[tuple[float, float]]

# matplotlib knows no CSS: it draws in these stand-ins, and to_svg() puts the variables in.
COLOURS = {
    name: f"#0{index:x}01fe"
    for index, name in enumerate(("ink", "soft", "base", "rl_zero", "sft", "rl", "l0", "l1", "l2"))
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name from the data with two $ is not a formula
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.xmargin": 0.02,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.handlelength": 1.2,
    "legend.borderaxespad": 0.2,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), COLOURS["ink"]
    ),
    **dict.fromkeys(
        ("axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), COLOURS["soft"]
    ),
}
PERCENT = PercentFormatter(1.0, decimals=0, symbol=" %")


def draw_plots(run: Run) -> dict[str, str]:
    """SVG elements by name; a plot that the run has no data for is left out."""
    drawings: dict[str, Callable[[Axes], None]] = {}
    if run.results and run.results.variants:
        drawings["pass_at_1"] = partial(_pass_at_1, run=run)
        drawings["pass_at_k"] = partial(_pass_at_k, run=run)
    if run.metrics["pretrain"]:
        drawings["loss"] = partial(_over_tokens, run=run, key="loss", label="loss (nats a token)")
        drawings["mtp_loss"] = partial(
            _over_tokens, run=run, key="mtp_loss", label="MTP loss, layer 0", item=0
        )
        if mtp_layers(run.metrics["pretrain"], "mtp_acceptance"):
            label = "MTP acceptance, layer 0"
            drawings["mtp_acceptance"] = partial(
                _over_tokens, run=run, key="mtp_acceptance", label=label, item=0
            )
        drawings["lr"] = partial(_over_tokens, run=run, key="lr", label="learning rate")
        drawings["length"] = partial(_length, run=run)
    for name, key in (("mtp_heads", "mtp_loss"), ("mtp_heads_acceptance", "mtp_acceptance")):
        if mtp_layers(run.metrics["mtp_heads"], key):
            drawings[name] = partial(_mtp_tuning, run=run, key=key)
    if run.metrics["sft"]:
        drawings["sft"] = partial(_sft, run=run)
    if run.tests:
        drawings["levels"] = partial(_levels, run=run)
    if run.metrics["rl_zero"] or run.metrics["rl"]:
        for key in RL_PANELS:
            drawings[key] = partial(_rl, run=run, key=key)
    if run.results and run.results.mtp:
        drawings["acceptance"] = partial(_acceptance, run=run)
    for name in run.mixture:
        drawings[f"mixture_{name}"] = partial(_mixture, run=run, name=name)
    if run.done:
        drawings["seconds"] = partial(_seconds, run=run)
    with mpl.rc_context(STYLE):
        return {name: to_svg(name, draw) for name, draw in drawings.items()}


def to_svg(name: str, draw: Callable[[Axes], None]) -> str:
    """One panel as an <svg> element without ids that another panel could have too."""
    figure, buffer = Figure(figsize=(4.6, 2.7), layout="constrained"), io.StringIO()
    draw(figure.subplots())
    mpl.rcParams["svg.hashsalt"] = name  # clip paths: the same bytes each time, distinct by panel
    figure.savefig(
        buffer,
        format="svg",
        transparent=True,
        metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
    )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]  # no XML header or DOCTYPE inside HTML
    svg = re.sub(r'<g id="[\w.-]+"', "<g", svg)
    # Its size is its column's; only the aspect ratio of the view box counts.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    for colour, stand_in in COLOURS.items():
        svg = svg.replace(stand_in, f"var(--{colour})")
    return svg


RL_PANELS = (
    "reward_mean", "pass_rate", "pass_rate_math", "pass_rate_code",
    "response_length", "entropy", "easy_pool_share", "easy_pool_size",
)  # fmt: skip


def _rl(ax: Axes, run: Run, key: str) -> None:
    for stage in ("rl_zero", "rl"):
        _curve(ax, series(run.metrics[stage], key), stage, VARIANTS[stage])
    if key in RL_SHARES:
        ax.yaxis.set_major_formatter(PERCENT)
    _axes(ax, "RL step", RL_METRICS[key])


def _over_tokens(ax: Axes, run: Run, key: str, label: str, item: int | None = None) -> None:
    rows = run.metrics["pretrain"]
    points = series(rows, key, item, x="tokens")
    if key == "lr":
        ax.plot(*_xy(points), color=COLOURS["base"])
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_formatter("{x:g}")
    else:
        _curve(ax, points, "base")
    if key == "mtp_acceptance":
        ax.yaxis.set_major_formatter(PERCENT)
    stages = split_stages(rows)
    for index, (name, stage_rows) in enumerate(stages):
        start = stage_rows[0].get("tokens", 0)
        if index:
            ax.axvline(start, color=COLOURS["ink"], linewidth=0.8, linestyle=":")
        ax.text(start, 1.0, f" stage {name}", transform=ax.get_xaxis_transform(), va="bottom")
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    _axes(ax, "tokens", label)


def _length(ax: Axes, run: Run) -> None:
    """Sequence length as steps; each level says its RoPE base, since both change together."""
    rows = run.metrics["pretrain"]
    points = series(rows, "seq_len", x="tokens")
    ax.plot(*_xy(points), color=COLOURS["base"], drawstyle="steps-post")
    bases = dict(series(rows, "rope_base", x="tokens"))
    shown = None
    for index, (tokens, length) in enumerate(points):
        level = f"{length:,.0f} tokens,\nRoPE base {bases.get(tokens, 0):,.0f}"
        if level != shown:
            ax.annotate(
                level,
                (tokens, length),
                (-6, 0) if index else (4, 5),
                textcoords="offset points",
                ha="right" if index else "left",
                va="top" if index else "bottom",
            )
        shown = level
    ax.set_ylim(bottom=0)
    ax.margins(y=0.25)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    _axes(ax, "tokens", "sequence length")


def _mtp_tuning(ax: Axes, run: Run, key: str) -> None:
    rows = run.metrics["mtp_heads"]
    for layer in range(min(mtp_layers(rows, key), 3)):
        _curve(ax, series(rows, key, layer), f"l{layer}", f"layer {layer}")
    if key == "mtp_acceptance":
        ax.yaxis.set_major_formatter(PERCENT)
    _axes(ax, "step", key.replace("_", " ").replace("mtp", "MTP"))


def _sft(ax: Axes, run: Run) -> None:
    rows = run.metrics["sft"]
    _curve(ax, series(rows, "loss"), "sft", "loss")
    for layer in range(min(mtp_layers(rows), 3)):
        _curve(ax, series(rows, "mtp_loss", layer), f"l{layer}", f"MTP {layer}")
    _axes(ax, "step", "loss on responses")


def _pass_at_1(ax: Axes, run: Run) -> None:
    variants = _evaluated(run)
    for row, (name, score) in enumerate(reversed(variants.items())):
        ends = [[score.pass_at_1 - score.low], [score.high - score.pass_at_1]]
        ax.errorbar(
            score.pass_at_1, row, xerr=[[max(0, end[0])] for end in ends], fmt="o",
            color=COLOURS[name], markersize=7, linewidth=2, capsize=4,
        )  # fmt: skip
        ax.annotate(f"{100 * score.pass_at_1:.1f} %", (score.pass_at_1, row), (0, 7), ha="center",
                    textcoords="offset points")  # fmt: skip
    ax.set_yticks(range(len(variants)), [VARIANTS[name] for name in reversed(variants)])
    ax.set_ylim(-0.5, len(variants) - 0.35)
    ax.set_xlim(0, 1)
    ax.grid(visible=False, axis="y")
    ax.xaxis.set_major_formatter(PERCENT)
    ax.set_xlabel("pass@1, held-out problems, 95 % interval")


def _pass_at_k(ax: Axes, run: Run) -> None:
    ks: set[float] = set()
    for name, variant in _evaluated(run).items():
        points: Points = sorted(variant.pass_at_k.items())
        ks.update(k for k, _ in points)
        if points:
            ax.plot(*_xy(points), "o-", color=COLOURS[name], label=VARIANTS[name], markersize=4)
    if ks:
        ax.set_xscale("log", base=2)
        ax.set_xticks(sorted(ks), [str(k) for k in sorted(ks)])
    ax.yaxis.set_major_formatter(PERCENT)
    _axes(ax, "k samples", "pass@k")


def _levels(ax: Axes, run: Run) -> None:
    """Of the problem whose tests differ most in pass rate; the first one of several."""
    tests = max(run.tests, key=lambda each: len(set(each.pass_rates)))
    draw_levels(ax, tests.pass_rates, tests.levels, [COLOURS[name] for name in ("l0", "l1", "l2")])
    ax.yaxis.set_major_formatter(PERCENT)


def _acceptance(ax: Axes, run: Run) -> None:
    assert run.results is not None
    records = {name: run.results.mtp[name] for name in VARIANTS if name in run.results.mtp}
    width, layers = 0.8 / max(len(records), 1), 0
    for index, (name, record) in enumerate(records.items()):
        layers = max(layers, len(record.acceptance))
        places = [layer + (index + 0.5) * width - 0.4 for layer in range(len(record.acceptance))]
        bars = ax.bar(places, record.acceptance, width * 0.6, color=COLOURS[name],
                      label=VARIANTS[name])  # fmt: skip
        ax.bar_label(bars, [f"{100 * value:.0f}" for value in record.acceptance], padding=2)
    ax.set_xticks(range(layers), [f"layer {layer}" for layer in range(layers)])
    ax.set_ylim(0, 1.1)
    ax.grid(visible=False, axis="x")
    ax.yaxis.set_major_formatter(PERCENT)
    _axes(ax, "", "drafts accepted, this layer included")


def _mixture(ax: Axes, run: Run, name: str) -> None:
    mixture = run.mixture[name]
    sources = [*reversed(mixture.target | mixture.realised)]
    shares = [mixture.realised.get(source, 0.0) for source in sources]
    targets = [mixture.target.get(source, 0.0) for source in sources]
    ax.barh(sources, shares, 0.55, color=COLOURS["rl"], label="realised")
    for row, (share, target) in enumerate(zip(shares, targets, strict=True)):
        ax.annotate(f"{100 * share:.0f} %", (max(share, target), row), (5, 0), va="center",
                    textcoords="offset points")  # fmt: skip
    ax.plot(targets, sources, "|", color=COLOURS["ink"], markersize=13, markeredgewidth=1.6,
            label="target")  # fmt: skip
    ax.set_xlim(0, 1)
    ax.grid(visible=False, axis="y")
    ax.xaxis.set_major_formatter(PERCENT)
    _axes(ax, "share of the tokens", "")


def _seconds(ax: Axes, run: Run) -> None:
    stages = [*reversed(run.done)]
    bars = ax.barh(stages, [run.done[stage].seconds for stage in stages], 0.6, color=COLOURS["rl"])
    ax.bar_label(bars, [f"{run.done[stage].seconds:,.0f} s" for stage in stages], padding=4)
    ax.margins(x=0.15)
    ax.grid(visible=False, axis="y")
    _axes(ax, "wall time (s)", "")


def _curve(ax: Axes, points: Points, colour: str, label: str | None = None) -> None:
    """A running mean over the pale raw values; at most 300 points, whatever the run's length."""
    if not points:
        return
    points = _binned(points, 300)
    window = max(1, len(points) // 25)
    smooth = []
    for index, (x, _) in enumerate(points):
        reach = min(window, index)  # symmetric at the start: half a window would bend a steep one
        smooth.append((x, _mean([y for _, y in points[index - reach : index + reach + 1]])))
    ax.plot(*_xy(points), color=COLOURS[colour], linewidth=0.8, alpha=0.35)
    ax.plot(*_xy(smooth), color=COLOURS[colour], linewidth=1.8, label=label)


def _binned(points: Points, most: int) -> Points:
    size = -(-len(points) // most)
    bins = [points[start : start + size] for start in range(0, len(points), size)]
    return [(part[-1][0], _mean([y for _, y in part])) for part in bins]


def _axes(ax: Axes, x: str, y: str) -> None:
    ax.set(xlabel=x, ylabel=y)
    if x.endswith("step"):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4)


def _evaluated(run: Run) -> dict[str, Variant]:
    assert run.results is not None
    return {name: run.results.variants[name] for name in VARIANTS if name in run.results.variants}


def _xy(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
