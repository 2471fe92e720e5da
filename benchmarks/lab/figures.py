"""The pictures of scale-out: the paper's Figure 3, and ours beside it."""

from __future__ import annotations

import pathlib
from typing import Any

from .points import PAPER, Point, Series

_COLOURS = {1e9: "tab:blue", 10e9: "tab:orange"}
_OTHERS = ("tab:green", "tab:red", "tab:purple")


def draw(points: list[Point], path: pathlib.Path) -> None:
    """Speed-up against hosts as a PNG: weak scaling on the left, strong scaling on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    kinds = sorted({point.series.scaling for point in points}, reverse=True)
    size = (5.2 * len(kinds), 4.6)
    figure, panels = plt.subplots(1, len(kinds), figsize=size, squeeze=False, layout="constrained")
    for axes, kind in zip(panels[0], kinds, strict=True):
        _panel(axes, kind, [point for point in points if point.series.scaling == kind])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panel(axes: Any, kind: str, points: list[Point]) -> None:
    most = max(point.hosts for point in points)
    axes.plot([1, most], [1, most], color="0.6", linewidth=1, linestyle=":", label="linear")
    rates = sorted({point.series.rate for point in points})
    others = iter(_OTHERS)
    colours = {rate: _COLOURS.get(rate) or next(others) for rate in rates}
    for series in sorted({point.series for point in points}):
        _line(axes, series, colours[series.rate], points)
    if kind == "weak":
        axes.plot(*zip(*PAPER.items(), strict=True), "k*", markersize=9, label="the paper")
    rows = {point.batch // point.hosts if kind == "weak" else point.batch for point in points}
    of = "a batch of {} on each host" if kind == "weak" else "a batch of {} in all"
    axes.set_title(f"{kind} scaling: {of.format(' or '.join(map(str, sorted(rows))))}", fontsize=10)
    axes.set(xlabel="hosts", ylabel="speed-up in images per second")
    axes.set(xticks=sorted({1} | {point.hosts for point in points}), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9, loc="upper left")


def _line(axes: Any, series: Series, colour: str, points: list[Point]) -> None:
    places = sorted((p.hosts, p.speedup) for p in points if p.series == series)
    overlap = "overlap" if series.overlap else "no overlap"
    axes.plot(
        *zip(*places, strict=True),
        color=colour,
        marker="o" if series.overlap else "s",
        markersize=5 if series.overlap else 4,
        linestyle="-" if series.overlap else "--",
        label=f"{series.rate / 1e9:g} Gbit/s, {overlap}",
    )
