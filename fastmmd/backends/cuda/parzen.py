"""Parzen windows: tiles of products by cuBLAS and the compiled step on them, differences for few dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..calls import Parzen, ParzenBackward
from ..common.native import address, is_double
from ..common.parzen import rounded_state
from ..common.products import blocks_of, even_tile_size, full_precision
from .library import launch, load, run

F64 = torch.float64
DIRECT_DIMS = 16  # up to here distances by differences cost less than a matrix product
TILE = 2048  # rows, and columns beside so many rows: 16 MB of float32, which stay in the cache of a large GPU
FAR = 1e6  # |x|^2 / (2 sigma^2), beyond which products in gradients would lose digits of distances of sigma


def parzen_update(call: Parzen) -> None:
    """Add samples to minimum [M] and sums [S, M], in place."""
    if not (len(call.points) and len(call.samples)):
        return
    rounded = rounded_state(call)
    if call.points.shape[1] <= DIRECT_DIMS:
        _direct(rounded)
    else:
        _update_by_products(rounded)
    call.minimum.copy_(rounded.minimum)


def _update_by_products(call: Parzen) -> None:
    rows = _Side(call.points, TILE)
    columns = _Side(call.samples, max(16, TILE * TILE // rows.size // 16 * 16))
    with full_precision(call.points.device.type):
        for _ in _tiles(call, rows, columns):
            pass


def parzen_backward(call: ParzenBackward) -> tuple[Tensor, Tensor]:
    """Gradients of sum grad (log sums - minimum / (2 sigma^2)) in points [M, D] and samples [N, D]."""
    points, samples = call.forward.points, call.forward.samples
    if not (len(points) and len(samples)):
        return torch.zeros_like(points), torch.zeros_like(samples)
    call = replace(call, forward=replace(call.forward, minimum=call.forward.minimum.to(points.dtype)))
    if points.shape[1] <= DIRECT_DIMS:
        grad_points = points.new_empty(points.shape if call.needs_points else 0)
        grad_samples = samples.new_empty(samples.shape if call.needs_samples else 0)
        _direct(call.forward, call.grad, grad_points, grad_samples)
        return grad_points, grad_samples
    return _backward_by_products(call)


def _direct(
    call: Parzen,
    grad: Tensor | None = None,
    grad_points: Tensor | None = None,
    grad_samples: Tensor | None = None,
) -> None:
    """All samples by differences: into the state, or with grad the gradients that have a place."""
    task = load().ParzenDirect(
        is_double=is_double(call.points),
        m=len(call.points),
        n=len(call.samples),
        dim=call.points.shape[1],
        points=call.points.data_ptr(),
        samples=call.samples.data_ptr(),
        sigmas=call.sigmas,
        minimum=call.minimum.data_ptr(),
        sums=call.sums.data_ptr(),
        grad=address(grad),
        grad_points=address(grad_points),
        grad_samples=address(grad_samples),
    )
    run(task, call.points)


def _backward_by_products(call: ParzenBackward) -> tuple[Tensor, Tensor]:
    """Gradients by products, tile by tile."""
    points, samples, sigmas = call.forward.points, call.forward.samples, call.forward.sigmas
    rows, columns = _Side(points, TILE), _Side(samples, TILE)
    of_points = _Gradient(rows, columns, sigmas) if call.needs_points else None
    of_samples = _Gradient(columns, rows, sigmas) if call.needs_samples else None
    turned = points.new_empty((columns.size, rows.size))
    with full_precision(points.device.type):
        for i, j, c in _tiles(call.forward, rows, columns, call.grad):
            if of_points is not None:
                of_points.add(i, j, c)
            if of_samples is not None:
                of_samples.add(j, i, turned.copy_(c.T))
    grad_points, grad_samples = (
        points.new_empty(0) if part is None else part.total.to(points.dtype) for part in (of_points, of_samples)
    )
    return grad_points, grad_samples


class _Side:
    """Points in blocks of `size`, the last one filled up with zeros, and their squared norms, filled up alike."""

    def __init__(self, points: Tensor, most: int) -> None:
        self.points, self.size = points, even_tile_size(len(points), most)
        self.blocks = list(blocks_of(points, self.size))
        self.norms = points.new_zeros(len(self.blocks) * self.size)
        count, dim = points.shape
        task = load().ParzenNorms(
            is_double=is_double(points), count=count, dim=dim, points=points.data_ptr(), norms=self.norms.data_ptr()
        )
        launch(task.run, points)

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
        task = load().ParzenGather(
            is_double=is_double(p),
            rows=rows.stop - rows.start,
            columns=columns.stop - columns.start,
            stride=len(q),
            dim=q.shape[1],
            coefficients=c.data_ptr(),
            products=products.data_ptr(),
            row_points=p.data_ptr(),
            column_points=q.data_ptr(),
            row_norms=self.side.norms_from(rows.start),
            column_norms=self.other.norms_from(columns.start),
            far=self.far,
            gradient=self.total[rows].data_ptr(),
        )
        launch(task.run, p)


def _tiles(call: Parzen, rows: _Side, columns: _Side, grad: Tensor | None = None) -> Iterator[tuple[int, int, Tensor]]:
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
                is_double=is_double(points),
                rows=r.stop - r.start,
                columns=s.stop - s.start,
                stride=columns.size,
                dim=points.shape[1],
                products=products.data_ptr(),
                points=p.data_ptr(),
                samples=q.data_ptr(),
                point_norms=rows.norms_from(r.start),
                sample_norms=columns.norms_from(s.start),
                sigmas=call.sigmas,
                points_in_all=len(points),
                minimum=call.minimum[r].data_ptr(),
                sums=call.sums[:, r].data_ptr(),
                grad=0 if grad is None else grad[:, r].data_ptr(),
            )
            run(task, points)
            yield i, j, products
