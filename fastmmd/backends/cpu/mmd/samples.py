"""Samples as terms of products take them: normalized weights, blocks of points about a center, sums of gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...common.products import even_tile_size
from ..onednn import multiply

F64 = torch.float64
TILE = 256  # rows and columns: large enough for BLAS; sums of so many products in float32 are accurate enough
CHUNK = 16  # rows at a time in float64
PRODUCT = 64  # rows at a time of products with points, which take memory
OUTLIER = 16.0  # squared distance from the center over its median; farther points would drown others in float32 sums
SOME = 32  # points whose distances tell the typical one

TileSide = dict[str, Any]  # the fields of the compiled module's TileSide


class NormalizedSample:
    """Points [N, D] and their weights, which are normalized by `scale`, in float64."""

    def __init__(self, points: Tensor, weights: Tensor | None, unbiased: bool) -> None:
        self.points, self.given = points, weights
        self.weights = points.new_ones(len(points), dtype=F64) if weights is None else weights.to(F64)
        self.scale = float(1 / self.weights.sum())
        self.weights = self.weights * self.scale
        self.factor = float(1 / (1 - self.weights.square().sum())) if unbiased else 1.0
        self.unit = self.factor * self.scale  # of the sums over the sample's own pairs
        self.wide = points.new_empty((CHUNK, points.shape[1]), dtype=F64)  # kept: new ones would fragment the heap
        self.measure(None)

    def chunk(self, rows: slice, center: Tensor | None = None) -> Tensor:
        """Some of the points, about a center as the tiles have them, in float64; valid until the next call."""
        points = self.points[rows] if center is None else self.points[rows] - center
        return self.wide[: len(points)].copy_(points)

    def measure(self, without: Tensor | None) -> None:
        """The mean [D] and the mean squared distance from it, without some of the points."""
        points, count = self.points, len(self.points) - (0 if without is None else int(without.sum()))
        total, squares = points.new_zeros(points.shape[1], dtype=F64), 0.0
        for rows in chunks_of(len(points)):
            chunk = self.chunk(rows)
            if without is not None:
                chunk.masked_fill_(without[rows, None], 0)
            total += chunk.sum(0)
            squares += float(torch.linalg.vector_norm(chunk)) ** 2
        self.mean = total / count
        self.spread = max(0.0, squares / count - float(self.mean.square().sum()))


class Side:
    """A sample about a center [D] or the origin, in blocks of `size` points, the last one filled up with zeros."""

    def __init__(self, sample: NormalizedSample, center: Tensor | None) -> None:
        points, (count, self.dim) = sample.points, sample.points.shape
        self.sample, self.center = sample, center
        self.size = even_tile_size(count, TILE)
        self.rows = [slice(first, min(first + self.size, count)) for first in range(0, count, self.size)]
        self.blocks = len(self.rows)
        self.norms, self.mass = points.new_zeros((2, self.blocks * self.size))
        self.mass[:count] = 1 if sample.given is None else sample.given
        self.moment = points.new_zeros(self.dim, dtype=F64)  # sum_j w_j (x_j - center)
        for rows in chunks_of(count):
            chunk = sample.chunk(rows, center)
            self.norms[rows] = torch.linalg.vector_norm(chunk, dim=1).square()
            self.moment += sample.weights[rows] @ chunk
        self.farthest = float(self.norms.max())
        self.far = self.norms > OUTLIER * self.norms[:count].median()
        self.outliers = [block.nonzero()[:, 0] for block in self.far.split(self.size)]

    def some(self, step: float) -> Tensor:
        """Points from everywhere, at multiples of an irrational fraction of their number: no order defeats it."""
        count = len(self.sample.points)
        at = torch.tensor([int(k * step % 1 * count) for k in range(SOME)])
        points = self.sample.points[at]
        return (points if self.center is None else points - self.center).to(F64)

    def is_view(self, block: int) -> bool:
        """Whether a block is the points as they are."""
        return self.center is None and self.rows[block].stop == (block + 1) * self.size

    def copy(self, block: int, out: Tensor | None) -> Tensor:
        """The points of a block, in the memory of `out`, another copy, where that is of their size."""
        points = self.sample.points[self.rows[block]]
        if out is None or len(out) != self.size:
            out = points.new_empty((self.size, self.dim))
        torch.sub(points, 0.0 if self.center is None else self.center, out=out[: len(points)])
        out[len(points) :].zero_()
        return out

    def tile_side(self, block: int, sums: Sums | None) -> TileSide:
        """As the compiled step takes it."""
        rows = self.rows[block]
        return {
            "count": rows.stop - rows.start,
            "points": self.sample.points[rows].data_ptr(),
            "norms": self.norms[rows].data_ptr(),
            "mass": self.mass[rows].data_ptr(),
            "slopes": 0 if sums is None else sums.slopes[rows].data_ptr(),
            "grad": 0 if sums is None else sums.grad[rows].data_ptr(),
            "scale": 0.0 if sums is None else sums.scale,
        }


@dataclass
class Sums:
    """What a term adds up for the points of one side, in units that `scale` turns into those of `grad`."""

    slopes: Tensor  # [N] float64: sum_j m_j c_ij
    grad: Tensor  # [N, D], shared by the terms of a sample: what their products contribute
    scale: float

    def add(self, rows: slice, c: Tensor, other: Side, block: int, points: Tensor) -> None:
        """Subtract c @ (masses * points), a block of the other side."""
        count, outliers = rows.stop - rows.start, other.outliers[block]
        if other.sample.given is not None:
            points = points * other.mass[block * other.size :][: other.size, None]
        if len(outliers):
            wide, points = points[outliers].to(F64), points.index_fill(0, outliers, 0)
            self.grad[rows].sub_((c[:count, outliers].to(F64) @ wide).mul_(self.scale))
        for some in chunks_of(count, PRODUCT):
            self.grad[rows][some].add_(multiply(c[some], points.T), alpha=-self.scale)


def chunks_of(count: int, size: int = CHUNK) -> Iterator[slice]:
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))
