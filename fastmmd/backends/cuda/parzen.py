"""Parzen windows: tiles of products by cuBLAS and the compiled step on them, differences for few dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..calls import Parzen, ParzenBackward
from ..common.native import address, is_double
from ..common.products import blocks_of, even_tile_size, full_precision
from .library import launch, load, workspace

F64 = torch.float64
DIRECT_DIMS = 16  # up to here distances by differences cost less than a matrix product
TILE = 2048  # rows, and columns beside so many rows: 16 MB of float32, which stay in the cache of a large GPU
FAR = 1e6  # |x|^2 / (2 sigma^2), beyond which products in gradients would lose digits of distances of sigma


def parzen_update(call: Parzen) -> None:
    """Add samples to minimum [M] and sums [S, M], in place."""
    points, samples, sigmas, minimum, sums = call.points, call.samples, call.sigmas, call.minimum, call.sums
    if not (len(points) and len(samples)):
        return
    if points.shape[1] <= DIRECT_DIMS:
        _direct(points, samples, sigmas, minimum, sums, None, None, None)
        return
    rows = _Side(points, TILE)
    columns = _Side(samples, max(16, TILE * TILE // rows.size // 16 * 16))
    with full_precision(points.device.type):
        for _ in _tiles(rows, columns, sigmas, minimum, sums, None):
            pass


def parzen_backward(call: ParzenBackward) -> tuple[Tensor, Tensor]:
    """Gradients of sum grad (log sums - minimum / (2 sigma^2)) in points [M, D] and samples [N, D]."""
    forward, grad, needs = call.forward, call.grad, (call.needs_points, call.needs_samples)
    points, samples, sigmas = forward.points, forward.samples, forward.sigmas
    minimum, sums = forward.minimum, forward.sums
    if not (len(points) and len(samples)):
        return torch.zeros_like(points), torch.zeros_like(samples)
    if points.shape[1] <= DIRECT_DIMS:
        found = [torch.empty_like(x) if need else None for x, need in zip((points, samples), needs, strict=True)]
        _direct(points, samples, sigmas, minimum, sums, grad, *found)
    else:
        rows, columns = _Side(points, TILE), _Side(samples, TILE)
        pairs = ((rows, columns), (columns, rows))
        sums_of = [_Gradient(*pair, sigmas) if need else None for pair, need in zip(pairs, needs, strict=True)]
        turned = points.new_empty((columns.size, rows.size))
        with full_precision(points.device.type):
            for i, j, c in _tiles(rows, columns, sigmas, minimum, sums, grad):
                if sums_of[0] is not None:
                    sums_of[0].add(i, j, c)
                if sums_of[1] is not None:
                    sums_of[1].add(j, i, turned.copy_(c.T))
        found = [None if part is None else part.total.to(points.dtype) for part in sums_of]
    g_points, g_samples = (points.new_empty(0) if part is None else part for part in found)
    return g_points, g_samples


def _direct(
    points: Tensor,
    samples: Tensor,
    sigmas: Sequence[float],
    minimum: Tensor,
    sums: Tensor,
    grad: Tensor | None,
    g_points: Tensor | None,
    g_samples: Tensor | None,
) -> None:
    task = load().ParzenDirect(
        is_double(points), len(points), *samples.shape, points.data_ptr(), samples.data_ptr(), sigmas,
        minimum.data_ptr(), sums.data_ptr(), address(grad), address(g_points), address(g_samples),
    )  # fmt: skip
    memory = workspace(points, task.workspace)
    launch(task.run, points, memory.data_ptr())


class _Side:
    """Points in blocks of `size`, the last one filled up with zeros, and their squared norms, filled up alike."""

    def __init__(self, points: Tensor, most: int) -> None:
        self.points, self.size = points, even_tile_size(len(points), most)
        self.blocks = list(blocks_of(points, self.size))
        self.norms = points.new_zeros(len(self.blocks) * self.size)
        launch(load().parzen_norms, points, is_double(points), *points.shape, points.data_ptr(), self.norms.data_ptr())

    def norms_from(self, first: int) -> int:
        return self.norms.data_ptr() + first * self.norms.element_size()


class _Gradient:
    """sum_j c_ij (q_j - p_i), added up over tiles of c, for points p [N, D] of a side; the other side has the q."""

    def __init__(self, side: _Side, other: _Side, sigmas: Sequence[float]) -> None:
        self.side, self.other = side, other
        self.total = torch.zeros_like(side.points, dtype=F64)
        self.far = min(2 * FAR * min(sigmas) ** 2 * (2.0**58 if is_double(side.points) else 1), 1e37)
        far = (other.norms > self.far).view(-1, other.size, 1)
        self.near = [block.masked_fill(out, 0) for (_, block), out in zip(other.blocks, far, strict=True)]

    def add(self, i: int, j: int, c: Tensor) -> None:
        """The tile c [rows, columns] of the blocks i of the points and j of the others."""
        (rows, p), (columns, q) = self.side.blocks[i], self.other.blocks[j]
        products = c @ self.near[j]
        launch(
            load().parzen_gather, p, is_double(p), rows.stop - rows.start, columns.stop - columns.start, *q.shape,
            c.data_ptr(), products.data_ptr(), p.data_ptr(), q.data_ptr(), self.side.norms_from(rows.start),
            self.other.norms_from(columns.start), self.far, self.total[rows].data_ptr(),
        )  # fmt: skip


def _tiles(
    rows: _Side, columns: _Side, sigmas: Sequence[float], minimum: Tensor, sums: Tensor, grad: Tensor | None
) -> Iterator[tuple[int, int, Tensor]]:
    """Products tile by tile, each an identical call on zero-padded blocks, and the compiled step on them.

    Yields the numbers of the tile's blocks, and the tile [rows.size, columns.size] as the compiled step leaves it:
    coefficients where grad is given.
    """
    points = rows.points
    products = points.new_empty((rows.size, columns.size))
    for j, (s, q) in enumerate(columns.blocks):
        for i, (r, p) in enumerate(rows.blocks):
            torch.mm(p, q.T, out=products)
            task = load().ParzenTile(
                is_double(points), r.stop - r.start, s.stop - s.start, *products.shape[1:], points.shape[1],
                products.data_ptr(), p.data_ptr(), q.data_ptr(), rows.norms_from(r.start),
                columns.norms_from(s.start), sigmas, len(points), minimum[r].data_ptr(), sums[:, r].data_ptr(),
                0 if grad is None else grad[:, r].data_ptr(),
            )  # fmt: skip
            memory = workspace(points, task.workspace)
            launch(task.run, points, memory.data_ptr())
            yield i, j, products
