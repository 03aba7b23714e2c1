"""Parzen log-density sums in Triton: all bandwidths in one pass over the distances.

    minimum_i = min_j r_ij
    sums_si   = sum_j exp((minimum_i - r_ij) t_s)          t_s = 1 / (2 sigma_s^2)

A program holds BLOCK_I points and walks over tiles of samples with a running minimum, which rescales the sums when it
falls (an online log-sum-exp). Splits over the samples let few points fill a device; the host merges them in order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import interpreted
from .tiles import constant, coordinate, exponentials, rescaled, splits, squared_distances, squared_norms

F64 = torch.float64
DIRECT_DIMS = 16  # up to here distances by differences, beyond by products
CANCELLING = 9000.0  # |x|^2 / (2 sigma^2), beyond which the rounding of products costs 0.005 nats
SLOTS = 16  # coordinates of a gradient that are kept in registers, beyond in memory


@triton.jit
def update_kernel(
    points,  # [M, dim]
    samples,  # [N, dim]
    point_norms,  # [M]; unread with DIRECT
    sample_norms,  # [N]
    rates,  # [S]: t
    cancel,  # [1] int32: whether products lose too much; unread with DIRECT
    minimum,  # [splits, M]
    sums,  # [splits, S, M] float64
    m,
    n,
    split_tiles,  # tiles of samples in a split
    dim: tl.constexpr,
    S: tl.constexpr,
    S_SLOTS: tl.constexpr,
    DIRECT: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    block, split = tl.program_id(0), tl.program_id(1)
    dtype: tl.constexpr = points.dtype.element_ty
    i = block * BLOCK_I + tl.arange(0, BLOCK_I)
    cancels = False if DIRECT else tl.load(cancel) > 0
    slot = tl.arange(0, S_SLOTS)
    t = tl.load(rates + slot, mask=slot < S, other=0.0)
    nearest = tl.full([BLOCK_I], float("inf"), dtype)
    totals = tl.zeros([BLOCK_I, S_SLOTS], tl.float64)
    for tile in range(split * split_tiles, tl.minimum((split + 1) * split_tiles, tl.cdiv(n, BLOCK_J))):
        j = tile * BLOCK_J + tl.arange(0, BLOCK_J)
        r = squared_distances(points, samples, point_norms, sample_norms, i, j, m, n, dim, DIRECT, cancels, BLOCK_D)
        r = tl.where((j < n)[None, :], r, float("inf"))
        lower = tl.minimum(nearest, tl.min(r, axis=1))
        totals = rescaled(totals, nearest, lower, t)
        nearest = lower
        for s in tl.static_range(S):
            excess = tl.where((j < n)[None, :], (nearest[:, None] - r) * tl.load(rates + s), -1e4)
            added = tl.sum(exponentials(excess)[1], axis=1).to(tl.float64)
            totals += tl.where(slot[None, :] == s, added[:, None], 0.0)
    tl.store(minimum + split * m + i, nearest, mask=i < m)
    at = sums + (split * S + slot.to(tl.int64)[None, :]) * m + i[:, None]
    tl.store(at, totals, mask=(i < m)[:, None] & (slot < S)[None, :])


@triton.jit
def gradient_kernel(
    rows,  # [n, dim]: the points whose gradients these are
    columns,  # [m, dim]
    row_norms,
    column_norms,
    rates,  # [S]: t
    cancel,  # [1] int32: whether products lose too much; unread with DIRECT
    nearest,  # minimum [M] of the points, whichever side they are
    shares,  # [S, M] float64 of the points: grad / (sums sigma^2)
    gradient,  # [splits, n, dim] float64, zeros
    n,
    m,
    split_tiles,  # tiles of columns in a split
    dim: tl.constexpr,
    DIM_SLOTS: tl.constexpr,  # power of 2 of at least dim, 1 where the gradient is kept in memory
    S: tl.constexpr,
    ROWS_ARE_POINTS: tl.constexpr,
    DIRECT: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    block, split = tl.program_id(0), tl.program_id(1)
    dtype: tl.constexpr = rows.dtype.element_ty
    i = block * BLOCK_I + tl.arange(0, BLOCK_I)
    at = gradient + (split * n + i).to(tl.int64) * dim
    cancels = False if DIRECT else tl.load(cancel) > 0
    slot = tl.arange(0, DIM_SLOTS)
    gradients = tl.zeros([BLOCK_I, DIM_SLOTS], tl.float64)
    for tile in range(split * split_tiles, tl.minimum((split + 1) * split_tiles, tl.cdiv(m, BLOCK_J))):
        j = tile * BLOCK_J + tl.arange(0, BLOCK_J)
        r = squared_distances(rows, columns, row_norms, column_norms, i, j, n, m, dim, DIRECT, cancels, BLOCK_D)
        if ROWS_ARE_POINTS:
            smallest = tl.load(nearest + i, mask=i < n, other=0.0)[:, None]
        else:
            smallest = tl.load(nearest + j, mask=j < m, other=0.0)[None, :]
        c = tl.zeros_like(r)
        for s in tl.static_range(S):
            if ROWS_ARE_POINTS:
                share = tl.load(shares + s * n + i, mask=i < n, other=0.0).to(dtype)[:, None]
            else:
                share = tl.load(shares + s * m + j, mask=j < m, other=0.0).to(dtype)[None, :]
            c += share * exponentials((smallest - r) * tl.load(rates + s))[1]
        c = tl.where((j < m)[None, :], c, 0.0)
        for d in range(dim):
            difference = coordinate(columns, j, m, dim, d)[None, :] - coordinate(rows, i, n, dim, d)[:, None]
            sums = tl.sum(c * difference, axis=1).to(tl.float64)
            if DIM_SLOTS >= dim:
                gradients += tl.where(slot[None, :] == d, sums[:, None], 0.0)
            else:
                tl.store(at + d, tl.load(at + d, mask=i < n, other=0.0) + sums, mask=i < n)
    if DIM_SLOTS >= dim:
        tl.store(at[:, None] + slot[None, :], gradients, mask=(i < n)[:, None] & (slot < dim)[None, :])


def parzen_update(points: Tensor, samples: Tensor, sigmas: Sequence[float], minimum: Tensor, sums: Tensor) -> None:
    """Add the samples to minimum [M] and sums [S, M] in place."""
    (m, dim), n, count = points.shape, len(samples), len(sigmas)
    if m == 0 or n == 0:
        return
    direct = dim <= DIRECT_DIMS
    block_i, block_j, block_d = _blocks(m, n, dim)
    blocks, tiles = triton.cdiv(m, block_i), triton.cdiv(n, block_j)
    parts, per_split = splits(blocks, tiles)
    found = points.new_empty((parts, m))
    totals = points.new_empty((parts, count, m), dtype=F64)
    rates = _rates(sigmas, points)
    update_kernel[(blocks, parts)](
        points, samples, *_norms(direct, rates, points, samples), found, totals, m, n, per_split,
        dim=dim, S=count, S_SLOTS=triton.next_power_of_2(count), DIRECT=direct,
        BLOCK_I=block_i, BLOCK_J=block_j, BLOCK_D=block_d, num_warps=8,
    )  # fmt: skip
    found = torch.cat([minimum[None], found])
    totals = torch.cat([sums[None], totals])
    nearest = found.amin(0)
    # The state before the first samples has minimum inf and sums 0: nothing to rescale.
    excess = torch.where(found.isinf(), 0.0, (nearest - found).to(F64))
    sums.copy_((totals * torch.exp(excess[:, None] * rates.to(F64)[:, None])).sum(0))
    minimum.copy_(nearest)


def parzen_backward(
    grad: Tensor,
    points: Tensor,
    samples: Tensor,
    sigmas: Sequence[float],
    minimum: Tensor,
    sums: Tensor,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of sum grad * log-density in points [M, D] and samples [N, D]; empty where not needed."""
    rates = _rates(sigmas, points)
    shares = grad.to(F64) / sums * (2 * rates.to(F64))[:, None]

    def gradient(rows: Tensor, columns: Tensor, rows_are_points: bool) -> Tensor:
        (n, dim), m = rows.shape, len(columns)
        direct = dim <= DIRECT_DIMS
        block_i, block_j, block_d = _blocks(n, m, dim, 32)
        blocks, tiles = triton.cdiv(n, block_i), triton.cdiv(m, block_j)
        parts, per_split = splits(blocks, tiles)
        out = rows.new_zeros((parts, n, dim), dtype=F64)
        if n and m:
            gradient_kernel[(blocks, parts)](
                rows, columns, *_norms(direct, rates, rows, columns), minimum, shares, out, n, m, per_split,
                dim=dim, DIM_SLOTS=triton.next_power_of_2(dim) if dim <= SLOTS else 1, S=len(sigmas),
                ROWS_ARE_POINTS=rows_are_points, DIRECT=direct,
                BLOCK_I=block_i, BLOCK_J=block_j, BLOCK_D=block_d, num_warps=8,
            )  # fmt: skip
        return out.sum(0).to(rows.dtype)

    return (
        gradient(points, samples, True) if needs[0] else points.new_empty(0),
        gradient(samples, points, False) if needs[1] else points.new_empty(0),
    )


def _rates(sigmas: Sequence[float], like: Tensor) -> Tensor:
    return constant(tuple(0.5 / sigma**2 for sigma in sigmas), like.device, like.dtype)


def _norms(direct: bool, rates: Tensor, *samples: Tensor) -> tuple[Tensor, ...]:
    """Squared norms [N] of both, the rates, and whether products cancel; the points where nothing reads these."""
    if direct:
        return (*samples, rates, rates)
    norms = [squared_norms(points) for points in samples]
    largest = torch.stack([n.amax() for n in norms]).amax() * rates.amax()
    return (*norms, rates, (largest > CANCELLING).to(torch.int32))


def _blocks(m: int, n: int, dim: int, rows: int = 64) -> tuple[int, int, int]:
    """Points, samples and dimensions of a tile. The interpreter's time is its number of operations."""
    if interpreted():
        return (
            max(16, min(128, triton.next_power_of_2(m))),
            max(16, min(1024, triton.next_power_of_2(n))),
            max(16, min(1024, triton.next_power_of_2(dim))),
        )
    return rows, 64, 32
