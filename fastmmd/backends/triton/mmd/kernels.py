"""The kernels of mmd2 and witness on one tile of squared distances.

    total = sum_s weight_s kappa_s(r)          of a far rung, weight_s u_s(r) of a near one; u = kappa(r) - kappa(0)
    slope = sum_s weight_s kappa_s'(r) - shift        see plan.py

as csrc/cpu/mmd/kernels.hpp: whichever keeps more digits. That depends on the data, so `plan` decides it on the device.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from ..math import exponentials, power_of_2
from .families import arguments, rung, slope_in_r

# Rows of the table [rows, S]. LOW: what rounding took off RATE, which would shift all pairs alike. LIMIT: an argument
# beyond which exp(RATE argument) is nothing. STEEPNESS: slope at r = 0 (of laplacian and energy its factor). NEAR: 0 or
# 1. PLAIN: 1 where a rung adds its slope as it is, 0 where minus that at r = 0. Far rungs of the exponential kernels
# count 0 here, and stand once more, packed, with powers of 2, in the rows FAR_...
RATE, LOW, LIMIT, WEIGHT, STEEPNESS, NEAR, PLAIN, ALPHA = (tl.constexpr(row) for row in range(8))
FAR_RATE, FAR_LOW, FAR_LIMIT, FAR_WEIGHT, FAR_STEEPNESS, FAR_RUNG = (tl.constexpr(row) for row in range(8, 14))
ROWS_OF_TABLE = tl.constexpr(14)


class Rungs(NamedTuple):
    """Of a plan what the tiles read."""

    table: tl.tensor  # [14, S]
    series: tl.tensor  # [2 SERIES + 1]: coefficients of P, of Q, by rising powers, and 2 / reach
    start: tl.tensor  # of the slope
    far: tl.tensor  # rungs in the rows FAR_...
    folded: tl.tensor  # whether P and Q stand for the near rungs: u = r P(t), slope = start + r Q(t), t = 2 r/reach - 1


class Pairs(NamedTuple):
    """A tile of pairs, and what the sums per rung multiply them by."""

    r: tl.tensor  # [BLOCK_I, BLOCK_J]
    argument: tl.tensor  # see `families.arguments`
    inverse: tl.tensor
    w: tl.tensor  # [BLOCK_I, BLOCK_J] or [1, BLOCK_J]
    row_weight: tl.tensor  # [BLOCK_I, 1]; unread without PER_RUNG


@triton.jit
def evaluate(
    r,  # [BLOCK_I, BLOCK_J]
    w,  # [BLOCK_I, BLOCK_J] or [1, BLOCK_J]
    row_weight,  # [BLOCK_I, 1]; unread without PER_RUNG
    by_slope,  # [S_SLOTS] float64: sums of r kappa' / steepness, to which those of this tile are added with PER_RUNG
    by_value,  # [S_SLOTS] float64: of u, of kappa for far rungs
    rungs,
    S: tl.constexpr,
    FOLLOWS: tl.constexpr,  # bit s: rung s comes from rung s - 1 by squaring
    FAMILY: tl.constexpr,
    SQUARINGS: tl.constexpr,  # from one rung of the ladder to the next; 0: the family has none
    PER_RUNG: tl.constexpr,
    SERIES: tl.constexpr,
):
    """total and slope: [BLOCK_I, BLOCK_J] each, and the sums per rung."""
    total = tl.zeros_like(r)
    slope = total + rungs.start
    argument, inverse = arguments(r, FAMILY)
    pairs = Pairs(r, argument, inverse, w, row_weight)
    if SERIES > 0:
        if rungs.folded:
            t = r * tl.load(rungs.series + 2 * SERIES) - 1
            p, q = total + tl.load(rungs.series + SERIES - 1), total + tl.load(rungs.series + 2 * SERIES - 1)
            for k in tl.static_range(SERIES - 2, -1, -1):
                p = p * t + tl.load(rungs.series + k)
                q = q * t + tl.load(rungs.series + SERIES + k)
            total += r * p
            slope += r * q
    if not rungs.folded:
        if SQUARINGS > 0:
            total, slope, by_slope, by_value = _ladder(
                total, slope, by_slope, by_value, pairs, rungs.table, S, FOLLOWS, FAMILY, SQUARINGS, PER_RUNG
            )
        else:
            total, slope, by_slope, by_value = _one_by_one(
                total, slope, by_slope, by_value, pairs, rungs.table, S, FAMILY, PER_RUNG
            )
    if SQUARINGS > 0:
        total, slope, by_slope, by_value = _far(total, slope, by_slope, by_value, pairs, rungs, S, FAMILY, PER_RUNG)
    return total, slope_in_r(slope, inverse, FAMILY), by_slope, by_value


@triton.jit
def _ladder(
    total, slope, by_slope, by_value, pairs, table, S: tl.constexpr, FOLLOWS: tl.constexpr, FAMILY: tl.constexpr,
    SQUARINGS: tl.constexpr, PER_RUNG: tl.constexpr,
):  # fmt: skip
    """The sums with those over the near rungs of an exponential kernel, one from another by squaring where it can be.

    exp(2^k x) = exp(x)^(2^k), and of u = exp(x) - 1 the square is (u + 1)^2 - 1 = u (u + 2), which loses no digits.
    """
    u = tl.zeros_like(pairs.r)
    for s in tl.static_range(S):
        rate, weight = tl.load(table + RATE * S + s), tl.load(table + WEIGHT * S + s)
        steepness, near = tl.load(table + STEEPNESS * S + s), tl.load(table + NEAR * S + s)
        if (FOLLOWS >> s) & 1:
            for _ in tl.static_range(SQUARINGS):
                u = u * u + (u + u)
        elif near > 0:  # else it costs nothing
            x = tl.minimum(pairs.argument, tl.load(table + LIMIT * S + s), propagate_nan=tl.PropagateNan.ALL)
            u = exponentials(x * rate + x * tl.load(table + LOW * S + s))[0]
        slope += steepness * (u + tl.load(table + PLAIN * S + s))  # exactly 0 where kappa is
        if PER_RUNG:
            by_slope, by_value = _per_rung(by_slope, by_value, s, near, pairs, u + 1, u, FAMILY)
        total += weight * u
    return total, slope, by_slope, by_value


@triton.jit
def _one_by_one(
    total, slope, by_slope, by_value, pairs, table, S: tl.constexpr, FAMILY: tl.constexpr, PER_RUNG: tl.constexpr
):
    """The sums with those over the rungs of a kernel without a ladder."""
    for s in tl.static_range(S):
        rate, weight = tl.load(table + RATE * S + s), tl.load(table + WEIGHT * S + s)
        steepness, near = tl.load(table + STEEPNESS * S + s), tl.load(table + NEAR * S + s)
        u, kappa, plain, shifted = rung(pairs.argument, pairs.inverse, rate, tl.load(table + ALPHA * S + s), FAMILY)
        term = tl.where(near > 0, u, kappa)
        slope += steepness * tl.where(tl.load(table + PLAIN * S + s) > 0, plain, shifted)
        if PER_RUNG:
            by_slope, by_value = _per_rung(by_slope, by_value, s, 1.0, pairs, plain, term, FAMILY)
        total += weight * term
    return total, slope, by_slope, by_value


@triton.jit
def _far(total, slope, by_slope, by_value, pairs, rungs, S: tl.constexpr, FAMILY: tl.constexpr, PER_RUNG: tl.constexpr):
    """The sums with those over the far rungs of an exponential kernel, as many as the plan says.

    Where most pairs are far apart for a bandwidth, kappa is small and u near -1: sums of kappa keep its digits.
    """
    for f in range(rungs.far):
        at = rungs.table + f
        x = tl.minimum(pairs.argument, tl.load(at + FAR_LIMIT * S), propagate_nan=tl.PropagateNan.ALL)
        kappa = power_of_2(x, tl.load(at + FAR_RATE * S), tl.load(at + FAR_LOW * S))
        total += tl.load(at + FAR_WEIGHT * S) * kappa
        slope += tl.load(at + FAR_STEEPNESS * S) * kappa
        if PER_RUNG:
            s = tl.load(at + FAR_RUNG * S).to(tl.int32)
            by_slope, by_value = _per_rung(by_slope, by_value, s, 1.0, pairs, kappa, kappa, FAMILY)
    return total, slope, by_slope, by_value


@triton.jit
def _per_rung(by_slope, by_value, s, times, pairs, plain, term, FAMILY: tl.constexpr):
    """The sums per rung with those of the tile, `times` 0 or 1, at rung s."""
    shares = pairs.w * pairs.row_weight
    finite = tl.where(pairs.r > 1e30, 1e30, pairs.r)  # inf * 0 at far pairs is 0
    of_slopes = tl.sum(tl.sum(shares * (finite * slope_in_r(plain, pairs.inverse, FAMILY)), axis=0), axis=0) * times
    of_terms = tl.sum(tl.sum(shares * term, axis=0), axis=0) * times
    here = tl.arange(0, by_slope.shape[0]) == s
    by_slope += tl.where(here, of_slopes.to(tl.float64), 0.0)
    by_value += tl.where(here, of_terms.to(tl.float64), 0.0)
    return by_slope, by_value
