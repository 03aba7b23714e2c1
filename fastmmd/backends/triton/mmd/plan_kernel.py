"""The plan of a sum, as `plan` explains it: the kernel that makes it, one program for each member of the batch."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from ..launch import MOST_SPLITS
from ..math import LOG2_E, exponentials
from ..points import coordinates
from .families import (
    MOST,
    MOST_STEEPNESS,
    MOST_STEEPNESS_WIDE,
    MOST_WIDE,
    derivative_in_bandwidth,
    rates,
    relative_slope,
    relative_value,
    within,
)
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
    STEEPNESS,
    WEIGHT,
)
from .segments import segment

TERMS = tl.constexpr(7)  # of a plan
SLOTS = tl.constexpr(MOST_SPLITS)
PAIRS = tl.constexpr(64)  # that stand for all
WIDEST_REACH = tl.constexpr(3.5)  # of r / (2 s^2) in the series; beyond, slopes at the far end would lose digits
MOST_TERMS = tl.constexpr(16)  # of a series


class Member(NamedTuple):
    """The points of one member, and what `statistics_kernel` computed of them."""

    points: tl.tensor  # [n, dim]
    n: tl.tensor
    center: tl.tensor  # [dim] float64
    reach: tl.tensor  # [B, splits, chunks] float64
    sums: tl.tensor  # [B, splits, 2, dim] float64
    part: tl.tensor  # [SLOTS]: the member's splits, and which of them there are
    there: tl.tensor


class Ladder(NamedTuple):
    """What the plan says of each rung: [S_SLOTS], numbers in float64."""

    there: tl.tensor
    s: tl.tensor
    squared: tl.tensor  # s^2
    w: tl.tensor
    slopes: tl.tensor  # steepness w
    far: tl.tensor  # kappa is small at most pairs
    alone: tl.tensor  # far, and of an exponential kernel: in the rows FAR_...
    shifted: tl.tensor  # adds its slope minus that at r = 0


@triton.jit(do_not_specialize=["x_count", "y_count", "x_splits", "y_splits", "q_splits"])
def plan_kernel(
    x,  # [B, x_count, dim]: the points of a call, whose distances decide
    y,  # [B, y_count, dim]
    x_center,  # [B, dim] float64, and so on: what statistics_kernel computed of them
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
    FAMILY: tl.constexpr,
    LADDER: tl.constexpr,  # of an exponential kernel: far rungs go into the rows FAR_...
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
    x_member = Member(
        x + x_first * dim, x_count, x_center + b * dim, x_reach, x_sums, b * x_splits + split, split < x_splits
    )
    y_member = Member(
        y + y_first * dim, y_count, y_center + b * dim, y_reach, y_sums, b * y_splits + split, split < y_splits
    )
    q_part, q_there = b * q_splits + split, split < q_splits
    mass = tl.sum(tl.load(q_masses + q_part, mask=q_there, other=0.0))
    r, reached, poison = _distances(
        x_member, y_member, q_sums, q_part, q_there, moment + b * dim, 0.0 * mass, dim, CHUNKS, BLOCK_D
    )

    alpha = tl.load(alphas)
    rung = tl.arange(0, S_SLOTS)
    there = rung < S
    s = tl.load(bandwidths + rung, mask=there, other=1.0).to(tl.float64)
    w = tl.load(weights + rung, mask=there, other=0.0).to(tl.float64)
    s = tl.where(s > 0, s, float("nan"))
    squared = s * s
    rate, steepness = rates(s, alpha, dtype, FAMILY)
    slopes = within(steepness * w, MOST_STEEPNESS_WIDE if dtype == tl.float64 else MOST_STEEPNESS)
    slopes = slopes.to(dtype).to(tl.float64)
    w = within(w, MOST_WIDE if dtype == tl.float64 else MOST).to(dtype).to(tl.float64)
    of_pairs = r[None, :] / squared[:, None]
    far = there & (tl.sum(relative_value(of_pairs, alpha, FAMILY), axis=1) < 0.5 * PAIRS)
    alone = far if LADDER else rung < 0
    shifted = there & (alone == 0) & (relative_slope(reached / squared, alpha, FAMILY) > 0.5)
    ladder = Ladder(there, s, squared, w, slopes, far, alone, shifted)
    _store_table(table + b * ROWS_OF_TABLE * S, ladder, rate, alpha, S, dtype)

    folded = x_count < 0  # no
    if SERIES > 0:
        folded = _fold(series + b * (2 * SERIES + 1), nodes, powers, ladder, reached, dtype, SERIES)

    # What tiles leave out of all slopes: the shifted rungs' at r = 0, and with products, which see slopes that are much
    # alike, a typical one.
    shift = tl.sum(tl.where(shifted, slopes, 0.0))
    start = tl.where(folded, tl.sum(tl.where(there & (alone == 0) & (shifted == 0), slopes, 0.0)), 0.0)
    shift += start
    if PRODUCTS:
        # A point beside itself, in a sample's own term, would outweigh slopes that are tiny elsewhere.
        apart = tl.where(of_pairs > 0, relative_slope(of_pairs, alpha, FAMILY), 0.0)
        plain = tl.sum(apart, axis=1) / PAIRS
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
    tl.store(per_rung, derivative_in_bandwidth(s, slopes, FAMILY), mask=there)
    tl.store(per_rung + S, tl.where(far, mass, 0.0), mask=there)


@triton.jit
def _distances(
    x, y, q_sums, q_part, q_there, moment, zero, dim, CHUNKS: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """Squared distances in float64: of PAIRS points of x and y, and one that no pair of any of them exceeds; and 0, or
    NaN where a coordinate of a column is not finite. On the way, the columns' moments are stored."""
    # Some pairs stand for all; which ones must not follow from an order that the points may have.
    pair = tl.arange(0, PAIRS)
    i = (pair.to(tl.int64) * x.n) // PAIRS
    j = ((pair * 37 + 11) % PAIRS).to(tl.int64) * y.n // PAIRS
    r = tl.zeros([PAIRS], tl.float64)
    # Both means, from the centers, and how far apart they are.
    x_shift, y_shift, apart, poison = zero, zero, zero, zero
    for first in range(0, dim, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        x_mean = _over_splits(x.sums, x.part, x.there, 0, d, dim) / x.n
        y_mean = _over_splits(y.sums, y.part, y.there, 0, d, dim) / y.n
        tl.store(moment + d, _over_splits(q_sums, q_part, q_there, 1, d, dim), mask=d < dim)
        between = tl.load(x.center + d, mask=d < dim, other=0.0) + x_mean
        between -= tl.load(y.center + d, mask=d < dim, other=0.0) + y_mean
        x_shift += tl.sum(x_mean * x_mean)
        y_shift += tl.sum(y_mean * y_mean)
        apart += tl.sum(between * between)
        poison += tl.sum(0.0 * _over_splits(q_sums, q_part, q_there, 0, d, dim))
        difference = coordinates(x.points, i, x.n, dim, d).to(tl.float64)
        difference -= coordinates(y.points, j, y.n, dim, d).to(tl.float64)
        r += tl.sum(difference * difference, axis=1)
    # By the triangle inequality through the means, a pair of different samples, then one of the same.
    x_reached = _reached(x.reach, x.part, x.there, x_shift, CHUNKS)
    y_reached = _reached(y.reach, y.part, y.there, y_shift, CHUNKS)
    reached = tl.maximum(x_reached + y_reached + tl.sqrt(apart), 2 * tl.maximum(x_reached, y_reached))
    return r, reached * reached * (1 + 1e-5), poison  # no squared distance is larger, even as it is rounded


@triton.jit
def _store_table(table, ladder, rate, alpha, S: tl.constexpr, dtype: tl.constexpr):
    """The table of one member, see kernels.py; far rungs of an exponential kernel packed, in order."""
    rung = tl.arange(0, rate.shape[0])
    there, alone = ladder.there, ladder.alone
    largest: tl.constexpr = MOST_WIDE if dtype == tl.float64 else MOST
    limit = within((708.0 if dtype == tl.float64 else 87.0) / tl.abs(rate), largest)
    base = table + rung
    tl.store(base + RATE * S, rate.to(dtype), mask=there)
    tl.store(base + LOW * S, _low(rate, dtype), mask=there)
    tl.store(base + LIMIT * S, limit.to(dtype), mask=there)
    tl.store(base + WEIGHT * S, tl.where(alone, 0.0, ladder.w).to(dtype), mask=there)
    tl.store(base + STEEPNESS * S, tl.where(alone, 0.0, ladder.slopes).to(dtype), mask=there)
    tl.store(base + NEAR * S, tl.where(ladder.far, 0.0, 1.0).to(dtype), mask=there)
    tl.store(base + PLAIN * S, tl.where(ladder.shifted, 0.0, 1.0).to(dtype), mask=there)
    tl.store(base + ALPHA * S, (0.0 * ladder.s + alpha).to(dtype), mask=there)
    place = table + tl.cumsum(alone.to(tl.int32), axis=0) - 1
    rate = within(rate * LOG2_E, largest)
    tl.store(place + FAR_RATE * S, rate.to(dtype), mask=alone)
    tl.store(place + FAR_LOW * S, _low(rate, dtype), mask=alone)
    tl.store(place + FAR_LIMIT * S, limit.to(dtype), mask=alone)
    tl.store(place + FAR_WEIGHT * S, ladder.w.to(dtype), mask=alone)
    tl.store(place + FAR_STEEPNESS * S, ladder.slopes.to(dtype), mask=alone)
    tl.store(place + FAR_RUNG * S, rung.to(dtype), mask=alone)


@triton.jit
def _fold(series, nodes, powers, ladder, reached, dtype: tl.constexpr, SERIES: tl.constexpr):
    """Whether the near bandwidths of a Gaussian fold into a series, which is stored: where all of them are wide.

    u / r and slope are entire functions of r, and on 0 ... reached, a few widths, interpolation at Chebyshev nodes is
    as good as float32 (csrc/cpu/mmd/series.hpp): u = r P(t), slope = constant + r Q(t), t = 2 r / reached - 1. One
    polynomial of a sum over bandwidths costs as much as that of a single one.
    """
    near = ladder.there & (ladder.alone == 0)
    wide = near & (reached <= ladder.squared * (2 * WIDEST_REACH))
    count = tl.sum(near.to(tl.int32))
    # The powers shall be numbers of float32 (foldable_reach in csrc/cpu/mmd/series.hpp).
    folded = (tl.sum(wide.to(tl.int32)) == count) & (count > 1) & (reached > 1e-12) & (reached < 1e12)
    k = tl.arange(0, MOST_TERMS)
    at = 0.5 * reached * (1 + tl.load(nodes + k, mask=k < SERIES, other=0.0))
    inside = near[:, None] & (k < SERIES)[None, :]
    u = tl.where(inside, exponentials(at[None, :] * (-0.5 / ladder.squared)[:, None])[0] / at[None, :], 0.0)
    to_powers = tl.load(
        powers + k[:, None] * SERIES + k[None, :],
        mask=(k < SERIES)[:, None] & (k < SERIES)[None, :],
        other=0.0,
    )
    of_values = tl.sum(to_powers * tl.sum(ladder.w[:, None] * u, axis=0)[None, :], axis=1)
    of_slopes = tl.sum(to_powers * tl.sum(ladder.slopes[:, None] * u, axis=0)[None, :], axis=1)
    tl.store(series + k, of_values.to(dtype), mask=k < SERIES)
    tl.store(series + SERIES + k, of_slopes.to(dtype), mask=k < SERIES)
    tl.store(series + 2 * SERIES, (2 / reached).to(dtype))
    return folded


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
