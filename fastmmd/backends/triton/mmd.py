"""mmd2 and witness in Triton: sums over columns, value and gradient in one pass over the pairs.

    value_i    = sum_j mass_j u(r_ij)                      u = kappa(r) - kappa(0)
    gradient_i = sum_j mass_j slope(r_ij) (p_i - q_j)

A program holds BLOCK_I rows and walks over tiles of BLOCK_J columns; `assembly` makes mmd2 of such sums, so both
halves of the symmetric terms are computed and no two programs write to one place. In few dimensions all coordinates
and sums stay in registers, lane by lane, and are added up every FLUSH tiles; beyond, the gradient is kept in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .. import assembly
from ..assembly import F64, Rows
from ..specs import KernelSpec
from . import interpreted
from .kernels import ROWS_OF_TABLE, SQUARINGS, Plan, evaluate, plan
from .tiles import checked, coordinate, coordinates, splits, squared_distances, squared_norms

SMALL_DIMS = 16  # all coordinates in registers
DIRECT_DIMS = 48  # up to here distances by differences, beyond by products where the kernel is smooth
FLUSH = tl.constexpr(8)  # terms added in the points' dtype before the sum goes on in float64


@triton.jit
def small_kernel(
    p,  # [B, n, dim]
    q,  # [B, dim, m]
    mass,  # [B, m]; unread without HAS_MASS
    row_weights,  # [B, n] float64; unread without PER_RUNG
    table,  # [B, 6, S]
    value,  # [splits, B, n] float64
    gradient,  # [splits, B, n, dim] float64; unread without GRADIENT
    per_rung,  # [B, programs, 2, S] float64: sums of r slope, of u; unread without PER_RUNG
    n,
    m,
    split_tiles,  # tiles of columns in a split
    dim: tl.constexpr,
    SLOTS: tl.constexpr,  # power of 2 of at least dim
    S: tl.constexpr,
    S_SLOTS: tl.constexpr,
    FOLLOWS: tl.constexpr,
    KERNEL: tl.constexpr,
    SQUARED: tl.constexpr,
    HAS_MASS: tl.constexpr,
    GRADIENT: tl.constexpr,
    PER_RUNG: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    block, split, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    dtype: tl.constexpr = p.dtype.element_ty
    table += b * ROWS_OF_TABLE * S
    i = block * BLOCK_I + tl.arange(0, BLOCK_I)
    d = tl.arange(0, SLOTS)
    row = (split * tl.num_programs(2) + b) * n + i  # of value and gradient
    by_slope = tl.zeros([S_SLOTS], tl.float64)
    by_u = tl.zeros([S_SLOTS], tl.float64)
    row_weight = tl.zeros([BLOCK_I], tl.float64)
    if PER_RUNG:
        row_weight = tl.load(row_weights + b * n + i, mask=i < n, other=0.0)
    left = tl.load(p + (b * n + i)[None, :] * dim + d[:, None], mask=(i < n)[None, :] & (d < dim)[:, None], other=0.0)
    left = checked(left)[:, :, None]
    values = tl.zeros([BLOCK_I], tl.float64)
    gradients = tl.zeros([SLOTS, BLOCK_I], tl.float64)
    last = tl.minimum((split + 1) * split_tiles, tl.cdiv(m, BLOCK_J))
    for group in range(split * split_tiles, last, FLUSH):
        lane_values = tl.zeros([BLOCK_I, BLOCK_J], dtype)
        lane_gradients = tl.zeros([SLOTS, BLOCK_I, BLOCK_J], dtype)
        for tile in range(group, tl.minimum(group + FLUSH, last)):
            j = tile * BLOCK_J + tl.arange(0, BLOCK_J)
            if HAS_MASS:
                w = tl.load(mass + b * m + j, mask=j < m, other=0.0)
            else:
                w = (j < m).to(dtype)
            there = (d < dim)[:, None] & (j < m)[None, :]
            right = tl.load(q + (b * dim + d)[:, None] * m + j[None, :], mask=there, other=0.0)
            difference = left - checked(right)[:, None, :]
            r = tl.sum(difference * difference, axis=0)
            total, slope, by_slope, by_u = evaluate(
                r, w, row_weight, by_slope, by_u, table, S, S_SLOTS, FOLLOWS, KERNEL, SQUARED, PER_RUNG
            )
            lane_values += w[None, :] * total
            if GRADIENT:
                lane_gradients += (w[None, :] * slope)[None, :, :] * difference
        values += tl.sum(lane_values, axis=1).to(tl.float64)
        if GRADIENT:
            gradients += tl.sum(lane_gradients, axis=2).to(tl.float64)
    tl.store(value + row, values, mask=i < n)
    if GRADIENT:
        at = gradient + row[None, :] * dim + d[:, None]
        tl.store(at, gradients, mask=(i < n)[None, :] & (d < dim)[:, None])
    if PER_RUNG:
        _store_per_rung(per_rung, by_slope, by_u, b, split, block, S, S_SLOTS)


@triton.jit
def large_kernel(
    p,  # [B, n, dim]
    q,  # [B, m, dim]
    p_norms,  # [B, n]; unread with DIRECT
    q_norms,  # [B, m]
    mass,  # [B, m]; unread without HAS_MASS
    row_weights,  # [B, n] float64; unread without PER_RUNG
    table,  # [B, 6, S]
    offset,  # [B]: what is taken off all slopes; unread with DIRECT
    value,  # [splits, B, n] float64
    gradient,  # [splits, B, n, dim] float64, zeros; unread without GRADIENT
    per_rung,  # [B, programs, 2, S] float64; unread without PER_RUNG
    n,
    m,
    split_tiles,
    dim: tl.constexpr,
    S: tl.constexpr,
    S_SLOTS: tl.constexpr,
    FOLLOWS: tl.constexpr,
    KERNEL: tl.constexpr,
    SQUARED: tl.constexpr,
    HAS_MASS: tl.constexpr,
    GRADIENT: tl.constexpr,
    PER_RUNG: tl.constexpr,
    DIRECT: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    block, split, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i = block * BLOCK_I + tl.arange(0, BLOCK_I)
    row = (split * tl.num_programs(2) + b) * n + i
    p += b * n * dim
    q += b * m * dim
    p_norms += b * n
    q_norms += b * m
    table += b * ROWS_OF_TABLE * S
    by_slope = tl.zeros([S_SLOTS], tl.float64)
    by_u = tl.zeros([S_SLOTS], tl.float64)
    row_weight = tl.zeros([BLOCK_I], tl.float64)
    if PER_RUNG:
        row_weight = tl.load(row_weights + b * n + i, mask=i < n, other=0.0)
    values = tl.zeros([BLOCK_I], tl.float64)
    for tile in range(split * split_tiles, tl.minimum((split + 1) * split_tiles, tl.cdiv(m, BLOCK_J))):
        j = tile * BLOCK_J + tl.arange(0, BLOCK_J)
        if HAS_MASS:
            w = tl.load(mass + b * m + j, mask=j < m, other=0.0)
        else:
            w = (j < m).to(p.dtype.element_ty)
        r = squared_distances(p, q, p_norms, q_norms, i, j, n, m, dim, DIRECT, False, BLOCK_D)
        total, slope, by_slope, by_u = evaluate(
            r,
            w,
            row_weight,
            by_slope,
            by_u,
            table,
            S,
            S_SLOTS,
            FOLLOWS,
            KERNEL,
            SQUARED,
            PER_RUNG,
        )
        values += tl.sum(w[None, :] * total, axis=1).to(tl.float64)
        if GRADIENT:
            if DIRECT:
                c = w[None, :] * slope
                for d in range(dim):
                    difference = coordinate(p, i, n, dim, d)[:, None] - coordinate(q, j, m, dim, d)[None, :]
                    at = gradient + row * dim + d
                    g = tl.load(at, mask=i < n, other=0.0) + tl.sum(c * difference, axis=1).to(tl.float64)
                    tl.store(at, g, mask=i < n)
            else:
                c = w[None, :] * (slope - tl.load(offset + b))
                for first in range(0, dim, BLOCK_D):
                    d = first + tl.arange(0, BLOCK_D)
                    at = gradient + row[:, None] * dim + d[None, :]
                    there = (i < n)[:, None] & (d < dim)[None, :]
                    g = tl.sum(c, axis=1)[:, None] * coordinates(p, i, n, dim, d)
                    g -= tl.dot(c, coordinates(q, j, m, dim, d), input_precision="ieee", out_dtype=c.dtype)
                    tl.store(at, tl.load(at, mask=there, other=0.0) + g.to(tl.float64), mask=there)
    tl.store(value + row, values, mask=i < n)
    if PER_RUNG:
        _store_per_rung(per_rung, by_slope, by_u, b, split, block, S, S_SLOTS)


@triton.jit
def _store_per_rung(per_rung, by_slope, by_u, b, split, block, S: tl.constexpr, S_SLOTS: tl.constexpr):
    slot = tl.arange(0, S_SLOTS)
    at = per_rung + ((b * tl.num_programs(1) + split) * tl.num_programs(0) + block) * 2 * S + slot
    tl.store(at, by_slope, mask=slot < S)
    tl.store(at + S, by_u, mask=slot < S)


def mmd2(
    x: Tensor,
    y: Tensor | None,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    kernel: KernelSpec,
    unbiased: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Value [B] in float64 and six gradients; see `specs.Backend.mmd2`."""
    return assembly.mmd2(sum_rows, x, y, x_weights, y_weights, kernel, unbiased, needs)


def witness(points: Tensor, samples: Tensor, weights: Tensor, kernel: KernelSpec) -> Tensor:
    """sum_j weights_j u(points_i, samples_j): [P]."""
    return assembly.witness(sum_rows, points, samples, weights, kernel)


def witness_backward(
    grad: Tensor, points: Tensor, samples: Tensor, weights: Tensor, kernel: KernelSpec, needs: Sequence[bool]
) -> tuple[Tensor, ...]:
    """The five gradients of grad . witness; see `specs.Backend.witness_backward`."""
    return assembly.witness_backward(sum_rows, grad, points, samples, weights, kernel, needs)


def sum_rows(
    p: Tensor,
    q: Tensor,
    mass: Tensor | None,
    factor: Tensor,
    kernel: KernelSpec,
    gradient: bool,
    row_weights: Tensor | None,
) -> Rows:
    """See `assembly.SumRows`."""
    (batch, n, dim), m, per_rung = p.shape, q.shape[1], row_weights is not None
    small = dim <= SMALL_DIMS
    direct = dim <= DIRECT_DIMS or kernel.name in ("laplacian", "energy")  # which show what products round
    if not direct:
        middle = ((p.mean(1, keepdim=True, dtype=F64) + q.mean(1, keepdim=True, dtype=F64)) / 2).to(p.dtype)
        p, q = p - middle, q - middle
    planned = plan(kernel, p, q, mass, per_rung, offset=not direct)
    count = planned.table.shape[2]
    block_i, block_j, block_d, warps = _blocks(n, m, dim, gradient, per_rung)
    blocks, tiles = triton.cdiv(n, block_i), triton.cdiv(m, block_j)
    parts, per_split = splits(blocks * batch, tiles)
    value = p.new_empty((parts, batch, n), dtype=F64)
    slopes = p.new_zeros((parts, batch, n, dim), dtype=F64) if gradient else value
    rungs = p.new_empty((batch, parts * blocks, 2, count), dtype=F64) if per_rung else value
    weights = p if mass is None else mass, value if row_weights is None else row_weights, planned.table
    options = dict(
        dim=dim, S=count, S_SLOTS=triton.next_power_of_2(count), FOLLOWS=planned.follows, KERNEL=kernel.name,
        SQUARED=SQUARINGS.get(kernel.name, 0), HAS_MASS=mass is not None, GRADIENT=gradient, PER_RUNG=per_rung,
        BLOCK_I=block_i, BLOCK_J=block_j, num_warps=warps,
    )  # fmt: skip
    if small:
        small_kernel[(blocks, parts, batch)](
            p, q.mT.contiguous(), *weights, value, slopes, rungs, n, m, per_split,
            SLOTS=triton.next_power_of_2(dim), **options,
        )  # fmt: skip
    else:
        norms = (p, q) if direct else (squared_norms(p), squared_norms(q))
        large_kernel[(blocks, parts, batch)](
            p, q, *norms, *weights, planned.typical_slope, value, slopes, rungs, n, m, per_split,
            DIRECT=direct, BLOCK_D=block_d, **options,
        )  # fmt: skip
    sums = value.sum(0), slopes.sum(0) if gradient else None, rungs if per_rung else None
    return _finished(p, planned, factor, *sums)


def _finished(
    p: Tensor, plan: Plan, factor: Tensor, value: Tensor, slopes: Tensor | None, rungs: Tensor | None
) -> Rows:
    """The sums in their units, with what the kernel left out."""
    empty = value.new_empty(0)
    value = factor * (value - plan.offset * plan.mass)
    if slopes is not None:
        slopes = slopes + plan.shift * (plan.mass[..., None] * (p - plan.centre) - plan.moment)
        slopes = factor[..., None] * slopes
    if rungs is None:
        return Rows(value, empty if slopes is None else slopes, empty, empty)
    by_slope, by_u = (factor * rungs.sum(1).unbind(1)[k] for k in range(2))
    return Rows(
        value, empty if slopes is None else slopes, (plan.by_bandwidth * by_slope)[:, plan.places], by_u[:, plan.places]
    )


def _blocks(n: int, m: int, dim: int, gradient: bool, per_rung: bool) -> tuple[int, int, int, int]:
    """Rows, columns, dimensions of a tile, warps of a program. The interpreter's time is its number of operations."""
    if interpreted():
        sizes = ((n, 64 if dim <= SMALL_DIMS else 128), (m, 1024), (dim, 1024))
        rows, columns, dims = (max(16, min(most, triton.next_power_of_2(size))) for size, most in sizes)
        return rows, columns, dims, 1
    if dim <= SMALL_DIMS:  # the columns of a thread and all coordinates of its rows in registers
        return (8 if dim <= 4 else 4 if dim <= 8 else 2, 256, 16, 4) if gradient else (8, 128, 16, 4)
    if per_rung:  # so many sums take registers
        return 16, 64, 16, 8
    return (32, 64, 32, 8) if dim <= DIRECT_DIMS else (64, 64, 32, 8)
