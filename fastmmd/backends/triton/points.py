"""Points in Triton: their coordinates, and squared distances between those of a tile."""

from __future__ import annotations

import triton
import triton.language as tl

from .math import checked


@triton.jit
def place_and_member(each):
    """Where a program is among the `each` of its member of the batch, and the member: both on the first axis of a grid,
    as the others end at 65,535."""
    return tl.program_id(0) % each, (tl.program_id(0) // each).to(tl.int64)


@triton.jit
def squared_distances(
    p, q, p_norms, q_norms, i, j, n, m, dim: tl.constexpr, DIRECT: tl.constexpr, BLOCK_D: tl.constexpr
):
    """r of the points i of p [n, dim] and j of q [m, dim]; any number in the padding.

    By differences, or as |p|^2 + |q|^2 - 2 p . q in full precision: tensor cores would take float32 as TF32.
    """
    dtype: tl.constexpr = p.dtype.element_ty
    r = tl.zeros([i.shape[0], j.shape[0]], dtype)
    if DIRECT:
        r = _by_differences(p, q, i, j, n, m, dim)
    else:
        for first in range(0, dim, BLOCK_D):
            d = first + tl.arange(0, BLOCK_D)
            left, right = coordinates(p, i, n, dim, d), coordinates(q, j, m, dim, d)
            r = tl.dot(left, tl.trans(right), r, input_precision="ieee", out_dtype=dtype)
        left_norms = tl.load(p_norms + i, mask=i < n, other=0.0)
        right_norms = tl.load(q_norms + j, mask=j < m, other=0.0)
        r = (left_norms[:, None] + right_norms[None, :]) - 2 * r
        r = tl.where(r < 0, 0.0, r)
    return r


@triton.jit
def _by_differences(p, q, i, j, n, m, dim: tl.constexpr):
    r = tl.zeros([i.shape[0], j.shape[0]], p.dtype.element_ty)
    if dim <= 16:
        for d in tl.static_range(dim):
            r += _square(p, q, i, j, n, m, dim, d)
    else:
        for d in range(dim):
            r += _square(p, q, i, j, n, m, dim, d)
    return r


@triton.jit
def _square(p, q, i, j, n, m, dim, d):
    difference = coordinate(p, i, n, dim, d)[:, None] - coordinate(q, j, m, dim, d)[None, :]
    return difference * difference


@triton.jit
def coordinates(points, i, n, dim, d):
    """Coordinates d of the points i: [BLOCK, BLOCK_D]; 0 in the padding."""
    at = points + i.to(tl.int64)[:, None] * dim + d[None, :]
    return tl.load(at, mask=(i < n)[:, None] & (d < dim)[None, :], other=0.0)


@triton.jit
def coordinate(points, i, n, dim, d):
    """Coordinate d of the points i: [BLOCK]; 0 in the padding."""
    return checked(tl.load(points + i.to(tl.int64) * dim + d, mask=i < n, other=0.0))
