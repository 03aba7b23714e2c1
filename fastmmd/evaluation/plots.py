"""Plots of results: bars and curves with errors, heat maps, the codes of several models side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastmmd
from fastmmd.evaluation.figures import _figure, _save, _scatter
from fastmmd.priors import Prior
from fastmmd.priors.base import check_prior
from fastmmd.priors.closed_form import ClosedFormPrior

HELD = (0.95, 0.5)  # of a prior, inside of its contours
DRAWS = 5_000  # from the prior: they set the frame, and their densities the levels of the contours
CENTERS = 50_000  # further draws, for the density of a prior without a closed form
CELLS = 150  # of a contour's grid, along each side

_Path = str | os.PathLike[str]
_Array = np.ndarray[Any, Any]

#: Errors of a value: one number, or how far they reach below and above it.
Error = float | tuple[float, float]

# Okabe and Ito's colors: told apart by color-blind readers too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A7A7A")


def save_bars(
    path: _Path,
    names: Sequence[str],
    values: Sequence[float],
    errors: Sequence[Error] | None = None,
    title: str = "",
    ylabel: str = "",
    references: Mapping[str, float] | None = None,
    reference_label: str = "reference",
) -> None:
    """Bars with error bars, their values under the names, and reference values for comparison.

    Args:
        names, values: of the bars; NaN leaves a bar out, but not its reference.
        errors: one for each bar, a distance or (below, above).
        ylabel: what the values are, with their unit.
        references: by the name of a bar: a diamond on it; by another name: a dashed line across, with that name.
        reference_label: what the diamonds are.

    Raises:
        ValueError: names, values and errors differ in number.
    """
    heights = np.asarray(values, float)
    reach = _reaches("errors", errors, len(heights))
    if len(names) != len(heights):
        raise ValueError(f"names: got {len(names)}, expected one for each of {len(heights)} values")
    figure, axis = _figure(max(6.4, 1.15 * len(names) + 1.2), 4.4)
    at = np.arange(len(names))
    axis.bar(at, heights, 0.62, color=COLORS[0], zorder=2)
    if reach is not None:
        axis.errorbar(at, heights, reach, fmt="none", ecolor="#222222", capsize=5, zorder=3)
    marks = {name: value for name, value in (references or {}).items() if name in names}
    if marks:
        columns = [list(names).index(name) for name in marks]
        style = {"color": "#D55E00", "edgecolors": "white", "zorder": 4, "label": reference_label}
        axis.scatter(columns, list(marks.values()), s=90, marker="D", **style)
    for number, (name, value) in enumerate((references or {}).items()):
        if name not in marks:
            axis.axhline(value, color=COLORS[-1 - number % 2], linestyle="--", linewidth=1.3, zorder=1, label=name)
    axis.set_xticks(at, [f"{name}\n{value}" for name, value in zip(names, _numbers(heights), strict=True)], fontsize=9)
    axis.axhline(0, color="#555555", linewidth=0.8)
    axis.margins(y=0.12)
    axis.grid(axis="y", color="#dddddd", linewidth=0.7)
    _finish(figure, axis, title, "", ylabel, legend=bool(references))
    _save(figure, path)


def save_curves(
    path: _Path,
    x: Sequence[float],
    curves: Mapping[str, tuple[Sequence[float], Sequence[Error] | None]],
    xlabel: str = "",
    ylabel: str = "",
    title: str = "",
    logx: bool = False,
    logy: bool = False,
) -> None:
    """Curves over one x axis, with error bars where they are given.

    Args:
        x: [N].
        curves: name -> (values [N], errors [N] or None), an error a distance or (below, above); NaN: no point there.
        logx: a logarithmic x axis, with a tick at each x. logy: a logarithmic y axis.

    Raises:
        ValueError: a curve with another number of values than x.
    """
    figure, axis = _figure(6.4, 4.4)
    for number, (name, (values, errors)) in enumerate(curves.items()):
        if len(values) != len(x):
            raise ValueError(f"curves: {name!r} has {len(values)} values, expected one for each of {len(x)} x")
        style = {"color": COLORS[number % len(COLORS)], "markersize": 4.5, "linewidth": 1.7, "capsize": 3}
        line = "o-" if number < len(COLORS) else "s--"
        axis.errorbar(x, values, _reaches(f"errors of {name!r}", errors, len(x)), fmt=line, label=name, **style)
    if logx:
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(x), [f"{value:g}" for value in x])
        axis.minorticks_off()
    if logy:
        axis.set_yscale("log")
    axis.grid(color="#dddddd", linewidth=0.7)
    _finish(figure, axis, title, xlabel, ylabel, legend=len(curves) > 1)
    _save(figure, path)


def save_heatmap(
    path: _Path,
    values: Sequence[Sequence[float]] | _Array,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str = "",
    ylabel: str = "",
    xlabel: str = "",
) -> None:
    """A matrix [R, C] as colors with its numbers; NaN is an empty cell.

    The colors span the values from the lower whisker of a box plot on (the first quartile less 1.5 times the range
    between the quartiles), so that one failure does not hide the differences among the others.

    Raises:
        ValueError: the labels do not fit the matrix.
    """
    cells = np.asarray(values, float)
    if cells.shape != (len(rows), len(columns)):
        raise ValueError(f"values: got shape {list(cells.shape)}, expected [{len(rows)} rows, {len(columns)} columns]")
    known = cells[np.isfinite(cells)]
    quartiles = np.quantile(known, (0.25, 0.75)) if known.size else (0.0, 1.0)
    low = max(known.min(initial=np.inf), quartiles[0] - 1.5 * (quartiles[1] - quartiles[0]))
    high = known.max(initial=-np.inf)
    figure, axis = _figure(max(6.4, 1.6 + 0.85 * len(columns)), 1.4 + 0.5 * len(rows))
    image = axis.imshow(cells, cmap="viridis", vmin=low, vmax=high, aspect="auto")
    for (row, column), text in zip(np.ndindex(cells.shape), _numbers(cells), strict=True):
        if text:
            bright = high > low and (cells[row, column] - low) / (high - low) > 0.6
            style = {"ha": "center", "va": "center", "fontsize": 9, "color": "black" if bright else "white"}
            axis.text(column, row, text, **style)
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    figure.colorbar(image, ax=axis, extend="min" if known.size and known.min() < low else "neither")
    if title:
        axis.set_title(title, fontsize=10)
    _save(figure, path)


def save_panels(
    path: _Path, panels: Sequence[tuple[str, Tensor, Tensor | None]], title: str = "", prior: Prior | None = None
) -> None:
    """Two-dimensional codes of several models side by side in one frame.

    Args:
        panels: (title, codes [N, 2], labels [N] or None); labels color the codes.
        prior: it sets the frame, and its contours, which hold `HELD` of it, are under the codes; default: the panels'
            own codes set the frame. Codes outside of it are counted in the panel's corner.

    Raises:
        ValueError, TypeError: codes that are not [N, 2], or no prior of two dimensions.
    """
    for name, codes, _ in panels:
        if codes.ndim != 2 or codes.shape[1] != 2:
            raise ValueError(f"panels: codes of {name!r} have shape {list(codes.shape)}, expected [N, 2]")
    if prior is None:
        frame = np.concatenate([codes.cpu().numpy() for _, codes, _ in panels])
    else:
        check_prior(prior)
        if prior.dim != 2:
            raise ValueError(f"prior: got one of dimension {prior.dim}, expected 2")
        generator = torch.Generator().manual_seed(0)
        draws = prior.sample(DRAWS, generator=generator, dtype=torch.float64)
        frame = draws.numpy()
    center = frame.mean(0)
    reach = 1.15 * np.abs(frame - center).max()
    figure, axes = _figure(3.3 * len(panels) + 0.7, 3.9 if title else 3.6, columns=len(panels))
    axes = np.atleast_1d(axes)
    contours = None if prior is None else _contours(prior, draws, center, reach, generator)
    for axis, (name, codes, labels) in zip(axes, panels, strict=True):
        shown = codes.cpu().numpy()
        _scatter(axis, shown, labels, legend_on=axes[-1])
        if contours is not None:
            axis.contour(*contours, colors="#222222", linestyles="solid", linewidths=0.8, alpha=0.8)
        axis.set_xlim(center[0] - reach, center[0] + reach)
        axis.set_ylim(center[1] - reach, center[1] + reach)
        axis.set_aspect("equal")
        axis.set_title(name, fontsize=10)
        axis.tick_params(labelsize=8)
        outside = int((np.abs(shown - center) > reach).any(1).sum())
        if outside:
            style = {"transform": axis.transAxes, "fontsize": 8, "va": "top"}
            axis.text(0.03, 0.97, f"{outside:,} outside", **style)
    if title:
        figure.suptitle(title, fontsize=10)
    _save(figure, path)


def _contours(
    prior: Prior, draws: Tensor, center: _Array, reach: float, generator: torch.Generator
) -> tuple[_Array, _Array, _Array, list[float]]:
    """x, y, the prior's density on a square about the center, and its levels that hold `HELD` of draws [M, 2]."""
    x, y = (torch.linspace(middle - reach, middle + reach, CELLS) for middle in center.tolist())
    points = torch.cat([torch.cartesian_prod(x, y), draws])
    sigma = 2 * reach / CELLS  # finer than what the eye tells apart
    if isinstance(prior, ClosedFormPrior):  # its embedding by a narrow kernel is its density
        density = 1 + prior.kernel_means((sigma,), (1.0,), draws.device).cross(points)
    else:
        centers = prior.sample(CENTERS, generator=generator, dtype=draws.dtype)
        density = fastmmd.parzen_log_likelihood(points, centers, sigma)
    on_grid, at_draws = density.tensor_split([CELLS**2])
    levels = at_draws.quantile(1 - torch.tensor(HELD, dtype=density.dtype)).unique()
    return x.numpy(), y.numpy(), on_grid.view(CELLS, CELLS).T.numpy(), levels.tolist()


def _numbers(values: _Array) -> list[str]:
    """The same number of decimals for all, four digits of the largest without trailing zeros; empty for NaN."""
    known = values[np.isfinite(values)]
    largest = np.abs(known).max(initial=0)
    decimals = max(0, 3 - int(np.floor(np.log10(largest)))) if largest else 0
    while decimals and np.array_equal(known.round(decimals), known.round(decimals - 1)):
        decimals -= 1
    return [f"{value:.{decimals}f}" if np.isfinite(value) else "" for value in values.flat]


def _reaches(name: str, errors: Sequence[Error] | None, count: int) -> _Array | None:
    """[2, count] distances below and above."""
    if errors is None:
        return None
    if len(errors) != count:
        raise ValueError(f"{name}: got {len(errors)}, expected one for each of {count} values")
    return np.asarray([error if isinstance(error, tuple) else (error, error) for error in errors], float).T


def _finish(figure: Any, axis: Any, title: str, xlabel: str, ylabel: str, *, legend: bool) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_axisbelow(True)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    if legend:
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)
    if title:
        axis.set_title(title, fontsize=10)
