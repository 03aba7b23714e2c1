"""Products p . q of float32 points by tensor cores, which take float16, nearly as exact as in float32.

Times a power of 2, each row is the sum of two float16 numbers, high + low, of 22 bits, and
p . q = low . high + high . low + high . high, at a third of the float16 rate. Tensor cores truncate what they add:
sums over BLOCK_D dimensions start from zero and are added in float32. With 32 dimensions the sum of 784 is off by less
than that of as many float32 multiply-adds, even if no bit beyond a float32's takes part in a truncated addition.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import FUSED
from ..math import checked
from ..points import coordinates


@triton.jit(do_not_specialize=["n"])
def split_kernel(
    points,  # [n, dim] float32
    halves,  # [padded n, 2, DIMS] float16: high and low; 0 in the padding and where the norm passes the limit
    norms,  # [n]: |x|^2, NaN where a coordinate is not finite
    n,
    limit,
    dim: tl.constexpr,
    DIMS: tl.constexpr,  # a multiple of BLOCK_D
    BLOCK_I: tl.constexpr,  # rows of one scale
    BLOCK_D: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    norm = tl.zeros([BLOCK_I], tl.float64)
    for first in range(0, DIMS, BLOCK_D):
        x = coordinates(points, i, n, dim, first + tl.arange(0, BLOCK_D)).to(tl.float64)
        norm += tl.sum(x * x, axis=1)
    norm = checked(norm).to(tl.float32)
    tl.store(norms + i, norm, mask=i < n)
    scale = tl.where(norm > limit, 0.0, exact_power(exponent(norm, limit)))[:, None]
    for first in range(0, DIMS, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        high, low = split(coordinates(points, i, n, dim, d) * scale)
        at = halves + i.to(tl.int64)[:, None] * (2 * DIMS) + d[None, :]
        tl.store(at, high)
        tl.store(at + DIMS, low)


@triton.jit
def split(x):
    """High and low of numbers below 2^16; normal ones from 2^-2 on."""
    high = x.to(tl.float16)
    return high, (x - high.to(tl.float32)).to(tl.float16)


@triton.jit
def exact_power(k):
    """2^k for -126 <= k <= 127."""
    return (127 + k << 23).to(tl.float32, bitcast=True)


@triton.jit
def exponent(norm, limit):
    """Of the power of 2 that brings rows of these squared norms, without those beyond the limit, to below 2^14."""
    largest = tl.max(tl.where(norm <= limit, norm, 0.0))
    return 14 - ((largest.to(tl.int32, bitcast=True) >> 23) - 125 >> 1)


@triton.jit
def unit(norms, i, n, limit):
    """What a 1 in the halves of the rows i means, which are those of one scale."""
    return exact_power(-exponent(tl.load(norms + i, mask=i < n, other=0.0), limit))


@triton.jit
def products(p, q, DIMS: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_D: tl.constexpr):
    """p . q of the halves of a tile, from its first rows on: [BLOCK_I, BLOCK_J]."""
    d = tl.arange(0, BLOCK_D)
    left = p + tl.arange(0, BLOCK_I)[:, None] * (2 * DIMS) + d[None, :]
    right = q + tl.arange(0, BLOCK_J)[:, None] * (2 * DIMS) + d[None, :]
    result = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)
    for first in range(0, DIMS, BLOCK_D):
        left_high, right_high = tl.load(left + first), tl.trans(tl.load(right + first))
        part = tl.dot(tl.load(left + DIMS + first), right_high)
        part = tl.dot(left_high, tl.trans(tl.load(right + DIMS + first)), part)
        result += tl.dot(left_high, right_high, part)
    return result


@triton.jit
def add_products(
    at,  # [BLOCK_I]: where the rows of the sums begin, float64
    c,  # [BLOCK_I, BLOCK_J]
    p,  # [n, dim]
    q_halves,  # [BLOCK_J, 2, DIMS]
    q_unit,
    i,
    n,
    before,  # [BLOCK_I]: where there are sums to add to
    dim: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Add c q - (sum_j c_ij) p_i. The rows of c have a scale each."""
    total = tl.sum(c, axis=1)[:, None]
    bits = tl.max(tl.abs(c), axis=1).to(tl.int32, bitcast=True)
    scale = tl.minimum(141 - (bits >> 23), 126)  # brings the largest to below 2^15
    high, low = split(c * exact_power(scale)[:, None])
    back = exact_power(-scale)[:, None]
    right = q_halves + tl.arange(0, c.shape[1])[:, None] * (2 * DIMS) + tl.arange(0, BLOCK_D)[None, :]
    for first in range(0, DIMS, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        right_high = tl.load(right + first)
        part = tl.dot(low, right_high)
        part = tl.dot(high, tl.load(right + DIMS + first), part)
        part = tl.dot(high, right_high, part)
        sums = (part * back * q_unit - total * coordinates(p, i, n, dim, d)).to(tl.float64)
        goal, there = at[:, None] + d[None, :], (d < dim)[None, :]
        sums += tl.load(goal, mask=before[:, None] & there, other=0.0)
        tl.store(goal, sums, mask=(i < n)[:, None] & there)


def padded(size: int, block: int) -> int:
    """The next multiple of block."""
    return -(-size // block) * block


def halves_of(points: Tensor, limit: float, block: int, block_d: int) -> tuple[Tensor, Tensor]:
    """Halves [padded n, 2, padded dim] of the points [n, dim], and squared norms [n]. limit: the largest squared norm
    of a row that has halves."""
    n, dim = points.shape
    halves = points.new_empty((padded(n, block), 2, padded(dim, block_d)), dtype=torch.float16)
    norms = points.new_empty(n)
    split_kernel[(len(halves) // block,)](
        points, halves, norms, n, limit, dim=dim, DIMS=halves.shape[2], BLOCK_I=block, BLOCK_D=block_d, num_warps=8,
        **FUSED,
    )  # fmt: skip
    return halves, norms
