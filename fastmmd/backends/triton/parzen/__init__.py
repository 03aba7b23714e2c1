"""Parzen log-density sums in Triton: all bandwidths in one pass over the distances.

    minimum_i = min_j r_ij
    sums_si   = sum_j exp((minimum_i - r_ij) t_s)          t_s = 1 / (2 sigma_s^2)
    gradient of a point  = sum_j c_ij (q_j - p_i)          c_ij = sum_s share_si exp((minimum_i - r_ij) t_s)

A program holds BLOCK_I points and walks over tiles of samples with a running minimum, which rescales the sums when it
falls (an online log-sum-exp). Splits over the samples let few points fill a device; a last kernel merges them in order.

Many dimensions take r = |p|^2 + |q|^2 - 2 p . q, in float32 from the products of tensor cores. Pairs with so large a
norm that this loses digits go by differences in a launch of their own, as all do in few dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...calls import Parzen, ParzenBackward
from .. import interpreted
from ..tiles import FUSED, constant, coordinate, splits, squared_distances, squared_norms, stages, tuned
from .halves import add_products, halves_of, padded, products, unit

F64 = torch.float64
LOG2_E = 1.4426950408889634
DIRECT_DIMS = tl.constexpr(16)  # up to here by differences
CANCELING = 8000.0  # |x|^2 / (2 sigma^2), beyond which the rounding of products may cost 0.005 nats


@triton.jit
def distances(
    p, q, p_halves, q_halves, p_norms, q_norms, i, j, n, m, limit, dim: tl.constexpr, DIMS: tl.constexpr,
    HALVES: tl.constexpr, CANCELING: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """r of the points i of p [n, dim] and j of q [m, dim], with the halves of both; inf in the padding of q, and for
    the pairs of the launch with the other CANCELING: those with a squared norm beyond the limit, and all others."""
    if HALVES:
        r = products(p_halves, q_halves, DIMS, i.shape[0], j.shape[0], BLOCK_D) * unit(p_norms, i, n, limit)
        p_norm = tl.load(p_norms + i, mask=i < n, other=0.0)
        q_norm = tl.load(q_norms + j, mask=j < m, other=float("inf"))
        p_norm = tl.where(p_norm > limit, float("inf"), p_norm)
        q_norm = tl.where(q_norm > limit, float("inf"), q_norm)
        r = (p_norm[:, None] + q_norm[None, :]) - r * (2 * unit(q_norms, j, m, limit))
        r = tl.maximum(r, 0.0, propagate_nan=tl.PropagateNan.ALL)
    else:
        direct: tl.constexpr = CANCELING or dim <= DIRECT_DIMS
        r = squared_distances(p, q, p_norms, q_norms, i, j, n, m, dim, direct, BLOCK_D)
        there = (j < m)[None, :]
        if dim > DIRECT_DIMS:
            p_beyond = tl.load(p_norms + i, mask=i < n, other=0.0) > limit
            q_beyond = tl.load(q_norms + j, mask=j < m, other=0.0) > limit
            there = there & ((p_beyond[:, None] | q_beyond[None, :]) == CANCELING)
        r = tl.where(there, r, float("inf"))
    return r


@triton.jit
def canceling(p_norms, q_norms, i, j, n, m, limit):
    """Whether a tile has any pair whose products cancel."""
    p_norm, q_norm = tl.load(p_norms + i, mask=i < n, other=0.0), tl.load(q_norms + j, mask=j < m, other=0.0)
    return tl.maximum(tl.max(p_norm), tl.max(q_norm)) > limit


@triton.jit
def update_kernel(
    points,  # [M, dim]
    samples,  # [N, dim]
    point_halves,  # [padded M, 2, DIMS] float16; unread without HALVES
    sample_halves,  # [padded N, 2, DIMS]
    point_norms,  # [M]; unread with few dimensions
    sample_norms,  # [N]
    rates,  # [S]: t log2 e
    minimum,  # [splits, M]
    sums,  # [splits, S, M] float64
    limit,  # squared norm beyond which products cancel
    m,
    n,
    split_tiles,  # tiles of samples in a split
    dim: tl.constexpr,
    DIMS: tl.constexpr,
    S: tl.constexpr,
    HALVES: tl.constexpr,  # whether products are those of halves: halves.py
    CANCELING: tl.constexpr,  # whether for pairs whose products cancel, or all others
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    block, split = tl.program_id(0), tl.program_id(1)
    i = block * BLOCK_I + tl.arange(0, BLOCK_I)
    left_halves = point_halves + block * tl.full([], 2 * DIMS * BLOCK_I, tl.int64)
    at = sums + (split * S).to(tl.int64) * m + i
    nearest = tl.full([BLOCK_I], float("inf"), points.dtype.element_ty)
    for s in range(S):
        tl.store(at + s * m, tl.zeros([BLOCK_I], tl.float64), mask=i < m)
    for tile in range(split * split_tiles, tl.minimum((split + 1) * split_tiles, tl.cdiv(n, BLOCK_J))):
        j = tile * BLOCK_J + tl.arange(0, BLOCK_J)
        if not CANCELING or canceling(point_norms, sample_norms, i, j, m, n, limit):
            right_halves = sample_halves + tile * tl.full([], 2 * DIMS * BLOCK_J, tl.int64)
            r = distances(
                points, samples, left_halves, right_halves, point_norms, sample_norms, i, j, m, n, limit,
                dim, DIMS, HALVES, CANCELING, BLOCK_D,
            )  # fmt: skip
            before, nearest = nearest, tl.minimum(nearest, tl.min(r, axis=1))
            lowest = tl.where(nearest == float("inf"), 0.0, nearest)  # inf - inf is no number
            tl.debug_barrier()  # another thread may have stored the sums
            for s in range(S):  # not unrolled, and its sums in memory: the products take the registers
                t = tl.load(rates + s)
                total = tl.load(at + s * m, mask=i < m, other=0.0) * tl.exp2((lowest - before) * t).to(tl.float64)
                total += tl.sum(tl.exp2((lowest[:, None] - r) * t), axis=1).to(tl.float64)
                tl.store(at + s * m, total, mask=i < m)
    tl.store(minimum + split * m + i, nearest, mask=i < m)


@triton.jit
def merge_kernel(
    found,  # [splits, M]: minima
    found_sums,  # [splits, S, M] float64
    rates,  # [S]: t log2 e
    minimum,  # [M]: the state, which is replaced
    sums,  # [S, M] float64
    m,
    parts,
    S: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    before = tl.load(minimum + i, mask=i < m, other=0.0)
    nearest = before
    for part in range(parts):
        nearest = tl.minimum(nearest, tl.load(found + part * m + i, mask=i < m, other=0.0))
    for s in range(S):
        t = tl.load(rates + s)
        at = sums + s * m + i
        total = tl.load(at, mask=i < m, other=0.0) * tl.exp2((nearest - before) * t).to(tl.float64)
        there = found_sums + s * m + i
        for part in range(parts):
            fallen = nearest - tl.load(found + part * m + i, mask=i < m, other=0.0)
            total += tl.load(there, mask=i < m, other=0.0) * tl.exp2(fallen * t).to(tl.float64)
            there += S * m
        tl.store(at, total, mask=i < m)
    tl.store(minimum + i, nearest, mask=i < m)


@triton.jit
def of_points(values, i, j, n, m, ROWS_ARE_POINTS: tl.constexpr):
    """What the points have, as a column or a row of the tile: [BLOCK_I, 1] or [1, BLOCK_J]."""
    if ROWS_ARE_POINTS:
        result = tl.load(values + i, mask=i < n, other=0.0)[:, None]
    else:
        result = tl.load(values + j, mask=j < m, other=0.0)[None, :]
    return result


@triton.jit
def coefficients(r, nearest, shares, rates, i, j, n, m, S: tl.constexpr, ROWS_ARE_POINTS: tl.constexpr):
    """c_ij = sum_s share_s exp2((nearest - r) t_s): [BLOCK_I, BLOCK_J]."""
    excess = of_points(nearest, i, j, n, m, ROWS_ARE_POINTS) - r
    c = tl.zeros_like(r)
    for s in range(S):
        share = of_points(shares + s * (n if ROWS_ARE_POINTS else m), i, j, n, m, ROWS_ARE_POINTS)
        c += share * tl.exp2(excess * tl.load(rates + s))
    return c


@triton.jit
def gradient_kernel(
    rows,  # [n, dim]: the points whose gradients these are
    columns,  # [m, dim]
    row_halves,  # [padded n, 2, DIMS] float16; unread without HALVES
    column_halves,  # [padded m, 2, DIMS]
    row_norms,  # [n]; unread with few dimensions
    column_norms,  # [m]
    rates,  # [S]: t log2 e
    nearest,  # minimum [M] of the points, whichever side they are
    shares,  # [S, M] of the points: grad / (sums sigma^2)
    gradient,  # [splits, n, dim] float64
    limit,  # squared norm beyond which products cancel
    n,
    m,
    split_tiles,  # tiles of columns in a split
    dim: tl.constexpr,
    DIMS: tl.constexpr,
    S: tl.constexpr,
    ROWS_ARE_POINTS: tl.constexpr,
    HALVES: tl.constexpr,  # whether products are those of halves: halves.py
    CANCELING: tl.constexpr,  # whether for pairs whose products cancel, or all others
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    block, split = tl.program_id(0), tl.program_id(1)
    i = block * BLOCK_I + tl.arange(0, BLOCK_I)
    left_halves = row_halves + block * tl.full([], 2 * DIMS * BLOCK_I, tl.int64)
    at = gradient + (split * n + block * BLOCK_I).to(tl.int64) * dim + tl.arange(0, BLOCK_I) * dim
    first_tile = split * split_tiles
    for tile in range(first_tile, tl.minimum(first_tile + split_tiles, tl.cdiv(m, BLOCK_J))):
        j = tile * BLOCK_J + tl.arange(0, BLOCK_J)
        if not CANCELING or canceling(row_norms, column_norms, i, j, n, m, limit):
            right_halves = column_halves + tile * tl.full([], 2 * DIMS * BLOCK_J, tl.int64)
            r = distances(
                rows, columns, left_halves, right_halves, row_norms, column_norms, i, j, n, m, limit,
                dim, DIMS, HALVES, CANCELING, BLOCK_D,
            )  # fmt: skip
            c = coefficients(r, nearest, shares, rates, i, j, n, m, S, ROWS_ARE_POINTS)
            before = i < (n if CANCELING or tile > first_tile else 0)  # where there are sums of other tiles
            tl.debug_barrier()  # another thread may have stored the sums
            if HALVES:
                column_unit = unit(column_norms, j, m, limit)
                add_products(at, c, rows, right_halves, column_unit, i, n, before, dim, DIMS, BLOCK_D)
            else:
                for d in range(dim):
                    difference = coordinate(columns, j, m, dim, d)[None, :] - coordinate(rows, i, n, dim, d)[:, None]
                    sums = tl.load(at + d, mask=before, other=0.0) + tl.sum(c * difference, axis=1).to(tl.float64)
                    tl.store(at + d, sums, mask=i < n)


def parzen_update(call: Parzen) -> None:
    """Add the samples to minimum [M] and sums [S, M] in place."""
    points, samples, sigmas, minimum, sums = call.points, call.samples, call.sigmas, call.minimum, call.sums
    m, n, count = len(points), len(samples), len(sigmas)
    if m == 0 or n == 0:
        return
    tile = _tile(m, n, points, False)
    parts, per_split, launches = _launches(m, n, points, tile)
    rates, limit = _rates(sigmas, points)
    halves, norms = zip(*(_prepared(x, limit, tile) for x in (points, samples)), strict=True)
    found = points.new_empty((len(launches), parts, m))
    found_sums = points.new_empty((len(launches), parts, count, m), dtype=F64)
    for k, (blocks, options) in enumerate(launches):
        kernel, choice = tuned(update_kernel, m * n, *stages(options.pop("num_warps"), options["HALVES"]))
        kernel[(blocks, parts)](
            points, samples, *halves, *norms, rates, found[k], found_sums[k], limit, m, n, per_split,
            S=count, **options, **choice,
        )  # fmt: skip
    merge_kernel[(triton.cdiv(m, 128),)](
        found, found_sums, rates, minimum, sums, m, len(launches) * parts, S=count, BLOCK_I=128,
        num_warps=4, **FUSED,
    )  # fmt: skip


def parzen_backward(call: ParzenBackward) -> tuple[Tensor, Tensor]:
    """Gradients of sum grad * log-density in points [M, D] and samples [N, D]; empty where not needed."""
    forward, grad, needs = call.forward, call.grad, (call.needs_points, call.needs_samples)
    points, samples, sigmas = forward.points, forward.samples, forward.sigmas
    minimum, sums = forward.minimum, forward.sums
    if not (len(points) and len(samples)):
        return torch.zeros_like(points), torch.zeros_like(samples)
    tile = _tile(len(points), len(samples), points, True)
    rates, limit = _rates(sigmas, points)
    prepared = [_prepared(x, limit, tile) for x in (points, samples)]
    inverse_squares = constant(tuple(sigma**-2 for sigma in sigmas), grad.device, F64)
    shares = (grad / sums * inverse_squares[:, None]).to(points.dtype)

    def gradient(rows: Tensor, columns: Tensor, rows_are_points: bool) -> Tensor:
        n, m = len(rows), len(columns)
        parts, per_split, launches = _launches(n, m, points, tile)
        halves, norms = zip(*(prepared if rows_are_points else prepared[::-1]), strict=True)
        out = rows.new_empty((parts, *rows.shape), dtype=F64)
        for blocks, options in launches:
            gradient_kernel[(blocks, parts)](
                rows, columns, *halves, *norms, rates, minimum, shares, out, limit, n, m, per_split,
                S=len(sigmas), ROWS_ARE_POINTS=rows_are_points, **options, **FUSED,
            )  # fmt: skip
        return out.sum(0).to(rows.dtype)

    return (
        gradient(points, samples, True) if needs[0] else points.new_empty(0),
        gradient(samples, points, False) if needs[1] else points.new_empty(0),
    )


def _rates(sigmas: Sequence[float], like: Tensor) -> tuple[Tensor, float]:
    """t log2 e of all sigmas [S], neither 0 nor subnormal, and the squared norm beyond which products cancel."""
    rates = tuple(max(0.5 * LOG2_E / sigma**2, 2.0**-126) for sigma in sigmas)
    limit = 2 * CANCELING * min(sigmas) ** 2 * (2.0**29 if like.dtype == F64 else 1)  # the ratio of precisions
    return constant(rates, like.device, like.dtype), min(limit, 1e38)


def _tile(n: int, m: int, points: Tensor, gradient: bool) -> dict[str, int]:
    """Sizes of a tile, warps of a program. The interpreter's time is its number of operations."""
    size, dims, warps = 64, 32, 8
    if interpreted():
        size = max(16, min(256, triton.next_power_of_2(max(n, m))))
        dims = max(16, min(128, triton.next_power_of_2(points.shape[1])))
    elif points.shape[1] > DIRECT_DIMS.value and points.dtype == torch.float32:
        size, warps = (64, 4) if gradient else (128, 8)  # for each warp 16 rows, as tensor cores take them
    return dict(BLOCK_I=size, BLOCK_J=size, BLOCK_D=dims, num_warps=warps)


def _launches(
    n: int, m: int, points: Tensor, tile: dict[str, int]
) -> tuple[int, int, list[tuple[int, dict[str, Any]]]]:
    """Splits of m columns, the tiles of one, and for each launch the blocks of n rows and the options."""
    dim, wide = points.shape[1], points.shape[1] > DIRECT_DIMS.value
    parts, per_split = splits(triton.cdiv(n, tile["BLOCK_I"]), triton.cdiv(m, tile["BLOCK_J"]))
    options = dict(dim=dim, DIMS=padded(dim, tile["BLOCK_D"]), HALVES=wide and points.dtype == torch.float32, **tile)
    launches = [options | dict(CANCELING=False)]
    if wide:
        launches.append(options | dict(CANCELING=True, HALVES=False, BLOCK_I=min(tile["BLOCK_I"], 32)))
    return parts, per_split, [(triton.cdiv(n, launch["BLOCK_I"]), launch) for launch in launches]


def _prepared(points: Tensor, limit: float, tile: dict[str, int]) -> tuple[Tensor, Tensor]:
    """Halves and squared norms; the points where nothing reads these."""
    if points.shape[1] <= DIRECT_DIMS.value:
        return points, points
    if points.dtype == F64:
        return points, squared_norms(points)
    return halves_of(points, limit, tile["BLOCK_I"], tile["BLOCK_D"])
