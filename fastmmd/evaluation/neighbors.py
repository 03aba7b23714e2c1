"""Nearest neighbors: does a model copy its training images?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ROWS, COLUMNS = 1_024, 4_096  # of a tile of distances: 16 MB in float32


class Neighbors(NamedTuple):
    """For each point the index [N] int64 of its nearest image, and the squared distance [N] to it."""

    indices: Tensor
    squared_distances: Tensor


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
    center = images.mean(0)
    nearest = []
    for rows in points.split(ROWS):
        a = rows - center
        best = torch.full((len(rows),), torch.inf, device=rows.device, dtype=rows.dtype)
        index = torch.zeros(len(rows), device=rows.device, dtype=torch.int64)
        for start in range(0, len(images), COLUMNS):
            b = images[start : start + COLUMNS] - center
            # |a|^2 is the same for every image.
            least, where = torch.addmm(b.square().sum(1), a, b.T, alpha=-2).min(1)
            nearer = least < best
            best = torch.where(nearer, least, best)
            index = torch.where(nearer, where + start, index)
        nearest.append((index, (rows - images[index]).square().sum(1)))
    if not nearest:
        return Neighbors(torch.zeros(0, device=points.device, dtype=torch.int64), points.new_zeros(0))
    return Neighbors(*(torch.cat(parts) for parts in zip(*nearest, strict=True)))
