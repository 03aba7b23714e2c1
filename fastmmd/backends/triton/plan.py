"""What the kernels of mmd2 and witness need to know of the data, found on the device in two launches.

Statistics of a sample bound its distances; the plan of a sum over q for points p follows from both samples': the ladder
of bandwidths, and for each rung whether it adds u or kappa, its slope as it is or minus its value at r = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..assembly import F64, Sample
from ..specs import KernelSpec
from .kernels import (
    ALPHA,
    FAR_LIMIT,
    FAR_LOW,
    FAR_RATE,
    FAR_RUNG,
    FAR_STEEPNESS,
    FAR_WEIGHT,
    LIMIT,
    LOW,
    NEAR,
    PLAIN,
    RATE,
    ROWS_OF_TABLE,
    SQUARINGS,
    STEEPNESS,
    WEIGHT,
)
from .tiles import FUSED, LOG2_E, MOST_SPLITS, constant, exponentials, log1p, splits

MOST_DIMS = 1024  # of a tile of statistics; the reach of more is bounded by the sum of its parts
LEADERS = 64  # points whose mean is the centre: near enough to all points' for a tight bound
TERMS = tl.constexpr(6)
SLOTS = tl.constexpr(MOST_SPLITS)
PAIRS = tl.constexpr(64)


@triton.jit
def statistics_kernel(
    points,  # [B, n, dim]
    mass,  # [B, n]; unread without HAS_MASS
    centre,  # [B, dim] float64: mean of the first points
    reach,  # [B, splits, chunks] float64: maximum of |p - centre|^2 over the dimensions of a chunk
    sums,  # [B, splits, 2, dim] float64: of p - centre, of mass (p - centre)
    masses,  # [B, splits] float64: of mass
    n,
    split_tiles,  # tiles of points in a split
    dim,
    leaders,  # points whose mean is the centre
    HAS_MASS: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    split, chunk, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    d = chunk * BLOCK_D + tl.arange(0, BLOCK_D)
    points += b * n * dim
    middle = tl.zeros([BLOCK_D], tl.float64)
    for first in range(0, leaders, BLOCK_I):
        i = first + tl.arange(0, BLOCK_I)
        middle += tl.sum(_tile(points, i, d, leaders, dim), axis=0)
    middle /= leaders
    total = tl.zeros([BLOCK_D], tl.float64)
    moment = tl.zeros([BLOCK_D], tl.float64)
    all_mass = tl.zeros([BLOCK_I], tl.float64)
    farthest = tl.zeros([BLOCK_I], tl.float64)
    for tile in range(split * split_tiles, tl.minimum((split + 1) * split_tiles, tl.cdiv(n, BLOCK_I))):
        i = tile * BLOCK_I + tl.arange(0, BLOCK_I)
        there = (i < n)[:, None] & (d < dim)[None, :]
        difference = tl.where(there, _tile(points, i, d, n, dim) - middle[None, :], 0.0)
        if HAS_MASS:
            w = tl.load(mass + b * n + i, mask=i < n, other=0.0).to(tl.float64)
        else:
            w = (i < n).to(tl.float64)
        farthest = tl.maximum(farthest, tl.sum(difference * difference, axis=1))
        all_mass += w
        total += tl.sum(difference, axis=0)
        moment += tl.sum(w[:, None] * difference, axis=0)
    part = b * tl.num_programs(0) + split
    tl.store(reach + part * tl.num_programs(1) + chunk, tl.max(farthest))
    tl.store(sums + part * 2 * dim + d, total, mask=d < dim)
    tl.store(sums + (part * 2 + 1) * dim + d, moment, mask=d < dim)
    if split == 0:
        tl.store(centre + b * dim + d, middle, mask=d < dim)
    if chunk == 0:
        tl.store(masses + part, tl.sum(all_mass))


@triton.jit
def _tile(points, i, d, n, dim):
    at = points + i.to(tl.int64)[:, None] * dim + d[None, :]
    return tl.load(at, mask=(i < n)[:, None] & (d < dim)[None, :], other=0.0).to(tl.float64)


@triton.jit
def plan_kernel(
    x,  # [B, x_count, dim]: points whose pairs show how far pairs are apart
    y,  # [B, y_count, dim]
    p_centre,  # [B, dim] float64, and so on: what statistics_kernel found of the rows
    p_reach,
    p_sums,
    q_centre,  # and of the columns
    q_reach,
    q_sums,
    q_masses,
    bandwidths,  # [S], in the ladder's order
    weights,
    alphas,  # [1] float64
    table,  # [B, 14, S], see kernels.py
    terms,  # [B, 6] float64: start and shift of slopes, offset of values, sum of masses, 0 or NaN, number of far rungs
    moment,  # [B, dim] float64: sum_j mass_j (q_j - centre)
    per_rung,  # [B, 2, S] float64: derivative in the bandwidth over the slopes' sum; masses of a far rung, else 0
    x_count,
    y_count,
    p_count,
    q_count,
    p_splits,
    q_splits,
    dim,
    S: tl.constexpr,
    S_SLOTS: tl.constexpr,
    KERNEL: tl.constexpr,
    PRODUCTS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = table.dtype.element_ty
    split = tl.arange(0, SLOTS)
    p_part, q_part = b * p_splits + split, b * q_splits + split
    p_there, q_there = split < p_splits, split < q_splits
    mass = tl.sum(tl.load(q_masses + q_part, mask=q_there, other=0.0))
    # Some pairs stand for all; which ones must not follow from an order that the points may have.
    pair = tl.arange(0, PAIRS)
    i = (pair.to(tl.int64) * x_count) // PAIRS
    j = ((pair * 37 + 11) % PAIRS).to(tl.int64) * y_count // PAIRS
    r = tl.zeros([PAIRS], tl.float64)
    # Both means, from the centres.
    p_shift, q_shift, apart, poison = 0.0 * mass, 0.0 * mass, 0.0 * mass, 0.0 * mass
    for first in range(0, dim, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        p_mean = _over_splits(p_sums, p_part, p_there, 0, d, dim) / p_count
        q_mean = _over_splits(q_sums, q_part, q_there, 0, d, dim) / q_count
        of_mass = _over_splits(q_sums, q_part, q_there, 1, d, dim)
        tl.store(moment + b * dim + d, of_mass, mask=d < dim)
        between = tl.load(p_centre + b * dim + d, mask=d < dim, other=0.0) + p_mean
        between -= tl.load(q_centre + b * dim + d, mask=d < dim, other=0.0) + q_mean
        p_shift += tl.sum(p_mean * p_mean)
        q_shift += tl.sum(q_mean * q_mean)
        apart += tl.sum(between * between)
        poison += tl.sum(0.0 * q_mean)
        difference = _tile(x + b * x_count * dim, i, d, x_count, dim) - _tile(y + b * y_count * dim, j, d, y_count, dim)
        r += tl.sum(difference * difference, axis=1)
    reached = _reached(p_reach, p_part, p_there, p_shift, CHUNKS) + _reached(q_reach, q_part, q_there, q_shift, CHUNKS)
    reached += tl.sqrt(apart)

    alpha = tl.load(alphas)
    rung = tl.arange(0, S_SLOTS)
    there = rung < S
    s = tl.load(bandwidths + rung, mask=there, other=1.0).to(tl.float64)
    w = tl.load(weights + rung, mask=there, other=0.0).to(tl.float64)
    s = tl.where(s > 0, s, float("nan"))
    squared = s * s
    largest = 3.4e38 if dtype == tl.float32 else 1.79e308  # times 0 is 0
    if KERNEL == "gaussian":
        steepness, rate = -0.5 / squared, -0.5 / squared
    elif KERNEL == "laplacian":
        steepness, rate = -0.5 / s, -1 / s
    elif KERNEL == "imq":
        steepness, rate = -1 / squared, tl.where(squared < 1e-37, 1e-37, squared)
    elif KERNEL == "rational_quadratic":
        steepness, rate = -0.5 / squared, 0.5 / (alpha * squared)
    else:
        steepness, rate = 0.0 * s - 0.5, 0.0 * s
    rate = _within(rate, largest)
    slopes = _within(steepness * w, largest * 9.5e-7).to(dtype).to(tl.float64)  # room for masses
    w = _within(w, largest).to(dtype).to(tl.float64)
    of_pairs = r[None, :] / squared[:, None]
    far = there & (tl.sum(_relative_value(of_pairs, alpha, KERNEL), axis=1) < 0.5 * PAIRS)
    exponential: tl.constexpr = KERNEL == "gaussian" or KERNEL == "laplacian"
    alone = far if exponential else rung < 0
    shifted = there & (alone == 0) & (_relative_slope(reached * reached / squared, alpha, KERNEL) > 0.5)

    limit = _within((708.0 if dtype == tl.float64 else 87.0) / tl.abs(rate), largest)
    base = table + b * ROWS_OF_TABLE * S + rung
    tl.store(base + RATE * S, rate.to(dtype), mask=there)
    tl.store(base + LOW * S, _low(rate, dtype), mask=there)
    tl.store(base + LIMIT * S, limit.to(dtype), mask=there)
    tl.store(base + WEIGHT * S, tl.where(alone, 0.0, w).to(dtype), mask=there)
    tl.store(base + STEEPNESS * S, tl.where(alone, 0.0, slopes).to(dtype), mask=there)
    tl.store(base + NEAR * S, tl.where(far, 0.0, 1.0).to(dtype), mask=there)
    tl.store(base + PLAIN * S, tl.where(shifted, 0.0, 1.0).to(dtype), mask=there)
    tl.store(base + ALPHA * S, (0.0 * s + alpha).to(dtype), mask=there)
    place = base - rung + tl.cumsum(alone.to(tl.int32), axis=0) - 1
    rate = _within(rate * LOG2_E, largest)
    tl.store(place + FAR_RATE * S, rate.to(dtype), mask=alone)
    tl.store(place + FAR_LOW * S, _low(rate, dtype), mask=alone)
    tl.store(place + FAR_LIMIT * S, limit.to(dtype), mask=alone)
    tl.store(place + FAR_WEIGHT * S, w.to(dtype), mask=alone)
    tl.store(place + FAR_STEEPNESS * S, slopes.to(dtype), mask=alone)
    tl.store(place + FAR_RUNG * S, rung.to(dtype), mask=alone)

    # What tiles leave out of all slopes: the shifted rungs' at r = 0, and with products, which see slopes that are much
    # alike, a typical one.
    shift = tl.sum(tl.where(shifted, slopes, 0.0))
    start = 0.0 * mass
    if PRODUCTS:
        plain = tl.sum(_relative_slope(of_pairs, alpha, KERNEL), axis=1) / PAIRS
        start = -tl.sum(tl.where(there, slopes * (plain - shifted.to(tl.float64)), 0.0)).to(dtype).to(tl.float64)
    terms += b * TERMS
    tl.store(terms, start)
    tl.store(terms + 1, shift - start)
    tl.store(terms + 2, tl.sum(tl.where(far, w, 0.0)))
    tl.store(terms + 3, mass)
    tl.store(terms + 4, poison)
    tl.store(terms + 5, tl.sum(alone.to(tl.int32)).to(tl.float64))
    per_rung += b * 2 * S + rung
    tl.store(per_rung, -2 / s * slopes if KERNEL != "energy" else 0.0 * s, mask=there)
    tl.store(per_rung + S, tl.where(far, mass, 0.0), mask=there)


@triton.jit
def _over_splits(sums, part, there, which, d, dim):
    """[BLOCK_D]: sums [B, splits, 2, dim] added up."""
    at = sums + (part * 2 + which)[:, None] * dim + d[None, :]
    return tl.sum(tl.load(at, mask=there[:, None] & (d < dim)[None, :], other=0.0), axis=0)


@triton.jit
def _reached(reach, part, there, shift, CHUNKS: tl.constexpr):
    """A bound of all distances to the mean, which is `shift`, squared, from the centre."""
    farthest = 0.0 * shift
    for chunk in range(CHUNKS):
        farthest += tl.max(tl.load(reach + part * CHUNKS + chunk, mask=there, other=0.0))
    return tl.sqrt(farthest) + tl.sqrt(shift)


@triton.jit
def _low(x, dtype: tl.constexpr):
    """What rounding takes off."""
    return (x - x.to(dtype).to(tl.float64)).to(dtype)


@triton.jit
def _within(x, largest):
    """x clamped to +- largest; NaN stays."""
    return tl.where(x > largest, largest, tl.where(x < -largest, -largest, x))


@triton.jit
def _relative_slope(t, alpha, KERNEL: tl.constexpr):
    """kappa'(r) / kappa'(0) of a smooth kernel at t = r / s^2; 0 for the others, whose slopes are never shifted."""
    if KERNEL == "gaussian":
        return exponentials(-0.5 * t)[1]
    elif KERNEL == "imq":
        return 1 / ((1 + t) * (1 + t))
    elif KERNEL == "rational_quadratic":
        return exponentials(-(alpha + 1) * log1p(0.5 * t / alpha))[1]
    else:
        return 0.0 * t


@triton.jit
def _relative_value(t, alpha, KERNEL: tl.constexpr):
    """kappa(r) of a bounded kernel; 1 for the other one."""
    if KERNEL == "gaussian":
        return exponentials(-0.5 * t)[1]
    elif KERNEL == "laplacian":
        return exponentials(-tl.sqrt(t))[1]
    elif KERNEL == "imq":
        return 1 / (1 + t)
    elif KERNEL == "rational_quadratic":
        return exponentials(-alpha * log1p(0.5 * t / alpha))[1]
    else:
        return 0.0 * t + 1


class Statistics(NamedTuple):
    """What `statistics_kernel` found."""

    centre: Tensor
    reach: Tensor
    sums: Tensor
    masses: Tensor


class Plan(NamedTuple):
    """What `plan_kernel` made of them, and the ladder."""

    table: Tensor
    terms: Tensor
    moment: Tensor
    per_rung: Tensor
    follows: int
    order: list[int]  # rung -> bandwidth


def statistics(sample: Sample) -> Statistics:
    """Of a sample's points and masses, once for all sums over it."""
    found = sample.found.get("statistics")
    if found is None:
        found = sample.found["statistics"] = _statistics(sample.points, sample.mass)
    return found


def _statistics(points: Tensor, mass: Tensor | None) -> Statistics:
    batch, n, dim = points.shape
    block_d = min(MOST_DIMS, triton.next_power_of_2(dim))
    block_i = max(1, 2048 // block_d)
    chunks, (parts, per_split) = triton.cdiv(dim, block_d), splits(1, triton.cdiv(n, block_i))
    shapes = (batch, dim), (batch, parts, chunks), (batch, parts, 2, dim), (batch, parts)
    found = Statistics(*(points.new_empty(shape, dtype=F64) for shape in shapes))
    statistics_kernel[(parts, chunks, batch)](
        points, points if mass is None else mass, *found, n, per_split, dim, min(n, LEADERS),
        HAS_MASS=mass is not None, BLOCK_I=block_i, BLOCK_D=block_d, num_warps=8, **FUSED,
    )  # fmt: skip
    return found


def plan(kernel: KernelSpec, rows: Sample, columns: Sample, apart: tuple[Sample, Sample], products: bool) -> Plan:
    """The plan of sums over the columns for the rows; see `assembly.SumRows`. products: distances are products."""
    p, q, (x, y) = statistics(rows), statistics(columns), (sample.points for sample in apart)
    (batch, n, dim), m, count = rows.points.shape, columns.points.shape[1], len(kernel.bandwidths)
    order, follows = _ladder(kernel)
    s, w = (_on_device(values, order, q.centre.device) for values in (kernel.bandwidths, kernel.weights))
    table = rows.points.new_empty((batch, ROWS_OF_TABLE.value, count))
    shapes = (batch, TERMS.value), (batch, dim), (batch, 2, count)
    terms, moment, per_rung = (q.centre.new_empty(shape) for shape in shapes)
    plan_kernel[(batch,)](
        x, y, *p[:3], *q, s, w, constant((kernel.alpha,), s.device, F64), table, terms, moment, per_rung,
        x.shape[1], y.shape[1], n, m, p.reach.shape[1], q.reach.shape[1], dim,
        S=count, S_SLOTS=triton.next_power_of_2(count), KERNEL=kernel.name, PRODUCTS=products,
        CHUNKS=p.reach.shape[2], BLOCK_D=min(64, triton.next_power_of_2(dim)), num_warps=4, **FUSED,
    )  # fmt: skip
    return Plan(table, terms, moment, per_rung, follows, order)


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
    """The values in the ladder's order, which is their own for a tensor's: [S]."""
    return values if isinstance(values, Tensor) else constant(tuple(values[i] for i in order), device, F64)
