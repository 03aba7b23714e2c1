"""Frequencies of random Fourier features, made from the seed in registers, and the angles of points.

Feature k has the 64-bit index start + k; Philox with key = seed and counter = (index low, index high, d / 4, 0) gives
the normals of four dimensions: some 40 operations per feature and dimension.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from ..points import coordinate
from .normals import box_muller, normals, words


class Drawn(NamedTuple):
    """Features: what their frequencies are made of."""

    key: tl.tensor  # [2] int64: seed, index of the first feature
    inverse: tl.tensor  # [parts]: 1 / (pi bandwidth)
    count: tl.tensor
    part: tl.tensor  # features of one bandwidth


@triton.jit
def scales(drawn, k):
    """1 / (pi bandwidth) of the features k; 0 from count on."""
    return tl.load(drawn.inverse + k // drawn.part, mask=k < drawn.count, other=0.0)


# --- few dimensions: a tuple of all of them, in every thread ---


@triton.jit
def frequencies(drawn, k, SLOTS: tl.constexpr):
    """W_k / pi of the features k: [SLOTS, BLOCK_K], one pair of dimensions and feature to a thread; 0 from count on."""
    shape: tl.constexpr = [SLOTS // 2, k.shape[0]]
    pair = tl.broadcast_to(tl.arange(0, SLOTS // 2)[:, None], shape)
    w0, w1, w2, w3 = words(drawn.key, tl.broadcast_to(k[None, :], shape), pair // 2)
    second = pair % 2 == 1
    g0, g1 = box_muller(tl.where(second, w2, w0), tl.where(second, w3, w1), drawn.inverse.dtype.element_ty)
    scale = scales(drawn, k)
    return tl.join(g0, g1).permute(0, 2, 1).reshape(SLOTS, k.shape[0]) * scale[None, :]


@triton.jit
def handed_out(made, first, dim: tl.constexpr, BLOCK_K: tl.constexpr, LANES: tl.constexpr):
    """The frequencies first ... first + BLOCK_K - 1 of made [SLOTS, ...] in all lanes: for every dimension
    [BLOCK_K, LANES]. LANES of at least the number of threads leave no other axis to spread over them."""
    slots: tl.constexpr = made.shape[0]
    chosen = tl.broadcast_to((first + tl.arange(0, BLOCK_K))[None, :], [slots, BLOCK_K])
    all_lanes = tl.broadcast_to(tl.gather(made, chosen, 1)[:, :, None], [slots, BLOCK_K, LANES])
    w = ()
    for d in tl.static_range(dim):
        w = w + (item(all_lanes, d),)
    return w


@triton.jit
def item(values, at: tl.constexpr):
    """values[at]. Costs nothing where a thread holds the whole first axis: x + -0.0 is x, at compile time."""
    index = tl.arange(0, values.shape[0])[:, None]
    if len(values.shape) == 3:
        index = index[:, :, None]
    return tl.sum(tl.where(index == at, values, -0.0), axis=0)


@triton.jit
def plus_items(total, terms):
    """total + terms[0] + terms[1] + ..., in this order, so that products are fused into it; tl.sum adds in pairs."""
    for at in tl.static_range(terms.shape[0]):
        total += item(terms, at)
    return total


@triton.jit
def product(x, w, dim: tl.constexpr):
    """sum_d x_d w_d of two tuples."""
    t = tl.fma(x[0], w[0], 0.0)  # which no sum takes apart: what sincospi adds would be fused into a single product
    for d in tl.static_range(1, dim):
        t += x[d] * w[d]
    return t


# --- many dimensions: in blocks of four, shared out with the tile ---


@triton.jit
def half_turns(x, key, inverse, i, k, n, dim: tl.constexpr):
    """t [BLOCK_I, BLOCK_K] of the points i and the features k; inverse [BLOCK_K]: 1 / (pi bandwidth)."""
    dtype: tl.constexpr = x.dtype.element_ty
    t = tl.zeros([i.shape[0], k.shape[0]], dtype)
    for block in range((dim + 3) // 4):
        g = normals(key, k, block, dtype)
        for offset in tl.static_range(4):
            t += inside(x, i, n, dim, 4 * block + offset)[:, None] * (g[offset] * inverse)[None, :]
    return t


@triton.jit
def inside(x, i, n, dim, d):
    """Coordinate d of the points i, 0 for a dimension or point that is not there: [BLOCK_I]."""
    return coordinate(x, i, tl.where(d < dim, n, 0), dim, d)
