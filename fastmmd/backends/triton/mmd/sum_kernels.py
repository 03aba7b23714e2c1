"""The kernels of sums over columns, value and gradient in one pass over the pairs.

A program holds BLOCK_I rows and walks over tiles of BLOCK_J columns; `common.mmd` makes mmd2 of such sums, so both
halves of the symmetric terms are computed where rows need their own results, and no two programs write to one place.
In few dimensions all coordinates and sums stay in registers, lane by lane, and are added up every FLUSH tiles; beyond,
the gradient is kept in memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..points import coordinate, coordinates, place_and_member, squared_distances
from .kernels import ROWS_OF_TABLE, Rungs, evaluate
from .plan_kernel import TERMS
from .segments import block_of_rows, segment

FLUSH = tl.constexpr(64)  # terms added in the points' dtype, lane by lane, before the sum goes on in float64


@triton.jit(do_not_specialize=["n", "m", "split_tiles", "members"])
def small_kernel(
    p,  # [B, n, dim]; RAGGED: [n, dim], of all members
    q,  # [dim, B, m]; RAGGED: [dim, m]
    mass,  # [B, m]; unread without HAS_MASS
    row_weights,  # [B, n] float64; unread without PER_RUNG
    table,  # [B, 14, S]
    series,  # [B, 2 SERIES + 1]
    terms,  # [B, 7] float64
    row_offsets,  # [B + 1]; unread unless RAGGED
    column_offsets,  # [B + 1]
    value,  # [splits, B, n] float64
    gradient,  # [splits, B, n, dim] float64; unread without GRADIENT
    rungs,  # [B, programs, 2, S] float64: sums of r slope, of u; unread without PER_RUNG
    n,
    m,
    split_tiles,  # tiles of columns in a split; unread if RAGGED
    members,  # B
    dim: tl.constexpr,
    S: tl.constexpr,
    S_SLOTS: tl.constexpr,
    FOLLOWS: tl.constexpr,
    FAMILY: tl.constexpr,
    SQUARINGS: tl.constexpr,
    HAS_MASS: tl.constexpr,
    GRADIENT: tl.constexpr,
    PER_RUNG: tl.constexpr,
    SERIES: tl.constexpr,  # terms of a series for wide bandwidths
    HALF: tl.constexpr,  # rows are columns: only pairs i <= j, those of different points twice
    RAGGED: tl.constexpr,  # members have sizes of their own
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    dtype: tl.constexpr = p.dtype.element_ty
    block, b = block_of_rows(row_offsets, n, members, BLOCK_I, RAGGED)
    batch = 1 if RAGGED else members
    all_rows, all_columns = tl.cast(n, tl.int64) * batch, tl.cast(m, tl.int64) * batch
    first_row, n = segment(row_offsets, b, n, RAGGED)
    first_column, m = segment(column_offsets, b, m, RAGGED)
    first, last = _tiles_of_split(block, n, m, split_tiles, BLOCK_I, BLOCK_J, HALF, RAGGED)
    p += first_row * dim
    q += first_column
    plan = _plan_of(b, table, series, terms, S, SERIES)
    i = block * BLOCK_I + tl.arange(0, BLOCK_I)
    row = tl.program_id(1) * all_rows + first_row + i  # of value and gradient
    by_slope = tl.zeros([S_SLOTS], tl.float64)
    by_value = tl.zeros([S_SLOTS], tl.float64)
    row_weight = _row_weights(row_weights + first_row, i, n, dtype, PER_RUNG)
    left = ()
    for d in tl.static_range(dim):
        left = left + (tl.load(p + i.to(tl.int64) * dim + d, mask=i < n, other=0.0)[:, None],)
    values = tl.zeros([BLOCK_I], tl.float64)
    gradients = (values,) * dim
    for group in range(first, last, FLUSH):
        lane_values = tl.zeros([BLOCK_I, BLOCK_J], dtype)
        lane_gradients = (lane_values,) * dim
        for tile in range(group, tl.minimum(group + FLUSH, last)):
            j = tile * BLOCK_J + tl.arange(0, BLOCK_J)
            w = _masses(mass + first_column, i, j, m, dtype, HAS_MASS, HALF)
            r = tl.zeros([BLOCK_I, BLOCK_J], dtype)
            differences = ()
            there = tl.minimum(j, m - 1)  # the padding must not be farther away than any point
            for d in tl.static_range(dim):
                right = tl.load(q + d * all_columns + there)
                difference = left[d] - right[None, :]
                r += difference * difference
                differences = differences + (difference,)
            total, slope, by_slope, by_value = evaluate(
                r, w, row_weight, by_slope, by_value, plan, S, FOLLOWS, FAMILY, SQUARINGS, PER_RUNG, SERIES
            )
            lane_values += w * total
            if GRADIENT:
                c = w * slope
                sums = ()
                for d in tl.static_range(dim):
                    sums = sums + (lane_gradients[d] + c * differences[d],)
                lane_gradients = sums
        values += tl.sum(lane_values.to(tl.float64), axis=1)
        if GRADIENT:
            sums = ()
            for d in tl.static_range(dim):
                sums = sums + (gradients[d] + tl.sum(lane_gradients[d].to(tl.float64), axis=1),)
            gradients = sums
    tl.store(value + row, values, mask=i < n)
    if GRADIENT:
        for d in tl.static_range(dim):
            tl.store(gradient + row * dim + d, gradients[d], mask=i < n)
    if PER_RUNG:
        _store_per_rung(rungs, by_slope, by_value, batch, S, S_SLOTS)


@triton.jit(do_not_specialize=["n", "m", "split_tiles", "members"])
def large_kernel(
    p,  # [B, n, dim]; RAGGED: [n, dim], of all members
    q,  # [B, m, dim]
    p_norms,  # [B, n]; unread with DIRECT
    q_norms,  # [B, m]
    mass,  # [B, m]; unread without HAS_MASS
    row_weights,  # [B, n] float64; unread without PER_RUNG
    table,  # [B, 14, S]
    series,  # [B, 2 SERIES + 1]
    terms,  # [B, 7] float64
    row_offsets,  # [B + 1]; unread unless RAGGED
    column_offsets,  # [B + 1]
    value,  # [splits, B, n] float64
    gradient,  # [splits, B, n, dim] float64; unread without GRADIENT
    rungs,  # [B, programs, 2, S] float64; unread without PER_RUNG
    n,
    m,
    split_tiles,
    members,
    dim: tl.constexpr,
    S: tl.constexpr,
    S_SLOTS: tl.constexpr,
    FOLLOWS: tl.constexpr,
    FAMILY: tl.constexpr,
    SQUARINGS: tl.constexpr,
    HAS_MASS: tl.constexpr,
    GRADIENT: tl.constexpr,
    PER_RUNG: tl.constexpr,
    SERIES: tl.constexpr,  # terms of a series for wide bandwidths
    HALF: tl.constexpr,
    RAGGED: tl.constexpr,
    SELF: tl.constexpr,  # rows are columns
    DIRECT: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    dtype: tl.constexpr = p.dtype.element_ty
    block, b = block_of_rows(row_offsets, n, members, BLOCK_I, RAGGED)
    batch = 1 if RAGGED else members
    all_rows = tl.cast(n, tl.int64) * batch
    first_row, n = segment(row_offsets, b, n, RAGGED)
    first_column, m = segment(column_offsets, b, m, RAGGED)
    first, last = _tiles_of_split(block, n, m, split_tiles, BLOCK_I, BLOCK_J, HALF, RAGGED)
    i = block * BLOCK_I + tl.arange(0, BLOCK_I)
    row = tl.program_id(1) * all_rows + first_row + i
    p += first_row * dim
    q += first_column * dim
    p_norms += first_row
    q_norms += first_column
    plan = _plan_of(b, table, series, terms, S, SERIES)
    by_slope = tl.zeros([S_SLOTS], tl.float64)
    by_value = tl.zeros([S_SLOTS], tl.float64)
    row_weight = _row_weights(row_weights + first_row, i, n, dtype, PER_RUNG)
    values = tl.zeros([BLOCK_I], tl.float64)
    for tile in range(first, last):
        j = tile * BLOCK_J + tl.arange(0, BLOCK_J)
        w = _masses(mass + first_column, i, j, m, dtype, HAS_MASS, HALF)
        r = squared_distances(p, q, p_norms, q_norms, i, j, n, m, dim, DIRECT, BLOCK_D)
        if SERIES > 0:  # the padding must not be farther away than any point
            r = tl.where((j < m)[None, :], r, 0.0)
        if SELF and not DIRECT:  # a point is nowhere away from itself, where products round
            r = tl.where(i[:, None] == j[None, :], 0.0, r)
        total, slope, by_slope, by_value = evaluate(
            r, w, row_weight, by_slope, by_value, plan, S, FOLLOWS, FAMILY, SQUARINGS, PER_RUNG, SERIES
        )
        values += tl.sum(w * total, axis=1).to(tl.float64)
        if GRADIENT:
            c = w * slope
            before = tl.where(tile > first, n, 0)  # rows that have sums of other tiles
            tl.debug_barrier()  # another thread may have stored the sums
            if DIRECT:
                for d in range(dim):
                    difference = coordinate(p, i, n, dim, d)[:, None] - coordinate(q, j, m, dim, d)[None, :]
                    at = gradient + row * dim + d
                    g = tl.load(at, mask=i < before, other=0.0) + tl.sum(c * difference, axis=1).to(tl.float64)
                    tl.store(at, g, mask=i < n)
            else:
                if SELF:
                    c = tl.where(i[:, None] == j[None, :], 0.0, c)
                for first_d in range(0, dim, BLOCK_D):
                    d = first_d + tl.arange(0, BLOCK_D)
                    at = gradient + row[:, None] * dim + d[None, :]
                    there, known = (i < n)[:, None] & (d < dim)[None, :], (i < before)[:, None] & (d < dim)[None, :]
                    g = tl.sum(c, axis=1)[:, None] * coordinates(p, i, n, dim, d)
                    g -= tl.dot(c, coordinates(q, j, m, dim, d), input_precision="ieee", out_dtype=c.dtype)
                    tl.store(at, tl.load(at, mask=known, other=0.0) + g.to(tl.float64), mask=there)
    tl.store(value + row, values, mask=i < n)
    if PER_RUNG:
        _store_per_rung(rungs, by_slope, by_value, batch, S, S_SLOTS)


@triton.jit
def _tiles_of_split(
    block, n, m, split_tiles, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, HALF: tl.constexpr, RAGGED: tl.constexpr
):
    """The first tile of columns and the one behind the last of a program's split; none for a block without rows."""
    tiles = tl.cdiv(m, BLOCK_J)
    if RAGGED:
        split_tiles = tl.cdiv(tl.where(block * BLOCK_I < n, tiles, 0), tl.num_programs(1))
    first = tl.program_id(1) * split_tiles
    last = tl.minimum(first + split_tiles, tiles)
    if HALF:
        first = tl.maximum(first, block * BLOCK_I // BLOCK_J)
    return first, last


@triton.jit
def _plan_of(b, table, series, terms, S: tl.constexpr, SERIES: tl.constexpr):
    """The plan of a member, as far as the tiles read it."""
    terms += b * TERMS
    start, far, folded = (
        tl.load(terms).to(table.dtype.element_ty),
        tl.load(terms + 5).to(tl.int32),
        tl.load(terms + 6) > 0,
    )
    return Rungs(table + b * ROWS_OF_TABLE * S, series + b * (2 * SERIES + 1), start, far, folded)


@triton.jit
def _masses(mass, i, j, m, dtype: tl.constexpr, HAS_MASS: tl.constexpr, HALF: tl.constexpr):
    """Masses of the columns, 0 in the padding: [1, BLOCK_J]; with HALF as often as their pairs count: [BLOCK_I, ...]"""
    if HAS_MASS:
        w = tl.load(mass + j, mask=j < m, other=0.0)[None, :]
    else:
        w = (j < m).to(dtype)[None, :]
    if HALF:
        w *= (j[None, :] >= i[:, None]).to(dtype) + (j[None, :] > i[:, None]).to(dtype)
    return w


@triton.jit
def _row_weights(row_weights, i, n, dtype: tl.constexpr, PER_RUNG: tl.constexpr):
    """[BLOCK_I, 1]"""
    if PER_RUNG:
        return tl.load(row_weights + i, mask=i < n, other=0.0).to(dtype)[:, None]
    else:
        return tl.zeros_like(i).to(dtype)[:, None]


@triton.jit
def _store_per_rung(rungs, by_slope, by_value, batch, S: tl.constexpr, S_SLOTS: tl.constexpr):
    slot = tl.arange(0, S_SLOTS)
    each = tl.num_programs(0) // batch
    place, b = place_and_member(each)
    program = (b * tl.num_programs(1) + tl.program_id(1)) * each + place
    at = rungs + program * 2 * S + slot
    tl.store(at, by_slope, mask=slot < S)
    tl.store(at + S, by_value, mask=slot < S)
