"""Tests sorted by pass rate and cut into levels, as in the report's Figure 5. Needs matplotlib."""

from collections.abc import Sequence

from matplotlib.axes import Axes


def draw_levels(
    ax: Axes, rates: Sequence[float], levels: Sequence[Sequence[int]], colours: Sequence[str]
) -> None:
    """One bar a test, easiest level first, in the level's colour; a line at each level's mean.

    `rates` are the tests' pass rates in 0..1, `levels` hold their indices, `colours` are taken
    in turn. A level's number stands above its bars.
    """
    start = 0
    for number, level in enumerate(levels):
        heights = sorted((rates[test] for test in level), reverse=True)
        end, colour = start + len(heights), colours[number % len(colours)]
        ax.bar(range(start, end), heights, 0.8, color=colour, alpha=0.65)
        mean = sum(heights) / len(heights)
        ax.plot([start - 0.4, end - 0.6], [mean, mean], color=colour, linewidth=2)
        # Bars of a test that nobody passed have no height: the mark shows that there is one.
        ax.plot(range(start, end), heights, ".", color=colour, markersize=4)
        ax.annotate(
            f"level {number + 1}" if end - start > 2 else f"{number + 1}",
            ((start + end - 1) / 2, heights[0]),
            (0, 5),
            textcoords="offset points",
            ha="center",
        )
        start = end
    ax.set_xlim(-0.8, start - 0.2)
    ax.set_ylim(0, 1.15)
    ax.set_xticks([])
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
    ax.grid(visible=False, axis="x")
    ax.set(xlabel=f"{start} tests, by level and pass rate", ylabel="pass rate")
