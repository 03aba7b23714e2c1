"""The plan of a sum for mmd2 and witness, made on the device of what the data are.

The plan is the ladder of bandwidths, for each rung whether it adds u or kappa and its slope as it is or minus its value
at r = 0, a series in place of wide rungs; and what follows from these for all pairs alike, which tiles leave out and
`finish` adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ....kernels import Kernel
from ...common.mmd import F64, Measure
from ..tiles import FUSED, LOG2_E, MOST_SPLITS, constant, coordinates, exponentials, log1p
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
from .segments import offsets_of, segment
from .statistics import statistics

TERMS = tl.constexpr(7)  # of a plan
SLOTS = tl.constexpr(MOST_SPLITS)
PAIRS = tl.constexpr(64)  # that stand for all
WIDEST_REACH = tl.constexpr(3.5)  # of r / (2 s^2) in the series; beyond, slopes at the far end would lose digits
SERIES_TERMS = 10  # leave out less than float32 rounds, at the widest reach
MOST_TERMS = tl.constexpr(16)


@triton.jit
def plan_kernel(
    x,  # [B, x_count, dim]: the points of a call, whose distances decide
    y,  # [B, y_count, dim]
    x_center,  # [B, dim] float64, and so on: what statistics_kernel found of them
    x_reach,
    x_sums,
    y_center,
    y_reach,
    y_sums,
    q_sums,  # and of the columns
    q_masses,
    bandwidths,  # [S], in the ladder's order
    weights,
    alphas,  # [1] float64
    nodes,  # [SERIES] float64: in [-1, 1]
    powers,  # [SERIES, SERIES] float64: values at the nodes -> coefficients of powers
    table,  # [B, 14, S], see kernels.py
    series,  # [B, 2 SERIES + 1], see kernels.py
    terms,  # [B, 7] float64: start and shift of slopes, offset of values, sum of masses, 0 or NaN, far rungs, folded
    moment,  # [B, dim] float64: sum_j mass_j (q_j - center)
    per_rung,  # [B, 2, S] float64: derivative in the bandwidth over the slopes' sum; masses of a far rung, else 0
    x_offsets,  # [B + 1]; unread unless RAGGED
    y_offsets,
    x_count,
    y_count,
    x_splits,
    y_splits,
    q_splits,
    dim,
    S: tl.constexpr,
    S_SLOTS: tl.constexpr,
    KERNEL: tl.constexpr,
    PRODUCTS: tl.constexpr,
    SERIES: tl.constexpr,  # terms; 0: nothing may be folded
    RAGGED: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = table.dtype.element_ty
    x_first, x_count = segment(x_offsets, b, x_count, RAGGED)
    y_first, y_count = segment(y_offsets, b, y_count, RAGGED)
    split = tl.arange(0, SLOTS)
    x_part, y_part, q_part = b * x_splits + split, b * y_splits + split, b * q_splits + split
    x_there, y_there, q_there = split < x_splits, split < y_splits, split < q_splits
    mass = tl.sum(tl.load(q_masses + q_part, mask=q_there, other=0.0))
    # Some pairs stand for all; which ones must not follow from an order that the points may have.
    pair = tl.arange(0, PAIRS)
    i = (pair.to(tl.int64) * x_count) // PAIRS
    j = ((pair * 37 + 11) % PAIRS).to(tl.int64) * y_count // PAIRS
    r = tl.zeros([PAIRS], tl.float64)
    # Both means, from the centers.
    x_shift, y_shift, apart, poison = 0.0 * mass, 0.0 * mass, 0.0 * mass, 0.0 * mass
    for first in range(0, dim, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        x_mean = _over_splits(x_sums, x_part, x_there, 0, d, dim) / x_count
        y_mean = _over_splits(y_sums, y_part, y_there, 0, d, dim) / y_count
        of_mass = _over_splits(q_sums, q_part, q_there, 1, d, dim)
        tl.store(moment + b * dim + d, of_mass, mask=d < dim)
        between = tl.load(x_center + b * dim + d, mask=d < dim, other=0.0) + x_mean
        between -= tl.load(y_center + b * dim + d, mask=d < dim, other=0.0) + y_mean
        x_shift += tl.sum(x_mean * x_mean)
        y_shift += tl.sum(y_mean * y_mean)
        apart += tl.sum(between * between)
        poison += tl.sum(0.0 * _over_splits(q_sums, q_part, q_there, 0, d, dim))
        difference = coordinates(x + x_first * dim, i, x_count, dim, d).to(tl.float64)
        difference -= coordinates(y + y_first * dim, j, y_count, dim, d).to(tl.float64)
        r += tl.sum(difference * difference, axis=1)
    x_reached = _reached(x_reach, x_part, x_there, x_shift, CHUNKS)
    y_reached = _reached(y_reach, y_part, y_there, y_shift, CHUNKS)
    reached = tl.maximum(x_reached + y_reached + tl.sqrt(apart), 2 * tl.maximum(x_reached, y_reached))
    reached = reached * reached * (1 + 1e-5)  # no squared distance is larger, even as it is rounded

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
    shifted = there & (alone == 0) & (_relative_slope(reached / squared, alpha, KERNEL) > 0.5)

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

    # Where all near bandwidths of a Gaussian are wide, they fold into a series (csrc/common/series.hpp), from values at
    # Chebyshev nodes: u = r P(t), slope = constant + r Q(t), t = 2 r / reached - 1.
    near = there & (alone == 0)
    folded = x_count < 0  # no
    if SERIES > 0:
        wide = near & (reached <= 2 * WIDEST_REACH * squared)
        count = tl.sum(near.to(tl.int32))
        folded = (tl.sum(wide.to(tl.int32)) == count) & (count > 1) & (reached > 1e-30) & (reached < 1e30)
        k = tl.arange(0, MOST_TERMS)
        at = 0.5 * reached * (1 + tl.load(nodes + k, mask=k < SERIES, other=0.0))
        inside = near[:, None] & (k < SERIES)[None, :]
        u = tl.where(inside, exponentials(at[None, :] * (-0.5 / squared)[:, None])[0] / at[None, :], 0.0)
        to_powers = tl.load(
            powers + k[:, None] * SERIES + k[None, :],
            mask=(k < SERIES)[:, None] & (k < SERIES)[None, :],
            other=0.0,
        )
        series += b * (2 * SERIES + 1)
        of_values = tl.sum(to_powers * tl.sum(w[:, None] * u, axis=0)[None, :], axis=1)
        of_slopes = tl.sum(to_powers * tl.sum(slopes[:, None] * u, axis=0)[None, :], axis=1)
        tl.store(series + k, of_values.to(dtype), mask=k < SERIES)
        tl.store(series + SERIES + k, of_slopes.to(dtype), mask=k < SERIES)
        tl.store(series + 2 * SERIES, (2 / reached).to(dtype))

    # What tiles leave out of all slopes: the shifted rungs' at r = 0, and with products, which see slopes that are much
    # alike, a typical one.
    shift = tl.sum(tl.where(shifted, slopes, 0.0))
    start = tl.where(folded, tl.sum(tl.where(near & (shifted == 0), slopes, 0.0)), 0.0)
    shift += start
    if PRODUCTS:
        plain = tl.sum(_relative_slope(of_pairs, alpha, KERNEL), axis=1) / PAIRS
        start -= tl.sum(tl.where(there, slopes * (plain - shifted.to(tl.float64)), 0.0))
    start = start.to(dtype).to(tl.float64)
    terms += b * TERMS
    tl.store(terms, start)
    tl.store(terms + 1, shift - start)
    tl.store(terms + 2, tl.sum(tl.where(far, w, 0.0)))
    tl.store(terms + 3, mass)
    tl.store(terms + 4, poison)
    tl.store(terms + 5, tl.sum(alone.to(tl.int32)).to(tl.float64))
    tl.store(terms + 6, folded.to(tl.float64))
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
    """A bound of all distances to the mean, which is `shift`, squared, from the center."""
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


class Plan(NamedTuple):
    """What `plan_kernel` made, and the ladder."""

    table: Tensor
    series: Tensor
    terms: Tensor
    moment: Tensor
    per_rung: Tensor
    follows: int
    order: list[int]  # rung -> bandwidth


def plan(kernel: Kernel, columns: Measure, apart: tuple[Measure, Measure], products: bool, fold: bool) -> Plan:
    """The plan of sums over the columns; see `common.mmd.SumRows`.

    products: so distances are made; fold: wide bandwidths may fold into a series.
    """
    (x, y), q = apart, statistics(columns)
    batch, dim, count = columns.batch, columns.points.shape[2], len(kernel.bandwidths)
    order, follows = _ladder(kernel)
    s, w = (_on_device(values, order, q.center.device) for values in (kernel.bandwidths, kernel.weights))
    size = SERIES_TERMS if fold else 0
    constants = [constant(values, s.device, F64) for values in ((kernel.alpha,), *_interpolation(size))]
    table = columns.points.new_empty((batch, ROWS_OF_TABLE.value, count))
    series = columns.points.new_empty((batch, 2 * size + 1))
    shapes = (batch, TERMS.value), (batch, dim), (batch, 2, count)
    terms, moment, per_rung = (q.center.new_empty(shape) for shape in shapes)
    plan_kernel[(batch,)](
        x.points, y.points, *statistics(x)[:3], *statistics(y)[:3], *q[2:], s, w, *constants,
        table, series, terms, moment, per_rung, offsets_of(x), offsets_of(y),
        x.points.shape[1], y.points.shape[1], *(statistics(sample).reach.shape[1] for sample in (x, y, columns)), dim,
        S=count, S_SLOTS=triton.next_power_of_2(count), KERNEL=kernel.family, PRODUCTS=products, SERIES=size,
        RAGGED=columns.offsets is not None, CHUNKS=q.reach.shape[2],
        BLOCK_D=min(64, triton.next_power_of_2(dim)), num_warps=8, **FUSED,
    )  # fmt: skip
    return Plan(table, series, terms, moment, per_rung, follows, order)


@lru_cache
def _interpolation(size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Chebyshev nodes [size], and the matrix [size, size] that makes powers' coefficients of values at them."""
    if size == 0:
        return (0.0,), (0.0,)
    angles = np.pi * (np.arange(size) + 0.5) / size
    series = np.cos(np.arange(size)[:, None] * angles) * (2 / size)
    series[0] /= 2
    powers = [np.polynomial.chebyshev.cheb2poly(row) for row in np.eye(size)]
    padded = np.array([np.pad(row, (0, size - len(row))) for row in powers])
    return tuple(np.cos(angles).tolist()), tuple((padded.T @ series).ravel().tolist())


def _ladder(kernel: Kernel) -> tuple[list[int], int]:
    """The rungs' bandwidths, and bit s where rung s halves the bandwidth of rung s - 1."""
    if isinstance(kernel.bandwidths, Tensor) or isinstance(kernel.weights, Tensor) or kernel.family not in SQUARINGS:
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
