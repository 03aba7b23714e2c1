"""mmd2 and witness in Triton: sums over columns, value and gradient in one pass over the pairs.

    value_i    = sum_j mass_j u(r_ij)                      u = kappa(r) - kappa(0)
    gradient_i = sum_j mass_j slope(r_ij) (p_i - q_j)

A program holds BLOCK_I rows and walks over tiles of BLOCK_J columns; `assembly` makes mmd2 of such sums, so both
halves of the symmetric terms are computed and no two programs write to one place. The bandwidth ladder and what each
rung adds (u or kappa, the slope with or without its value at r = 0) are those of csrc/cpu/kernels.hpp; what depends
on the data is decided on the device, in a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import assembly
from ..assembly import F64, Rows
from ..specs import KernelSpec
from . import interpreted
from .tiles import (
    constant,
    coordinate,
    coordinates,
    exponentials,
    log1p,
    splits,
    square_root,
    squared_distances,
    squared_norms,
)

DIRECT_DIMS = 48  # up to here distances by differences, beyond by products where the kernel is smooth
UNROLLED_DIMS = 16  # so many coordinates of a gradient are kept in registers, beyond in memory
RATE, WEIGHT, STEEPNESS, SHIFTED, FAR, ALPHA = (tl.constexpr(row) for row in range(6))  # of the table
ROWS_OF_TABLE = tl.constexpr(6)
SQUARINGS = {"gaussian": 2, "laplacian": 1}


@triton.jit
def sums_kernel(
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
    per_rung,  # [B, programs, 2, S] float64: sums of r slope, of u; unread without PER_RUNG
    n,
    m,
    split_tiles,  # tiles of columns in a split
    dim: tl.constexpr,
    DIM_SLOTS: tl.constexpr,  # power of 2 of at least dim, 1 where the gradient is kept in memory
    S: tl.constexpr,
    S_SLOTS: tl.constexpr,
    FOLLOWS: tl.constexpr,  # bit s: rung s comes from rung s - 1 by squaring
    KERNEL: tl.constexpr,
    SQUARED: tl.constexpr,  # squarings from one rung to the next
    HAS_MASS: tl.constexpr,
    GRADIENT: tl.constexpr,
    PER_RUNG: tl.constexpr,
    DIRECT: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    block, split, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    batch, blocks = tl.num_programs(2), tl.num_programs(0)
    i = block * BLOCK_I + tl.arange(0, BLOCK_I)
    p += b * n * dim
    q += b * m * dim
    p_norms += b * n
    q_norms += b * m
    table += b * ROWS_OF_TABLE * S
    row = (split * batch + b) * n + i  # of value and gradient
    values = tl.zeros([BLOCK_I], tl.float64)
    gradients = tl.zeros([BLOCK_I, DIM_SLOTS], tl.float64)
    slot = tl.arange(0, DIM_SLOTS)
    rung_slot = tl.arange(0, S_SLOTS)
    by_slope = tl.zeros([S_SLOTS], tl.float64)
    by_u = tl.zeros([S_SLOTS], tl.float64)
    if PER_RUNG:
        row_weight = tl.load(row_weights + b * n + i, mask=i < n, other=0.0)
    last = tl.minimum((split + 1) * split_tiles, tl.cdiv(m, BLOCK_J))
    for tile in range(split * split_tiles, last):
        j = tile * BLOCK_J + tl.arange(0, BLOCK_J)
        if HAS_MASS:
            w = tl.load(mass + b * m + j, mask=j < m, other=0.0)
        else:
            w = (j < m).to(p.dtype.element_ty)
        r = squared_distances(p, q, p_norms, q_norms, i, j, n, m, dim, DIRECT, False, BLOCK_D)
        total, slope = tl.zeros_like(r), tl.zeros_like(r)
        argument, inverse = r, r
        if KERNEL == "laplacian" or KERNEL == "energy":
            argument = square_root(r)
            inverse = tl.where(argument > 0, 1 / argument, 0.0)
        if KERNEL == "imq" or KERNEL == "rational_quadratic":
            largest: tl.constexpr = 1e300 if r.dtype == tl.float64 else 1e30
            argument = tl.where(r > largest, largest, r)
        u, kappa = tl.zeros_like(r), tl.zeros_like(r)
        for s in tl.static_range(S):
            rate, weight = tl.load(table + RATE * S + s), tl.load(table + WEIGHT * S + s)
            steepness = tl.load(table + STEEPNESS * S + s)
            if KERNEL == "energy":
                u, kappa, plain, shifted = -argument, -argument, inverse, inverse
            elif KERNEL == "imq":
                reciprocal = 1 / (argument + rate)
                u, kappa = -argument * reciprocal, rate * reciprocal
                plain, shifted = kappa * kappa, u * (kappa + 1)
            elif KERNEL == "rational_quadratic":
                scaled = argument * rate
                scaled = tl.where(scaled > largest, largest, scaled)
                u, kappa = exponentials(-tl.load(table + ALPHA * S + s) * log1p(scaled))
                reciprocal = 1 / (scaled + 1)
                plain, shifted = kappa * reciprocal, (u - scaled) * reciprocal
            else:
                if (FOLLOWS >> s) & 1:
                    for _ in tl.static_range(SQUARED):
                        kappa = kappa * kappa  # loses relative accuracy near 1, as 1 + u does near 0
                        u = u * u + (u + u)
                    kappa = tl.where(u > -0.5, u + 1, kappa)
                else:
                    u, kappa = exponentials(argument * rate)
                plain, shifted = kappa, u
                if KERNEL == "laplacian":
                    plain = kappa * inverse
                    shifted = plain
            total += weight * tl.where(tl.load(table + FAR * S + s) > 0, kappa, u)
            slope += steepness * tl.where(tl.load(table + SHIFTED * S + s) > 0, shifted, plain)
            if PER_RUNG:
                finite = tl.where(r > 1e30, 1e30, r)  # inf * 0 at far pairs is 0
                sum_of_slopes = tl.sum(
                    tl.sum(w[None, :] * (finite * plain), axis=1).to(tl.float64) * row_weight, axis=0
                )
                sum_of_u = tl.sum(tl.sum(w[None, :] * u, axis=1).to(tl.float64) * row_weight, axis=0)
                by_slope += tl.where(rung_slot == s, sum_of_slopes, 0.0)
                by_u += tl.where(rung_slot == s, sum_of_u, 0.0)
        values += tl.sum(w[None, :] * total, axis=1).to(tl.float64)
        if GRADIENT:
            if not DIRECT:
                slope -= tl.load(offset + b)
            c = w[None, :] * slope
            if not DIRECT:
                for first in range(0, dim, BLOCK_D):
                    d = first + tl.arange(0, BLOCK_D)
                    at = gradient + row.to(tl.int64)[:, None] * dim + d[None, :]
                    there = (i < n)[:, None] & (d < dim)[None, :]
                    g = tl.sum(c, axis=1)[:, None] * coordinates(p, i, n, dim, d)
                    g -= tl.dot(c, coordinates(q, j, m, dim, d), input_precision="ieee", out_dtype=c.dtype)
                    tl.store(at, tl.load(at, mask=there, other=0.0) + g.to(tl.float64), mask=there)
            elif DIM_SLOTS >= dim:
                for d in tl.static_range(dim):
                    g = _gradient(p, q, c, i, j, n, m, dim, d)
                    gradients += tl.where(slot[None, :] == d, g[:, None], 0.0)
            else:
                for d in range(dim):
                    at = gradient + row.to(tl.int64) * dim + d
                    g = tl.load(at, mask=i < n, other=0.0) + _gradient(p, q, c, i, j, n, m, dim, d)
                    tl.store(at, g, mask=i < n)
    tl.store(value + row, values, mask=i < n)
    if GRADIENT:
        if DIRECT and DIM_SLOTS >= dim:
            at = gradient + row.to(tl.int64)[:, None] * dim + slot[None, :]
            tl.store(at, gradients, mask=(i < n)[:, None] & (slot < dim)[None, :])
    if PER_RUNG:
        at = per_rung + ((b * tl.num_programs(1) + split) * blocks + block) * 2 * S + rung_slot
        tl.store(at, by_slope, mask=rung_slot < S)
        tl.store(at + S, by_u, mask=rung_slot < S)


@triton.jit
def _gradient(p, q, c, i, j, n, m, dim, d):
    """sum_j c_ij (p_id - q_jd): [BLOCK_I] float64."""
    a, x = coordinate(p, i, n, dim, d), coordinate(q, j, m, dim, d)
    return tl.sum(c * (a[:, None] - x[None, :]), axis=1).to(tl.float64)


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
    direct = dim <= DIRECT_DIMS or kernel.name in ("laplacian", "energy")  # which show what products round
    if not direct:
        middle = ((p.mean(1, keepdim=True, dtype=F64) + q.mean(1, keepdim=True, dtype=F64)) / 2).to(p.dtype)
        p, q = p - middle, q - middle
    plan = _plan(kernel, p, q, mass, per_rung, offset=not direct)
    count = plan.table.shape[2]
    block_i, block_j, block_d, warps = _blocks(n, m, dim, gradient, per_rung, direct)
    blocks, tiles = triton.cdiv(n, block_i), triton.cdiv(m, block_j)
    in_registers = direct and dim <= UNROLLED_DIMS
    parts = splits(blocks * batch, tiles)
    per_split = triton.cdiv(tiles, parts)
    parts = triton.cdiv(tiles, per_split)
    value = p.new_empty((parts, batch, n), dtype=F64)
    slopes = p.new_zeros((parts, batch, n, dim), dtype=F64) if gradient else value
    rungs = p.new_empty((batch, parts * blocks, 2, count), dtype=F64) if per_rung else value
    if n and m:
        sums_kernel[(blocks, parts, batch)](
            p, q, *((p, q) if direct else (squared_norms(p), squared_norms(q))), p if mass is None else mass,
            value if row_weights is None else row_weights, plan.table, plan.typical_slope,
            value, slopes, rungs, n, m, per_split,
            dim=dim, DIM_SLOTS=triton.next_power_of_2(dim) if in_registers else 1,
            S=count, S_SLOTS=triton.next_power_of_2(count), FOLLOWS=plan.follows, KERNEL=kernel.name,
            SQUARED=SQUARINGS.get(kernel.name, 0), HAS_MASS=mass is not None, GRADIENT=gradient, PER_RUNG=per_rung,
            DIRECT=direct, BLOCK_I=block_i, BLOCK_J=block_j, BLOCK_D=block_d, num_warps=warps,
        )  # fmt: skip
    return _finished(p, plan, factor, value.sum(0), slopes.sum(0) if gradient else None, rungs if per_rung else None)


class _Plan(NamedTuple):
    """What the kernel reads of the bandwidths, and what its sums leave out."""

    table: Tensor  # [B, 6, S], rungs in the ladder's order
    follows: int
    places: Tensor  # [S]: bandwidth -> rung
    typical_slope: Tensor  # [B]: what products take off all slopes, which are much alike in many dimensions
    shift: Tensor  # [B, 1, 1] float64: that, and the sum of the shifted rungs' slopes at r = 0
    offset: Tensor  # [B, 1] float64: sum of the far rungs' weights
    by_bandwidth: Tensor  # [S] float64: derivative in the bandwidth over r slope
    mass: Tensor  # [B, 1] float64: sum_j mass_j
    centre: Tensor  # [B, 1, D] float64, of the columns
    moment: Tensor  # [B, 1, D] float64: sum_j mass_j (q_j - centre)


def _plan(kernel: KernelSpec, p: Tensor, q: Tensor, mass: Tensor | None, per_rung: bool, offset: bool) -> _Plan:
    order, follows = _ladder(kernel)
    s, w = (_on_device(values, order, p.device) for values in (kernel.bandwidths, kernel.weights))
    s = torch.where(s > 0, s, torch.nan)
    farthest, typical = _distances(p, q)
    steepness, rate = _steepness(kernel, s)
    by_bandwidth = torch.zeros_like(s) if kernel.name == "energy" else -2 / s * steepness * w
    largest, steepest = torch.finfo(p.dtype).max, torch.finfo(p.dtype).max * 2.0**-20  # times 0 is 0; room for masses
    shifted = _relative_slope(kernel, s, farthest) > 0.5
    far = (_value_at(kernel, s, typical) < 0.5) & (not per_rung)
    rows = (
        rate.clamp(-largest, largest), w, (steepness * w).clamp(-steepest, steepest), shifted, far,
        torch.full_like(s, kernel.alpha),
    )  # fmt: skip
    table = torch.stack([row.to(F64).expand(len(p), len(s)) for row in rows], 1).to(p.dtype)
    rounded = table.to(F64)
    at_typical = steepness * w * (_relative_slope(kernel, s, typical) - shifted.to(F64))
    typical_slope = at_typical.sum(-1).to(p.dtype) if offset else p.new_zeros(len(p))
    shift = (rounded[:, 2] * rounded[:, 3]).sum(-1) + typical_slope.to(F64)
    centre = q.mean(1, keepdim=True, dtype=F64)
    v = q.new_ones(q.shape[:2], dtype=F64) if mass is None else mass.to(F64)
    return _Plan(
        table, follows, constant(tuple(map(order.index, range(len(order)))), p.device, torch.int64), typical_slope,
        shift[:, None, None], (rounded[:, 1] * rounded[:, 4]).sum(-1)[:, None],
        by_bandwidth, v.sum(-1, keepdim=True), centre, torch.einsum("bj,bjd->bd", v, q - centre)[:, None],
    )  # fmt: skip


def _finished(
    p: Tensor, plan: _Plan, factor: Tensor, value: Tensor, slopes: Tensor | None, rungs: Tensor | None
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


def _ladder(kernel: KernelSpec) -> tuple[list[int], int]:
    """The rungs' bandwidths, and bit s where rung s halves the bandwidth of rung s - 1."""
    if isinstance(kernel.bandwidths, Tensor) or isinstance(kernel.weights, Tensor) or kernel.name not in SQUARINGS:
        return list(range(len(kernel.bandwidths))), 0
    rest = sorted(range(len(kernel.bandwidths)), key=lambda index: -kernel.bandwidths[index])
    order: list[int] = []
    follows = 0
    while rest:
        found = next((i for i in rest if order and kernel.bandwidths[i] == 0.5 * kernel.bandwidths[order[-1]]), None)
        if found is not None:
            follows |= 1 << len(order)
        order.append(rest.pop(0 if found is None else rest.index(found)))
    return order, follows


def _on_device(values: Sequence[float] | Tensor, order: Sequence[int], device: torch.device) -> Tensor:
    """The values in the ladder's order, which is their own for a tensor's: [S] float64."""
    return values.to(F64) if isinstance(values, Tensor) else constant(tuple(values[i] for i in order), device, F64)


def _distances(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """[B, 1] float64: a bound of all squared distances, and a typical one."""
    spread, reach, centres = [], [], []
    for points in (p, q):
        centre = points.mean(1, keepdim=True, dtype=F64)
        squares = (points - centre.to(points.dtype)).square().sum(-1).to(F64)
        spread.append(squares.mean(1, keepdim=True))
        reach.append(squares.amax(1, keepdim=True).sqrt())
        centres.append(centre[:, 0])
    apart = (centres[0] - centres[1]).square().sum(-1, keepdim=True)
    return (reach[0] + reach[1] + apart.sqrt()).square(), spread[0] + spread[1] + apart


def _steepness(kernel: KernelSpec, s: Tensor) -> tuple[Tensor, Tensor]:
    """Units of the slopes and rates of the kernels: [S] each."""
    if kernel.name == "gaussian":
        return -0.5 / s**2, -0.5 / s**2
    if kernel.name == "laplacian":
        return -0.5 / s, -1 / s
    if kernel.name == "imq":
        return -1 / s**2, (s**2).clamp(min=1e-37)
    if kernel.name == "rational_quadratic":
        return -0.5 / s**2, 0.5 / (kernel.alpha * s**2)
    return torch.full_like(s, -0.5), torch.zeros_like(s)


def _relative_slope(kernel: KernelSpec, s: Tensor, r: Tensor) -> Tensor:
    """kappa'(r) / kappa'(0) of a smooth kernel; 0 for the others, whose slopes are never shifted: [B, S]."""
    t = r / s**2
    if kernel.name == "gaussian":
        return torch.exp(-0.5 * t)
    if kernel.name == "imq":
        return (1 + t) ** -2
    if kernel.name == "rational_quadratic":
        return (1 + 0.5 * t / kernel.alpha) ** (-kernel.alpha - 1)
    return torch.zeros_like(t)


def _value_at(kernel: KernelSpec, s: Tensor, r: Tensor) -> Tensor:
    """kappa(r) of a bounded kernel; 1 for the other one: [B, S]."""
    t = r / s**2
    if kernel.name == "gaussian":
        return torch.exp(-0.5 * t)
    if kernel.name == "laplacian":
        return torch.exp(-t.sqrt())
    if kernel.name == "imq":
        return 1 / (1 + t)
    if kernel.name == "rational_quadratic":
        return (1 + 0.5 * t / kernel.alpha) ** -kernel.alpha
    return torch.ones_like(t)


def _blocks(n: int, m: int, dim: int, gradient: bool, per_rung: bool, direct: bool) -> tuple[int, int, int, int]:
    """Rows, columns, dimensions of a tile, warps of a program. The interpreter's time is its number of operations."""
    if interpreted():
        sizes = ((n, 128), (m, 1024), (dim, 1024))
        rows, columns, dims = (max(16, min(most, triton.next_power_of_2(size))) for size, most in sizes)
        return rows, columns, dims, 1
    if per_rung:  # so many sums take registers
        return 16, 64, 16, 8
    if direct:
        return (32, 64, 16, 8) if gradient else (32, 64, 16, 4)
    return 64, 64, 32, 8
