"""Parzen windows: tiles of products by BLAS and the compiled step on them, differences for few dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..calls import Parzen, ParzenBackward
from .library import address, is_double, load, threads
from .products import blocks_of, full_precision, squared_norms, tile_size

PARZEN_DIRECT_DIMS = 16  # up to here distances by differences cost less than a matrix product
PARZEN_ROWS, PARZEN_COLUMNS = 1024, 1024  # products large enough for BLAS, small enough for the cache
PARZEN_LARGEST_EXPONENT = 9000  # |x|^2 / (2 sigma^2); four roundings of 2^-24 of it are 0.002


def parzen_update(call: Parzen) -> None:
    """Add samples to minimum [M] and sums [S, M], in place."""
    points, samples, sigmas, minimum, sums = call.points, call.samples, call.sigmas, call.minimum, call.sums
    if points.shape[1] <= PARZEN_DIRECT_DIMS:
        _parzen_direct(points, samples, sigmas, minimum, sums, None, points.new_empty(0), points.new_empty(0))
        return
    if _cancels(points, samples, sigmas):
        wide = minimum.double()
        parzen_update(Parzen(points.double(), samples.double(), sigmas, wide, sums))
        minimum.copy_(wide)
        for s, sigma in enumerate(sigmas):  # the sums are relative to the minimum as it was rounded
            sums[s] *= torch.exp((minimum.double() - wide) * (0.5 / sigma**2))
        return
    for _ in _parzen_tiles(points, samples, sigmas, minimum, sums, None):
        pass


def parzen_backward(call: ParzenBackward) -> tuple[Tensor, Tensor]:
    """Gradients of sum grad (log sums - minimum / (2 sigma^2)) in points [M, D] and samples [N, D]."""
    forward, grad, needs = call.forward, call.grad, (call.needs_points, call.needs_samples)
    points, samples, sigmas = forward.points, forward.samples, forward.sigmas
    minimum, sums = forward.minimum, forward.sums
    if _cancels(points, samples, sigmas):
        wide = Parzen(points.double(), samples.double(), sigmas, minimum.double(), sums)
        g_points, g_samples = parzen_backward(replace(call, forward=wide, grad=grad.double()))
        return g_points.to(points.dtype), g_samples.to(points.dtype)
    direct = points.shape[1] <= PARZEN_DIRECT_DIMS
    new = torch.empty_like if direct else torch.zeros_like
    g_points = new(points) if needs[0] else points.new_empty(0)
    g_samples = new(samples) if needs[1] else points.new_empty(0)
    if direct:
        _parzen_direct(points, samples, sigmas, minimum, sums, grad, g_points, g_samples)
        return g_points, g_samples
    row_sums, column_sums = points.new_zeros(len(points)), points.new_zeros(len(samples))
    for i, j, p, q, c in _parzen_tiles(points, samples, sigmas, minimum, sums, grad):
        if needs[0]:
            g_points[i] += (c @ q)[: i.stop - i.start]
            row_sums[i] += c.sum(1)[: i.stop - i.start]
        if needs[1]:
            g_samples[j] += (c.T @ p)[: j.stop - j.start]
            column_sums[j] += c.sum(0)[: j.stop - j.start]
    if needs[0]:
        g_points.addcmul_(points, row_sums[:, None], value=-1)
    if needs[1]:
        g_samples.addcmul_(samples, column_sums[:, None], value=-1)
    return g_points, g_samples


def _cancels(points: Tensor, samples: Tensor, sigmas: Sequence[float]) -> bool:
    """Whether |x|^2 + |s|^2 - 2 x . s in float32 would lose more than about 0.002 nats: then it takes float64."""
    if points.dtype != torch.float32 or points.shape[1] <= PARZEN_DIRECT_DIMS:
        return False
    norms = [torch.linalg.vector_norm(part, dim=1).max().item() for part in (points, samples) if len(part)]
    largest = max(norms, default=0.0)
    return bool(largest**2 / (2 * min(sigmas) ** 2) > PARZEN_LARGEST_EXPONENT)


def _parzen_direct(
    points: Tensor,
    samples: Tensor,
    sigmas: Sequence[float],
    minimum: Tensor,
    sums: Tensor,
    grad: Tensor | None,
    g_points: Tensor,
    g_samples: Tensor,
) -> None:
    load().parzen_direct(
        is_double(points), threads(), len(points), *samples.shape, points.data_ptr(), samples.data_ptr(),
        sigmas, minimum.data_ptr(), sums.data_ptr(), address(grad), address(g_points), address(g_samples),
    )  # fmt: skip


def _parzen_tiles(
    points: Tensor,
    samples: Tensor,
    sigmas: Sequence[float],
    minimum: Tensor,
    sums: Tensor,
    grad: Tensor | None,
) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
    """Products tile by tile, each an identical call on zero-padded blocks, and the fused step on them.

    Yields the rows and columns of the tile, their padded blocks [rows, D] and [columns, D], and the tile as
    the fused step leaves it: coefficients where grad is given.
    """
    library, m = load(), len(points)
    rows, columns = tile_size(m, PARZEN_ROWS), tile_size(len(samples), PARZEN_COLUMNS)
    products = points.new_empty((rows, columns))
    size = points.element_size()
    blocks = [(i, p, squared_norms(p)) for i, p in blocks_of(points, rows)]
    with full_precision():
        for j, q in blocks_of(samples, columns):
            q_norms = squared_norms(q)
            for i, p, p_norms in blocks:
                torch.mm(p, q.T, out=products)
                library.parzen_tile(
                    is_double(points), threads(), i.stop - i.start, j.stop - j.start, columns,
                    products.data_ptr(), p_norms.data_ptr(), q_norms.data_ptr(), sigmas, m,
                    minimum.data_ptr() + i.start * size, sums.data_ptr() + i.start * sums.element_size(),
                    0 if grad is None else grad.data_ptr() + i.start * size,
                )  # fmt: skip
                yield i, j, p, q, products
