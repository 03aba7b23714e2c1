"""Kernels of Parzen windows: sums over samples, their merging, gradients.

A program holds BLOCK_I points and walks over tiles of samples with a running minimum, which rescales the sums when it
falls (an online log-sum-exp). Splits over the samples let few points fill a device; a last kernel merges them in order.

Many dimensions take r = |p|^2 + |q|^2 - 2 p . q, in float32 from the products of tensor cores. Pairs with so large a
norm that this loses digits go by differences in a launch of their own, as all do in few dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..points import coordinate, squared_distances
from .halves import add_products, products, unit

LARGEST = tl.constexpr(torch.finfo(torch.float32).max)  # distances beyond count as this one: infinite ones are padding
LARGEST_WIDE = tl.constexpr(torch.finfo(torch.float64).max)


class Side(NamedTuple):
    """Rows or columns of a tile."""

    points: tl.tensor  # [n, dim]
    halves: tl.tensor  # of those of the tile: [BLOCK, 2, DIMS] float16; unread without HALVES
    norms: tl.tensor  # [n]; unread with few dimensions
    i: tl.tensor  # [BLOCK]
    n: tl.tensor


@triton.jit
def distances(
    p, q, limit, dim: tl.constexpr, DIMS: tl.constexpr, PRODUCTS: tl.constexpr, HALVES: tl.constexpr,
    CANCELING: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """r of the points of two sides, p and q; inf in the padding of q, and for the pairs of the launch with the other
    CANCELING: those with a squared norm beyond the limit, and all others."""
    if HALVES:
        r = products(p.halves, q.halves, DIMS, p.i.shape[0], q.i.shape[0], BLOCK_D) * unit(p.norms, p.i, p.n, limit)
        p_norm = tl.load(p.norms + p.i, mask=p.i < p.n, other=0.0)
        q_norm = tl.load(q.norms + q.i, mask=q.i < q.n, other=float("inf"))
        p_norm = tl.where(p_norm > limit, float("inf"), p_norm)
        q_norm = tl.where(q_norm > limit, float("inf"), q_norm)
        r = (p_norm[:, None] + q_norm[None, :]) - r * (2 * unit(q.norms, q.i, q.n, limit))
        r = tl.maximum(r, 0.0, propagate_nan=tl.PropagateNan.ALL)
    else:
        direct: tl.constexpr = CANCELING or not PRODUCTS
        r = squared_distances(p.points, q.points, p.norms, q.norms, p.i, q.i, p.n, q.n, dim, direct, BLOCK_D)
        largest: tl.constexpr = LARGEST_WIDE if r.dtype == tl.float64 else LARGEST
        r = tl.minimum(r, largest, propagate_nan=tl.PropagateNan.ALL)
        there = (q.i < q.n)[None, :]
        if PRODUCTS:
            p_beyond = tl.load(p.norms + p.i, mask=p.i < p.n, other=0.0) > limit
            q_beyond = tl.load(q.norms + q.i, mask=q.i < q.n, other=0.0) > limit
            there = there & ((p_beyond[:, None] | q_beyond[None, :]) == CANCELING)
        r = tl.where(there, r, float("inf"))
    return r


@triton.jit
def canceling(p_norms, q_norms, i, j, n, m, limit):
    """Whether a tile has any pair whose products cancel."""
    p_norm, q_norm = tl.load(p_norms + i, mask=i < n, other=0.0), tl.load(q_norms + j, mask=j < m, other=0.0)
    return tl.maximum(tl.max(p_norm), tl.max(q_norm)) > limit


@triton.jit(do_not_specialize=["m", "n", "split_tiles"])
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
    PRODUCTS: tl.constexpr,  # whether distances are made of products, where these do not cancel
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
            left, right = Side(points, left_halves, point_norms, i, m), Side(samples, right_halves, sample_norms, j, n)
            r = distances(left, right, limit, dim, DIMS, PRODUCTS, HALVES, CANCELING, BLOCK_D)
            before, nearest = nearest, tl.minimum(nearest, tl.min(r, axis=1))
            lowest = tl.where(nearest == float("inf"), 0.0, nearest)  # inf - inf is no number
            tl.debug_barrier()  # another thread may have stored the sums
            for s in range(S):  # not unrolled, and its sums in memory: the products take the registers
                t = tl.load(rates + s)
                total = tl.load(at + s * m, mask=i < m, other=0.0) * tl.exp2((lowest - before) * t).to(tl.float64)
                total += tl.sum(tl.exp2((lowest[:, None] - r) * t), axis=1).to(tl.float64)
                tl.store(at + s * m, total, mask=i < m)
    tl.store(minimum + split * m + i, nearest, mask=i < m)


@triton.jit(do_not_specialize=["m", "parts"])
def merge_kernel(
    minima,  # [splits, M]
    partial_sums,  # [splits, S, M] float64
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
        nearest = tl.minimum(nearest, tl.load(minima + part * m + i, mask=i < m, other=0.0))
    for s in range(S):
        t = tl.load(rates + s)
        at = sums + s * m + i
        total = tl.load(at, mask=i < m, other=0.0) * tl.exp2((nearest - before) * t).to(tl.float64)
        there = partial_sums + s * m + i
        for part in range(parts):
            fallen = nearest - tl.load(minima + part * m + i, mask=i < m, other=0.0)
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


@triton.jit(do_not_specialize=["n", "m", "split_tiles"])
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
    PRODUCTS: tl.constexpr,  # whether distances are made of products, where these do not cancel
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
            left, right = Side(rows, left_halves, row_norms, i, n), Side(columns, right_halves, column_norms, j, m)
            r = distances(left, right, limit, dim, DIMS, PRODUCTS, HALVES, CANCELING, BLOCK_D)
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
