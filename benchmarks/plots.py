"""The plots of a record as SVG: time and memory against N, and accuracy."""

from __future__ import annotations

import io
import math
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from targets import grid_cells

# Okabe and Ito's colors: told apart by color-blind readers too.
COLORS = {
    "fastmmd": "#D55E00",
    "eager": "#0072B2",
    "torch.compile": "#009E73",
    "KeOps": "#CC79A7",
    "GeomLoss": "#7A7A7A",
}
STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.7,
    "svg.hashsalt": "fastmmd",  # the same record gives the same file
}
SMALLEST = 0.1  # MB: below, pages of 4 kB and the allocator's habits are all there is


def draw(record: dict[str, Any]) -> dict[str, str]:
    """ "time", "memory", "accuracy", "grid" -> SVG, those that the record has."""
    figures = {}
    with plt.rc_context(STYLE):
        if record["against_n"]:
            figures = {
                "time": _against_n(record, "seconds", "time of one call, seconds"),
                "memory": _against_n(record, "megabytes", "growth of the process, MB"),
                "accuracy": _accuracy(record),
            }
        if cells := grid_cells(record):
            figures["grid"] = _grid({at: ratio for at, ratio in cells.items() if at[0] == 1})
    return figures


def _against_n(record: dict[str, Any], key: str, label: str) -> str:
    figure, axes = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    ends = []
    names = list(dict.fromkeys(row["implementation"] for row in record["against_n"]))
    for name in names:
        rows = [row for row in record["against_n"] if row["implementation"] == name]
        alive = [row for row in rows if "died" not in row]
        if not alive:
            continue  # the table has it
        points = [(row["n"], max(row[key], SMALLEST if key == "megabytes" else 0)) for row in alive]
        thick = 2.8 if name == "fastmmd" else 1.8
        axes.plot(*zip(*points, strict=True), "o-", color=COLORS[name], linewidth=thick, markersize=4.5)
        text = name
        if len(alive) < len(rows):
            dead = rows[-1]
            where = (dead["n"], _extrapolated(points, dead["n"], least=2.0 if key == "seconds" else 1.0))
            axes.plot(*zip(points[-1], where, strict=True), ":", color=COLORS[name], linewidth=1.5)
            axes.plot(*where, "X", color=COLORS[name], markersize=10, markeredgecolor="white")
            text, points = f"{name} ✕ {dead['died']}", [*points, where]
        ends.append((*points[-1], text, COLORS[name]))
    _log_log(axes, [row["n"] for row in record["against_n"]], "N = M", label)
    _label_ends(axes, ends)
    axes.set_title("mmd2 with its gradient, D = 6, six bandwidths", loc="left", fontsize=11.5)
    return _svg(figure)


def _extrapolated(points: list[tuple[float, float]], n: float, least: float) -> float:
    """Along the last two points in logarithms; costs grow with N at least, and with its square at most."""
    (n0, first), (n1, last) = points[-2:] if len(points) > 1 else ((1.0, points[0][1] / points[0][0] ** 2), points[0])
    slope = math.log(last / first) / math.log(n1 / n0)
    return last * (n / n1) ** min(max(slope, least), 2.0)


def _log_log(axes: Axes, sizes: list[int], x: str, y: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted(set(sizes))
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axes.minorticks_off()
    axes.grid(True)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _label_ends(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Names in a column beside the axes, at the height of the last points, moved apart where they would overlap."""
    bottom, top = (math.log(limit) for limit in axes.get_ylim())
    above = 1.2
    for _, y, text, color in sorted(ends, key=lambda end: -end[1]):
        height = min((math.log(y) - bottom) / (top - bottom), above - 0.065)
        above = height
        axes.annotate(
            text, (1.02, height), xycoords="axes fraction", va="center", color=color, annotation_clip=False,
            fontweight="bold" if text == "fastmmd" else "normal",
        )  # fmt: skip


def _accuracy(record: dict[str, Any]) -> str:
    figure, panels = plt.subplots(1, 2, figsize=(9.5, 4.0), layout="constrained", sharex=True)
    rows = [row for row in record["accuracy"] if row["samples"] == "the same points"]
    for axes, key, title in zip(
        panels, ("value_error", "gradient_error"), ("relative error of the value", "error of the gradient"), strict=True
    ):
        for name in dict.fromkeys(row["implementation"] for row in rows):
            points = [(row["mmd2"], max(row[key], 1e-10)) for row in rows if row["implementation"] == name]
            axes.plot(*zip(*points, strict=True), "o-", color=COLORS[name], markersize=4.5, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.grid(True)
        axes.set_xlabel("MMD$^2$")
        axes.set_title(title, loc="left", fontsize=11.5)
    panels[0].invert_xaxis()  # both, they share it: samples grow alike to the right
    panels[0].legend(frameon=False)
    return _svg(figure)


def _grid(cells: dict[tuple[int, int, int], float]) -> str:
    """A heat map of how many times faster than eager: colors by the logarithm, white at equal times."""
    sizes, dims = (sorted({at[i] for at in cells}) for i in (1, 2))
    figure, axes = plt.subplots(figsize=(1.6 + 1.1 * len(sizes), 1.2 + 0.48 * len(dims)), layout="constrained")
    logarithms = [[math.log2(cells[1, n, dim]) for n in sizes] for dim in dims]
    axes.imshow(logarithms, cmap="RdBu", vmin=-6, vmax=6, aspect="auto")
    for i, dim in enumerate(dims):
        for j, n in enumerate(sizes):
            dark = abs(logarithms[i][j]) > 4
            ratio = cells[1, n, dim]
            text = f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"
            axes.text(j, i, text, ha="center", va="center", color="white" if dark else "black")
    axes.set_xticks(range(len(sizes)), [f"{n:,}" for n in sizes])
    axes.set_yticks(range(len(dims)), [f"{dim:,}" for dim in dims])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("N = M")
    axes.set_ylabel("D")
    axes.set_title("mmd2 with its gradient: times faster than eager", loc="left", fontsize=11.5)
    return _svg(figure)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, facecolor="white")
    plt.close(figure)
    return buffer.getvalue()
