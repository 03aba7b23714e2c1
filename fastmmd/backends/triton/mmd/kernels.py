"""The kernels of mmd2 and witness on one tile of squared distances.

    total = sum_s weight_s kappa_s(r)          of a far rung, weight_s u_s(r) of a near one; u = kappa(r) - kappa(0)
    slope = sum_s weight_s kappa_s'(r) - shift        see plan.py

as csrc/cpu/kernels.hpp: whichever keeps more digits. That depends on the data, so `plan` decides it on the device.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..tiles import exponentials, log1p, power_of_2, square_root

# Rows of the table [rows, S]. LOW: what rounding took off RATE, which would shift all pairs alike. LIMIT: an argument
# beyond which exp(RATE argument) is nothing. STEEPNESS: slope at r = 0 (of laplacian and energy its factor). NEAR: 0 or
# 1. PLAIN: 1 where a rung adds its slope as it is, 0 where minus that at r = 0. Far rungs of the exponential kernels
# count 0 here, and stand once more, packed, with powers of 2, in the rows FAR_...
RATE, LOW, LIMIT, WEIGHT, STEEPNESS, NEAR, PLAIN, ALPHA = (tl.constexpr(row) for row in range(8))
FAR_RATE, FAR_LOW, FAR_LIMIT, FAR_WEIGHT, FAR_STEEPNESS, FAR_RUNG = (tl.constexpr(row) for row in range(8, 14))
ROWS_OF_TABLE = tl.constexpr(14)
SQUARINGS = {"gaussian": 2, "laplacian": 1}  # from one rung of the ladder to the next


@triton.jit
def evaluate(
    r,  # [BLOCK_I, BLOCK_J]
    w,  # [BLOCK_I, BLOCK_J] or [1, BLOCK_J]
    row_weight,  # [BLOCK_I, 1]; unread without PER_RUNG
    by_slope,  # [S_SLOTS] float64: sums of r kappa' / steepness, to which those of this tile are added with PER_RUNG
    by_value,  # [S_SLOTS] float64: of u, of kappa for far rungs
    table,  # [14, S]
    series,  # [2 SERIES + 1]: coefficients of P, of Q, by rising powers, and 2 / reach
    start,  # of the slope
    far,  # rungs in the rows FAR_...
    folded,  # whether P and Q stand for the near rungs: u = r P(t), slope = start + r Q(t), t = 2 r / reach - 1
    S: tl.constexpr,
    S_SLOTS: tl.constexpr,
    FOLLOWS: tl.constexpr,  # bit s: rung s comes from rung s - 1 by squaring
    KERNEL: tl.constexpr,
    SQUARED: tl.constexpr,
    PER_RUNG: tl.constexpr,
    SERIES: tl.constexpr,
):
    """total and slope: [BLOCK_I, BLOCK_J] each, and the sums per rung."""
    total = tl.zeros_like(r)
    slope = total + start
    argument, inverse = r, r
    if KERNEL == "laplacian" or KERNEL == "energy":
        argument = square_root(r)
        inverse = tl.where(argument > 0, 1 / argument, 0.0)
    if SERIES > 0:
        if folded:
            t = r * tl.load(series + 2 * SERIES) - 1
            p, q = total + tl.load(series + SERIES - 1), total + tl.load(series + 2 * SERIES - 1)
            for k in tl.static_range(SERIES - 2, -1, -1):
                p = p * t + tl.load(series + k)
                q = q * t + tl.load(series + SERIES + k)
            total += r * p
            slope += r * q
    if not folded:
        total, slope, by_slope, by_value = ladder(
            total, slope, argument, inverse, r, w, row_weight, by_slope, by_value, table,
            S, S_SLOTS, FOLLOWS, KERNEL, SQUARED, PER_RUNG,
        )  # fmt: skip
    if KERNEL == "gaussian" or KERNEL == "laplacian":
        for s in range(far):
            x = tl.minimum(argument, tl.load(table + FAR_LIMIT * S + s), propagate_nan=tl.PropagateNan.ALL)
            kappa = power_of_2(x, tl.load(table + FAR_RATE * S + s), tl.load(table + FAR_LOW * S + s))
            total += tl.load(table + FAR_WEIGHT * S + s) * kappa
            slope += tl.load(table + FAR_STEEPNESS * S + s) * kappa
            if PER_RUNG:
                rung = tl.load(table + FAR_RUNG * S + s).to(tl.int32)
                by_slope, by_value = _per_rung(
                    by_slope, by_value, rung, 1.0, r, kappa, kappa, inverse, w * row_weight, S_SLOTS, KERNEL
                )
    if KERNEL == "laplacian":
        slope *= inverse
    return total, slope, by_slope, by_value


@triton.jit
def ladder(
    total, slope, argument, inverse, r, w, row_weight, by_slope, by_value, table, S: tl.constexpr,
    S_SLOTS: tl.constexpr, FOLLOWS: tl.constexpr, KERNEL: tl.constexpr, SQUARED: tl.constexpr, PER_RUNG: tl.constexpr,
):  # fmt: skip
    """The sums with those over the rungs, one from another by squaring where it can be."""
    u = tl.zeros_like(r)
    if KERNEL == "imq" or KERNEL == "rational_quadratic":
        largest: tl.constexpr = 1e300 if r.dtype == tl.float64 else 1e30
        argument = tl.where(r > largest, largest, r)
    for s in tl.static_range(S):
        rate, weight = tl.load(table + RATE * S + s), tl.load(table + WEIGHT * S + s)
        steepness, near = tl.load(table + STEEPNESS * S + s), tl.load(table + NEAR * S + s)
        if KERNEL == "gaussian" or KERNEL == "laplacian":
            if (FOLLOWS >> s) & 1:
                for _ in tl.static_range(SQUARED):
                    u = u * u + (u + u)
            elif near > 0:  # else it costs nothing
                x = tl.minimum(argument, tl.load(table + LIMIT * S + s), propagate_nan=tl.PropagateNan.ALL)
                u = exponentials(x * rate + x * tl.load(table + LOW * S + s))[0]
            term = u
            slope += steepness * (u + tl.load(table + PLAIN * S + s))  # exactly 0 where kappa is
            if PER_RUNG:
                by_slope, by_value = _per_rung(
                    by_slope, by_value, s, near, r, u + 1, u, inverse, w * row_weight, S_SLOTS, KERNEL
                )
        else:
            if KERNEL == "energy":
                term, plain, shifted = -argument, inverse, inverse
            elif KERNEL == "imq":
                reciprocal = 1 / (argument + rate)
                u, kappa = -argument * reciprocal, rate * reciprocal
                plain, shifted = kappa * kappa, u * (kappa + 1)
                term = tl.where(near > 0, u, kappa)
            else:
                scaled = argument * rate
                scaled = tl.where(scaled > largest, largest, scaled)
                u, kappa = exponentials(-tl.load(table + ALPHA * S + s) * log1p(scaled))
                reciprocal = 1 / (scaled + 1)
                plain, shifted = kappa * reciprocal, (u - scaled) * reciprocal
                term = tl.where(near > 0, u, kappa)
            slope += steepness * tl.where(tl.load(table + PLAIN * S + s) > 0, plain, shifted)
            if PER_RUNG:
                by_slope, by_value = _per_rung(
                    by_slope, by_value, s, 1.0, r, plain, term, inverse, w * row_weight, S_SLOTS, KERNEL
                )
        total += weight * term
    return total, slope, by_slope, by_value


@triton.jit
def _per_rung(
    by_slope, by_value, rung, times, r, plain, term, inverse, shares, S_SLOTS: tl.constexpr, KERNEL: tl.constexpr
):
    if KERNEL == "laplacian":
        plain *= inverse
    finite = tl.where(r > 1e30, 1e30, r)  # inf * 0 at far pairs is 0
    sum_of_slopes = tl.sum(tl.sum(shares * (finite * plain), axis=0), axis=0) * times
    sum_of_terms = tl.sum(tl.sum(shares * term, axis=0), axis=0) * times
    here = tl.arange(0, S_SLOTS) == rung
    by_slope += tl.where(here, sum_of_slopes.to(tl.float64), 0.0)
    by_value += tl.where(here, sum_of_terms.to(tl.float64), 0.0)
    return by_slope, by_value
