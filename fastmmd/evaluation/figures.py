"""Pictures of a model: samples, reconstructions, codes, walks.

The `image_shape` of images [N, data_dim] is (H, W), or (3, H, W) of those in color.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastmmd.errors import require
from fastmmd.files import replacing

DPI = 110

_Path = str | os.PathLike[str]


def save_samples(path: _Path, images: Tensor, image_shape: Sequence[int], title: str = "", columns: int = 10) -> None:
    """A grid of images [N, data_dim], row by row."""
    sheet = _sheet(images, image_shape, columns)
    width, height = _cell(image_shape)
    rows = math.ceil(len(images) / columns)
    figure, axes = _figure(columns * width, rows * height + 0.4 * bool(title))
    _show(axes, sheet)
    axes.set_axis_off()
    if title:
        axes.set_title(title, fontsize=10)
    _save(figure, path)


def save_reconstructions(
    path: _Path, images: Tensor, reconstructions: Tensor, image_shape: Sequence[int], title: str = ""
) -> None:
    """Images [N, data_dim] above their reconstructions, in two pairs of rows (N is best even)."""
    half = math.ceil(len(images) / 2)
    rows = [part[start : start + half] for start in (0, half) for part in (images, reconstructions)]
    sheets = [_sheet(row, image_shape, half) for row in rows if len(row)]
    width, height = _cell(image_shape)
    figure, axes = _figure(half * width + 1.0, 4 * (height + 0.06) + 0.5, rows=len(sheets))
    for axis, sheet, label in zip(axes, sheets, ("image", "reconstruction") * 2, strict=False):
        _show(axis, sheet)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    if title:
        figure.suptitle(title, fontsize=10)
    _save(figure, path)


def save_latent(path: _Path, codes: Tensor, prior: Tensor, labels: Tensor | None = None, title: str = "") -> None:
    """The first two code dimensions of codes [N, D], colored by label, next to draws from the prior [M, D].

    With one code dimension: two histograms.
    """
    figure, (left, right) = _figure(9.4, 4.7, columns=2)
    if codes.shape[1] == 1:
        edges = np.histogram_bin_edges(np.concatenate([codes[:, 0].cpu(), prior[:, 0].cpu()]), 60)
        for axis, values in ((left, codes), (right, prior)):
            axis.hist(values[:, 0].cpu().numpy(), edges, color="#4477aa")
            axis.set_xlabel("code dimension 1")
        left.set_ylabel("count")
    else:
        shown = codes[:, :2].cpu().numpy()
        drawn = prior[:, :2].cpu().numpy()
        _scatter(left, shown, labels, legend_on=right)
        _scatter(right, drawn, None)
        # The prior sets the frame; codes may widen it, single outliers may not.
        both = np.abs(np.concatenate([drawn, shown]) - drawn.mean(0))
        reach = 1.1 * max(np.quantile(both, 0.995), np.abs(drawn - drawn.mean(0)).max())
        for axis in (left, right):
            axis.set_xlim(drawn[:, 0].mean() - reach, drawn[:, 0].mean() + reach)
            axis.set_ylim(drawn[:, 1].mean() - reach, drawn[:, 1].mean() + reach)
            axis.set_aspect("equal")
            axis.set_xlabel("code dimension 1")
        left.set_ylabel("code dimension 2")
    left.set_title("codes", fontsize=10)
    right.set_title("prior", fontsize=10)
    if title:
        figure.suptitle(title, fontsize=10)
    _save(figure, path)


def save_grid(
    path: _Path,
    images: Tensor,
    image_shape: Sequence[int],
    title: str = "",
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
) -> None:
    """Images [R, C, data_dim] in R rows of C, with a label for each row and each column where they are given.

    For chains (a row for each step), interpolations, walks and latent grids.
    """
    width, height = _cell(image_shape)
    figure, axis = _figure(images.shape[1] * width + 1.2 * bool(rows), images.shape[0] * height + 0.4 * bool(title))
    _label_grid(axis, images, image_shape, rows, columns)
    if title:
        axis.set_title(title, fontsize=10)
    _save(figure, path)


def save_walks(
    path: _Path,
    walks: Tensor,
    draws: Tensor,
    images: Tensor,
    image_shape: Sequence[int],
    title: str = "",
    names: Sequence[str] = (),
) -> None:
    """Walks through code space in the plane of the first two dimensions, and a row of images for each.

    Args:
        walks: [W, C, D >= 2] codes.
        draws: [M, D] from the prior, beneath them.
        images: [W, C, data_dim], what the codes of the walks decode to.
        names: of the walks; their numbers by default.
    """
    names = names or [str(number) for number in range(len(walks))]
    width, height = _cell(image_shape)
    tall = max(4.2, len(walks) * 0.7 * height)
    wide = max(2.0, tall * images.shape[1] / len(walks) * width / height)
    shrink = min(1.0, 14 / wide)  # a single long walk is a strip
    figure, (plane, sheet) = _figure(4.6 + wide * shrink, tall + 0.4, columns=2, widths=(4.4, wide * shrink))
    below = draws[:, :2].cpu().numpy()
    plane.scatter(below[:, 0], below[:, 1], s=8, color="#dddddd", linewidths=0)
    colors = require("matplotlib").colormaps["tab10" if len(walks) <= 10 else "turbo"]
    shades = [colors(n if len(walks) <= 10 else n / (len(walks) - 1)) for n in range(len(walks))]
    for walk, name, shade in zip(walks[..., :2].cpu().numpy(), names, shades, strict=True):
        plane.plot(walk[:, 0], walk[:, 1], ".-", color=shade, markersize=4, linewidth=1)
        plate = {"boxstyle": "circle,pad=0.15", "color": "white", "alpha": 0.8}
        plane.annotate(name, walk[-1], fontsize=9, color=shade, ha="center", va="center", bbox=plate)
    plane.set_aspect("equal")
    plane.set_xlabel("code dimension 1")
    plane.set_ylabel("code dimension 2")
    _label_grid(sheet, images, image_shape, names, ())
    for label, shade in zip(sheet.get_yticklabels(), shades, strict=True):
        label.set_color(shade)
    if title:
        figure.suptitle(title, fontsize=10)
    _save(figure, path)


def _label_grid(
    axis: Any, images: Tensor, image_shape: Sequence[int], rows: Sequence[str], columns: Sequence[str]
) -> None:
    """Images [R, C, data_dim] on an axis, whose ticks are the labels."""
    count, width = images.shape[:2]
    for name, labels, wanted in (("rows", rows, count), ("columns", columns, width)):
        if len(labels) not in (0, wanted):
            raise ValueError(f"{name}: got {len(labels)} labels, expected {wanted} or none")
    sheet = _sheet(images.flatten(0, 1), image_shape, width)
    _show(axis, sheet)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0, labelsize=9)
    for set_ticks, labels, length in (
        (axis.set_yticks, rows, sheet.shape[0]),
        (axis.set_xticks, columns, sheet.shape[1]),
    ):
        step = (length + 1) / max(len(labels), 1)
        set_ticks([step * (number + 0.5) - 1 for number in range(len(labels))], labels)


def _scatter(axis: Any, points: np.ndarray[Any, Any], labels: Tensor | None, legend_on: Any = None) -> None:
    """Points [N, 2] colored by label; a legend of at most ten classes goes to the right of `legend_on`."""
    size = 4 if len(points) > 2_000 else 14
    if labels is None:
        axis.scatter(points[:, 0], points[:, 1], s=size, color="#777777", alpha=0.6, linewidths=0)
        return
    values = labels.cpu().numpy()
    classes = np.unique(values)
    colors = require("matplotlib").colormaps["tab10" if len(classes) <= 10 else "turbo"]
    order = np.random.RandomState(0).permutation(len(points))  # or the last class would cover the others
    index = np.searchsorted(classes, values)
    shade = colors(index if len(classes) <= 10 else index / max(len(classes) - 1, 1))
    axis.scatter(points[order, 0], points[order, 1], s=size, c=shade[order], alpha=0.7, linewidths=0)
    if len(classes) > 10:
        return
    keys = [axis.scatter([], [], s=24, color=colors(number)) for number in range(len(classes))]
    style = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "frameon": False, "handletextpad": 0.1}
    style |= {"title": "label", "fontsize": 8, "title_fontsize": 8}
    legend_on.legend(keys, [str(name) for name in classes], **style)


def _picture(row: np.ndarray[Any, Any], shape: Sequence[int]) -> np.ndarray[Any, Any]:
    """[data_dim] -> [H, W] or [H, W, 3]; a row of no image as a strip."""
    image = row.reshape(tuple(shape))
    if image.ndim == 3 and image.shape[0] == 3:
        return image.transpose(1, 2, 0)
    return image.reshape(image.shape[0], -1) if image.ndim > 1 else image[None]


def _sheet(images: Tensor, shape: Sequence[int], columns: int) -> np.ndarray[Any, Any]:
    """Images side by side with a gap of one pixel; missing ones are white."""
    pictures = [_picture(row, shape) for row in images.detach().float().cpu().numpy()]
    height, width = pictures[0].shape[:2]
    rows = math.ceil(len(pictures) / columns)
    sheet = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1, *pictures[0].shape[2:]), np.float32)
    for index, picture in enumerate(pictures):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def _cell(shape: Sequence[int]) -> tuple[float, float]:
    """Width and height of an image in inches: two dots or more for each pixel."""
    height, width = _picture(np.zeros(math.prod(shape), np.float32), shape).shape[:2]
    inches = max(0.72, 2 * (width + 1) / DPI)
    return inches, inches * height / width


def _show(axis: Any, sheet: np.ndarray[Any, Any]) -> None:
    axis.imshow(np.clip(sheet, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def _figure(
    width: float, height: float, rows: int = 1, columns: int = 1, widths: Sequence[float] | None = None
) -> tuple[Any, Any]:
    # A Figure of its own, not pyplot: no display is needed and no global state changes.
    figure = require("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, width_ratios=widths)


def _save(figure: Any, path: _Path) -> None:
    path = Path(path)
    path = path if path.suffix else path.with_suffix(".png")
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=DPI, facecolor="white")
