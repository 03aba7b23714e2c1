"""Points measured from the middle of two samples, for distances by products."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .. import interpreted
from ..launch import FUSED
from ..math import checked
from ..points import coordinates, place_and_member


@triton.jit(do_not_specialize=["n"])
def centered_kernel(
    points,  # [B, n, dim]
    one_center,  # [B, dim] float64
    other_center,  # [B, dim] float64
    moved,  # [B, n, dim]: points - the middle of both centers
    norms,  # [B, n]: their squares, NaN where a coordinate is not finite
    n,
    dim: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    block, b = place_and_member(tl.cdiv(n, BLOCK_I))
    i = block * BLOCK_I + tl.arange(0, BLOCK_I)
    points += b * n * dim
    moved += b * n * dim
    norm = tl.zeros([BLOCK_I], tl.float64)
    for first in range(0, dim, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        there = (i < n)[:, None] & (d < dim)[None, :]
        middle = tl.load(one_center + b * dim + d, mask=d < dim, other=0.0)
        middle = 0.5 * (middle + tl.load(other_center + b * dim + d, mask=d < dim, other=0.0))
        x = tl.where(there, coordinates(points, i, n, dim, d).to(tl.float64) - middle[None, :], 0.0)
        rounded = x.to(points.dtype.element_ty)
        tl.store(moved + i.to(tl.int64)[:, None] * dim + d[None, :], rounded, mask=there)
        norm += tl.sum(rounded.to(tl.float64) * rounded.to(tl.float64), axis=1)
    tl.store(norms + b * n + i, checked(norm), mask=i < n)


def centered(points: Tensor, one_center: Tensor, other_center: Tensor) -> tuple[Tensor, Tensor]:
    """The points [B, N, D] from the middle of two centers [B, D], and their squared norms [B, N]."""
    batch, n, dim = points.shape
    moved, norms = points.new_empty(points.shape), points.new_empty((batch, n))
    block_i, block_d = (256, 1024) if interpreted() else (8, 128)
    block_d = min(block_d, triton.next_power_of_2(dim))
    centered_kernel[(triton.cdiv(n, block_i) * batch,)](
        points, one_center, other_center, moved, norms, n, dim=dim, BLOCK_I=block_i, BLOCK_D=block_d, num_warps=4,
        **FUSED,
    )  # fmt: skip
    return moved, norms
