"""Nearest neighbors: does a model copy its training images?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fastmmd.ops.arguments import check_points, compute_dtype

ROWS, COLUMNS = 1_024, 4_096  # of a tile of distances: 16 MB in float32


class Neighbors(NamedTuple):
    """For each point the index [N] int64 of its nearest image, and the squared distance [N] to it."""

    indices: Tensor
    squared_distances: Tensor


class Tile(NamedTuple):
    """Squared distances [R, C] between R rows of one set of points and C of another; `rows`, `columns`: which."""

    rows: slice
    columns: slice
    squared: Tensor


def check_finite(**sets: Tensor) -> None:
    """Points of which one with NaN would be nobody's neighbor and hide others behind it.

    Raises:
        ValueError: naming the argument.
    """
    for name, points in sets.items():
        if not bool(points.isfinite().all()):
            raise ValueError(f"{name}: got NaN or infinity, expected finite numbers")


def distance_tiles(first: Tensor, second: Tensor, center: Tensor) -> Iterator[Tile]:
    """All squared distances between points [N, D] and [M, D], tile by tile, row of tiles by row of tiles.

    They are |a|^2 + |b|^2 - 2 a.b of the data without `center` [D], and may be slightly negative for copies.
    """
    for start in range(0, len(first), ROWS):
        rows = slice(start, min(start + ROWS, len(first)))
        a = first[rows] - center
        own = a.square().sum(1, keepdim=True)
        for begin in range(0, len(second), COLUMNS):
            columns = slice(begin, min(begin + COLUMNS, len(second)))
            b = second[columns] - center
            yield Tile(rows, columns, torch.addmm(b.square().sum(1), a, b.T, alpha=-2).add_(own))


@torch.no_grad()
def nearest_neighbors(points: Tensor, images: Tensor) -> Neighbors:
    """The nearest of `images` to each of `points`, in memory linear in both: the distances come in tiles.

    The distances that are compared are |a|^2 + |b|^2 - 2 a.b of centered data, the one that is returned is a sum of
    squared differences: 0 for a copy. Images that are equally near up to rounding may stand for each other.

    Args:
        points: [N, D]; one with NaN has the distance NaN. images: [M >= 1, D]. They are compared in float32, in float64
            if that is their dtype.

    Raises:
        TypeError, ValueError: naming the argument: no floating tensors, other shapes or devices, one of float64 beside
            another dtype; no images, or NaN or infinity in them.
    """
    check_points(2, empty=True, points=points, images=images)
    if len(images) == 0:
        raise ValueError("images: got none, expected at least one")
    check_finite(images=images)
    points, images = (each.to(compute_dtype(each)) for each in (points, images))
    best = torch.full((len(points),), torch.inf, device=points.device, dtype=points.dtype)
    index = torch.zeros(len(points), device=points.device, dtype=torch.int64)
    for rows, columns, squared in distance_tiles(points, images, images.mean(0)):
        least, where = squared.min(1)
        nearer = least < best[rows]
        best[rows] = torch.where(nearer, least, best[rows])
        index[rows] = torch.where(nearer, where + columns.start, index[rows])
    parts = zip(points.split(ROWS), index.split(ROWS), strict=True)
    return Neighbors(index, torch.cat([(part - images[nearest]).square().sum(1) for part, nearest in parts]))
