"""The families of kernels in Triton: all that depends on which one it is, chosen by its name when a kernel is compiled.

What the host must know of a family is in `fastmmd.kernels.FAMILIES`, with the formulas. Those with a ladder of
bandwidths (gaussian, laplacian) have u = expm1(rate argument) and need no code per pair but the ladder's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ....kernels import LIMITS
from ..math import exponentials, log1p, square_root

_narrow, _wide = LIMITS[torch.float32], LIMITS[torch.float64]
MOST, MOST_WIDE = tl.constexpr(_narrow.rate), tl.constexpr(_wide.rate)
MOST_STEEPNESS, MOST_STEEPNESS_WIDE = tl.constexpr(_narrow.steepness), tl.constexpr(_wide.steepness)
MOST_ARGUMENT, MOST_ARGUMENT_WIDE = tl.constexpr(_narrow.argument), tl.constexpr(_wide.argument)
MOST_DIVISOR, MOST_DIVISOR_WIDE = tl.constexpr(_narrow.divisor), tl.constexpr(_wide.divisor)
LEAST_DIVISOR, LEAST_DIVISOR_WIDE = tl.constexpr(1 / _narrow.divisor), tl.constexpr(1 / _wide.divisor)

# --- for a pair ---


@triton.jit
def arguments(r, FAMILY: tl.constexpr):
    """What the family is a function of, r or its root, and what its slope in r is to be multiplied by."""
    argument, inverse = r, r
    if FAMILY == "laplacian" or FAMILY == "energy":
        argument = square_root(r)
        inverse = tl.where(argument > 0, 1 / argument, 0.0)
    elif FAMILY == "imq" or FAMILY == "rational_quadratic":  # whose quotients must not become inf / inf
        largest: tl.constexpr = MOST_ARGUMENT_WIDE if r.dtype == tl.float64 else MOST_ARGUMENT
        argument = tl.where(r > largest, largest, r)
    return argument, inverse


@triton.jit
def slope_in_r(slope, inverse, FAMILY: tl.constexpr):
    """The slope in r of slopes in the argument, up to the factor in the steepness; 0 at r = 0 where it has none."""
    if FAMILY == "laplacian":
        slope *= inverse
    return slope


@triton.jit
def rung(argument, inverse, rate, alpha, FAMILY: tl.constexpr):
    """Of a family without a ladder: u, kappa, slope / steepness, and slope / steepness minus that at r = 0.

    Each as a product of its small factors, so that none loses digits where kappa is near 1 or near 0.
    """
    if FAMILY == "imq":
        reciprocal = 1 / (argument + rate)
        u, kappa = -argument * reciprocal, rate * reciprocal
        plain, shifted = kappa * kappa, u * (kappa + 1)
    elif FAMILY == "rational_quadratic":
        largest: tl.constexpr = MOST_ARGUMENT_WIDE if argument.dtype == tl.float64 else MOST_ARGUMENT
        scaled = argument * rate
        scaled = tl.where(scaled > largest, largest, scaled)
        u, kappa = exponentials(-alpha * log1p(scaled))
        reciprocal = 1 / (scaled + 1)
        plain, shifted = kappa * reciprocal, (u - scaled) * reciprocal
    else:
        u, kappa = -argument, -argument
        plain, shifted = inverse, inverse
    return u, kappa, plain, shifted


# --- for a plan, in float64 ---


@triton.jit
def within(x, largest):
    """x clamped to +- largest; NaN stays."""
    return tl.where(x > largest, largest, tl.where(x < -largest, -largest, x))


@triton.jit
def rates(s, alpha, dtype: tl.constexpr, FAMILY: tl.constexpr):
    """Of the bandwidths s: what multiplies the argument (imq: is added to it), and the unit of the slope."""
    squared = s * s
    if FAMILY == "gaussian":
        rate, steepness = -0.5 / squared, -0.5 / squared
    elif FAMILY == "laplacian":
        rate, steepness = -1 / s, -0.5 / s
    elif FAMILY == "imq":
        least: tl.constexpr = LEAST_DIVISOR_WIDE if dtype == tl.float64 else LEAST_DIVISOR
        most: tl.constexpr = MOST_DIVISOR_WIDE if dtype == tl.float64 else MOST_DIVISOR
        rate, steepness = tl.where(squared < least, least, within(squared, most)), -1 / squared
    elif FAMILY == "rational_quadratic":
        rate, steepness = 0.5 / (alpha * squared), -0.5 / squared
    else:
        rate, steepness = 0.0 * s, 0.0 * s - 0.5
    return within(rate, MOST_WIDE if dtype == tl.float64 else MOST), steepness


@triton.jit
def relative_slope(t, alpha, FAMILY: tl.constexpr):
    """kappa'(r) / kappa'(0) of a smooth family at t = r / s^2; 0 for the others, whose slopes are never shifted."""
    if FAMILY == "gaussian":
        return exponentials(-0.5 * t)[1]
    elif FAMILY == "imq":
        return 1 / ((1 + t) * (1 + t))
    elif FAMILY == "rational_quadratic":
        return exponentials(-(alpha + 1) * log1p(0.5 * t / alpha))[1]
    else:
        return 0.0 * t


@triton.jit
def relative_value(t, alpha, FAMILY: tl.constexpr):
    """kappa(r) of a bounded family at t = r / s^2; 1 for the other one, whose u is never replaced by kappa."""
    if FAMILY == "gaussian":
        return exponentials(-0.5 * t)[1]
    elif FAMILY == "laplacian":
        return exponentials(-tl.sqrt(t))[1]
    elif FAMILY == "imq":
        return 1 / (1 + t)
    elif FAMILY == "rational_quadratic":
        return exponentials(-alpha * log1p(0.5 * t / alpha))[1]
    else:
        return 0.0 * t + 1


@triton.jit
def derivative_in_bandwidth(s, slopes, FAMILY: tl.constexpr):
    """d kappa / d s over r kappa'(r) / steepness: kappa depends on r / s^2 alone, so that it is -2 / s steepness."""
    return 0.0 * s if FAMILY == "energy" else -2 / s * slopes
