"""Nearest neighbors: does a model copy its training images?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

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
            yield Tile(rows, columns, torch.addmm(b.square().sum(1), a, b.T, alpha=-2) + own)


@torch.no_grad()
def nearest_neighbors(points: Tensor, images: Tensor) -> Neighbors:
    """The nearest of `images` to each of `points`, in memory linear in both: the distances come in tiles.

    The distances that are compared are |a|^2 + |b|^2 - 2 a.b of centered data, the one that is returned is a sum of
    squared differences: 0 for a copy. Images that are equally near up to rounding may stand for each other.

    Args:
        points: [N, D]; images: [M >= 1, D], of one dtype and on one device.

    Raises:
        ValueError: other shapes, or no images.
    """
    if points.ndim != 2 or images.ndim != 2 or points.shape[1] != images.shape[1] or len(images) == 0:
        shapes = f"{list(points.shape)} and {list(images.shape)}"
        raise ValueError(f"points [N, D] and images [M >= 1, D] must be matrices with the same D, got {shapes}")
    best = torch.full((len(points),), torch.inf, device=points.device, dtype=points.dtype)
    index = torch.zeros(len(points), device=points.device, dtype=torch.int64)
    for rows, columns, squared in distance_tiles(points, images, images.mean(0)):
        least, where = squared.min(1)
        nearer = least < best[rows]
        best[rows] = torch.where(nearer, least, best[rows])
        index[rows] = torch.where(nearer, where + columns.start, index[rows])
    parts = zip(points.split(ROWS), index.split(ROWS), strict=True)
    return Neighbors(index, torch.cat([(part - images[nearest]).square().sum(1) for part, nearest in parts]))
