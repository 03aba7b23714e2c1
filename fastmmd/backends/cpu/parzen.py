"""Parzen windows: tiles of products by BLAS and the compiled step on them, differences for few dimensions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..calls import Parzen, ParzenBackward
from ..common.native import address, is_double
from ..common.parzen import rounded_state
from ..common.products import blocks_of, full_precision, squared_norms, tile_size
from .library import load, threads

PARZEN_DIRECT_DIMS = 16  # up to here distances by differences cost less than a matrix product
PARZEN_ROWS, PARZEN_COLUMNS = 1024, 1024  # products large enough for BLAS, small enough for the cache
PARZEN_LARGEST_EXPONENT = 9000  # |x|^2 / (2 sigma^2); four roundings of 2^-24 of it are 0.002


def parzen_update(call: Parzen) -> None:
    """Add samples to minimum [M] and sums [S, M], in place."""
    suited, direct = _suited(call)
    suited = rounded_state(suited)
    if direct:
        _direct(suited, None, suited.points.new_empty(0), suited.points.new_empty(0))
    else:
        for _ in _tiles(suited, None):
            pass
    call.minimum.copy_(suited.minimum)


def parzen_backward(call: ParzenBackward) -> tuple[Tensor, Tensor]:
    """Gradients of sum grad (log sums - minimum / (2 sigma^2)) in points [M, D] and samples [N, D]."""
    forward, direct = _suited(call.forward)
    points, samples, dtype = forward.points, forward.samples, call.forward.points.dtype
    forward, grad = replace(forward, minimum=forward.minimum.to(points.dtype)), call.grad.to(points.dtype)
    new = torch.empty_like if direct else torch.zeros_like
    g_points = new(points) if call.needs_points else points.new_empty(0)
    g_samples = new(samples) if call.needs_samples else points.new_empty(0)
    if direct:
        _direct(forward, grad, g_points, g_samples)
        return g_points.to(dtype), g_samples.to(dtype)
    row_sums, column_sums = points.new_zeros(len(points)), points.new_zeros(len(samples))
    for i, j, p, q, c in _tiles(forward, grad):
        if call.needs_points:
            g_points[i] += (c @ q)[: i.stop - i.start]
            row_sums[i] += c.sum(1)[: i.stop - i.start]
        if call.needs_samples:
            g_samples[j] += (c.T @ p)[: j.stop - j.start]
            column_sums[j] += c.sum(0)[: j.stop - j.start]
    if call.needs_points:
        g_points.addcmul_(points, row_sums[:, None], value=-1)
    if call.needs_samples:
        g_samples.addcmul_(samples, column_sums[:, None], value=-1)
    return g_points.to(dtype), g_samples.to(dtype)


def _suited(call: Parzen) -> tuple[Parzen, bool]:
    """The call in a precision that keeps the digits of its distances, and whether they are taken by differences.

    Where |x|^2 + |s|^2 - 2 x . s in float32 would lose more than about 0.002 nats, it takes float64; where it would
    there, differences.
    """
    points, samples = call.points, call.samples
    if points.shape[1] <= PARZEN_DIRECT_DIMS:
        return call, True
    norms = [torch.linalg.vector_norm(part, dim=1) for part in (points, samples) if len(part)]
    ratio = max((part.nan_to_num_(0.0, math.inf).max().item() for part in norms), default=0.0) / min(call.sigmas)
    exponent = ratio * ratio / 2
    if exponent > PARZEN_LARGEST_EXPONENT and points.dtype == torch.float32:
        call = replace(call, points=points.double(), samples=samples.double())
    return call, exponent > PARZEN_LARGEST_EXPONENT * 2.0**29


def _direct(call: Parzen, grad: Tensor | None, g_points: Tensor, g_samples: Tensor) -> None:
    points, samples = call.points, call.samples
    load().parzen_direct(
        is_double=is_double(points),
        threads=threads(),
        m=len(points),
        n=len(samples),
        dim=samples.shape[1],
        points=points.data_ptr(),
        samples=samples.data_ptr(),
        sigmas=call.sigmas,
        minimum=call.minimum.data_ptr(),
        sums=call.sums.data_ptr(),
        grad=address(grad),
        grad_points=address(g_points),
        grad_samples=address(g_samples),
    )


def _tiles(call: Parzen, grad: Tensor | None) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
    """Products tile by tile, each an identical call on zero-padded blocks, and the fused step on them.

    Yields the rows and columns of the tile, their padded blocks [rows, D] and [columns, D], and the tile as
    the fused step leaves it: coefficients where grad is given.
    """
    library, points, samples, minimum, sums = load(), call.points, call.samples, call.minimum, call.sums
    rows, columns = tile_size(len(points), PARZEN_ROWS), tile_size(len(samples), PARZEN_COLUMNS)
    products = points.new_empty((rows, columns))
    size = points.element_size()
    blocks = [(i, p, squared_norms(p)) for i, p in blocks_of(points, rows)]
    with full_precision():
        for j, q in blocks_of(samples, columns):
            q_norms = squared_norms(q)
            for i, p, p_norms in blocks:
                torch.mm(p, q.T, out=products)
                library.parzen_tile(
                    is_double=is_double(points),
                    threads=threads(),
                    rows=i.stop - i.start,
                    columns=j.stop - j.start,
                    stride=columns,
                    products=products.data_ptr(),
                    row_norms=p_norms.data_ptr(),
                    column_norms=q_norms.data_ptr(),
                    sigmas=call.sigmas,
                    points=len(points),
                    minimum=minimum.data_ptr() + i.start * size,
                    sums=sums.data_ptr() + i.start * sums.element_size(),
                    grad=0 if grad is None else grad.data_ptr() + i.start * size,
                )
                yield i, j, p, q, products
