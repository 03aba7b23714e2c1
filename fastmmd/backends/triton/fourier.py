"""Random Fourier features in Triton, their frequencies made from the seed in registers, tile by tile.

    t_ik  = W_k . x_i / pi                              angles in half turns
    sum   = sum_i w_i [cos(pi t_ik), sin(pi t_ik)]      [2 * count]
    f(x_i) = sum_k a_k cos(pi t_ik) + b_k sin(pi t_ik)  and its gradient in x_i

Feature k has the 64-bit index start + k; Philox with key = seed and counter = (index low, index high, d / 4, 0) gives
the normals of four dimensions. They are made again for every tile: some 50 operations per feature and dimension, shared
by all rows of the tile, beside about 30 for the sine and cosine of every row.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..specs import FeatureSpec
from . import interpreted
from .tiles import box_muller, constant, coordinate, philox, sincospi, splits

F64 = torch.float64
SLOTS = 16  # coordinates of a gradient that are kept in registers, beyond in memory


@triton.jit
def normals(key, k, block, dtype: tl.constexpr):
    """The normals of dimensions 4 block ... 4 block + 3 of the features k [BLOCK_K]: four vectors."""
    seed, start = tl.load(key), tl.load(key + 1)
    index = start + k.to(tl.int64)
    zero = tl.zeros(k.shape, tl.uint32)
    c0 = (index & 0xFFFFFFFF).to(tl.uint32)
    c1 = ((index >> 32) & 0xFFFFFFFF).to(tl.uint32)
    k0, k1 = (seed & 0xFFFFFFFF).to(tl.uint32), ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    w0, w1, w2, w3 = philox(c0, c1, zero + block, zero, k0, k1)
    g0, g1 = box_muller(w0, w1, dtype)
    g2, g3 = box_muller(w2, w3, dtype)
    return g0, g1, g2, g3


@triton.jit
def half_turns(x, key, inverse, i, k, n, dim: tl.constexpr):
    """t [BLOCK_I, BLOCK_K] of the points i and the features k; inverse [BLOCK_K]: 1 / (pi bandwidth)."""
    dtype: tl.constexpr = x.dtype.element_ty
    t = tl.zeros([i.shape[0], k.shape[0]], dtype)
    for block in range((dim + 3) // 4):
        g0, g1, g2, g3 = normals(key, k, block, dtype)
        t += inside(x, i, n, dim, 4 * block)[:, None] * (g0 * inverse)[None, :]
        t += inside(x, i, n, dim, 4 * block + 1)[:, None] * (g1 * inverse)[None, :]
        t += inside(x, i, n, dim, 4 * block + 2)[:, None] * (g2 * inverse)[None, :]
        t += inside(x, i, n, dim, 4 * block + 3)[:, None] * (g3 * inverse)[None, :]
    return t


@triton.jit
def inside(x, i, n, dim, d):
    """Coordinate d of the points i, 0 for a dimension or point that is not there: [BLOCK_I]."""
    return coordinate(x, i, tl.where(d < dim, n, 0), dim, d)


@triton.jit
def sum_kernel(
    x,  # [B, n, dim]
    weights,  # [B, n]
    key,  # [2] int64: seed, first feature
    inverse,  # [parts]: 1 / (pi bandwidth)
    out,  # [splits, B, 2, count] float64
    n,
    count,
    part,  # features of one bandwidth
    split_tiles,  # tiles of rows in a split
    dim: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    block, split, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    k = block * BLOCK_K + tl.arange(0, BLOCK_K)
    scale = tl.load(inverse + k // part, mask=k < count, other=0.0)
    x += b * n * dim
    cosines = tl.zeros([BLOCK_K], tl.float64)
    sines = tl.zeros([BLOCK_K], tl.float64)
    for tile in range(split * split_tiles, tl.minimum((split + 1) * split_tiles, tl.cdiv(n, BLOCK_I))):
        i = tile * BLOCK_I + tl.arange(0, BLOCK_I)
        w = tl.load(weights + b * n + i, mask=i < n, other=0.0)
        sine, cosine = sincospi(half_turns(x, key, scale, i, k, n, dim))
        cosines += tl.sum(w[:, None] * cosine, axis=0).to(tl.float64)
        sines += tl.sum(w[:, None] * sine, axis=0).to(tl.float64)
    at = out + (split * tl.num_programs(2) + b) * 2 * count + k
    tl.store(at, cosines, mask=k < count)
    tl.store(at + count, sines, mask=k < count)


@triton.jit
def function_kernel(
    x,  # [B, n, dim]
    coefficients,  # [B, 2, count]: of cosines, of sines, times the features' scale
    key,  # [2] int64
    inverse,  # [parts]
    value,  # [splits, B, n] float64; unread without VALUE
    gradient,  # [splits, B, n, dim] float64, zeros; unread without GRADIENT
    n,
    count,
    part,
    split_tiles,  # tiles of features in a split
    dim: tl.constexpr,
    DIM_SLOTS: tl.constexpr,  # power of 2 of at least dim, 1 where the gradient is kept in memory
    VALUE: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    block, split, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    dtype: tl.constexpr = x.dtype.element_ty
    i = block * BLOCK_I + tl.arange(0, BLOCK_I)
    row = (split * tl.num_programs(2) + b) * n + i
    x += b * n * dim
    coefficients += b * 2 * count
    values = tl.zeros([BLOCK_I], tl.float64)
    gradients = tl.zeros([BLOCK_I, DIM_SLOTS], tl.float64)
    slot = tl.arange(0, DIM_SLOTS)
    for tile in range(split * split_tiles, tl.minimum((split + 1) * split_tiles, tl.cdiv(count, BLOCK_K))):
        k = tile * BLOCK_K + tl.arange(0, BLOCK_K)
        scale = tl.load(inverse + k // part, mask=k < count, other=0.0)
        a = tl.load(coefficients + k, mask=k < count, other=0.0)
        c = tl.load(coefficients + count + k, mask=k < count, other=0.0)
        sine, cosine = sincospi(half_turns(x, key, scale, i, k, n, dim))
        if VALUE:
            values += tl.sum(cosine * a[None, :] + sine * c[None, :], axis=1).to(tl.float64)
        if GRADIENT:
            slope = (cosine * c[None, :] - sine * a[None, :]) * (scale * 3.141592653589793)[None, :]
            for first in range(0, dim, 4):
                g = normals(key, k, first // 4, dtype)
                for offset in tl.static_range(4):
                    d = first + offset
                    sums = tl.sum(slope * g[offset][None, :], axis=1).to(tl.float64)
                    if DIM_SLOTS >= dim:
                        gradients += tl.where(slot[None, :] == d, sums[:, None], 0.0)
                    elif d < dim:
                        at = gradient + row * dim + d
                        tl.store(at, tl.load(at, mask=i < n, other=0.0) + sums, mask=i < n)
    if VALUE:
        tl.store(value + row, values, mask=i < n)
    if GRADIENT:
        if DIM_SLOTS >= dim:
            at = gradient + row[:, None] * dim + slot[None, :]
            tl.store(at, gradients, mask=(i < n)[:, None] & (slot < dim)[None, :])


@triton.jit
def frequencies_kernel(
    key,  # [2] int64
    inverse,  # [parts]: 1 / bandwidth
    out,  # [count, dim]
    count,
    part,
    dim: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    scale = tl.load(inverse + k // part, mask=k < count, other=0.0)
    for first in range(0, dim, 4):
        g = normals(key, k, first // 4, out.dtype.element_ty)
        for offset in tl.static_range(4):
            d = first + offset
            if d < dim:
                tl.store(out + k.to(tl.int64) * dim + d, g[offset] * scale, mask=k < count)


def fourier_sum(x: Tensor, weights: Tensor, features: FeatureSpec) -> Tensor:
    """sum_i w_i phi(x_i): [B, 2 * count], cosines first."""
    (batch, n, dim), count = x.shape, features.count
    block_i, block_k = _blocks(n, count, 256, 16)
    blocks, tiles = triton.cdiv(count, block_k), triton.cdiv(n, block_i)
    parts, per_split = splits(blocks * batch, tiles)
    out = x.new_empty((parts, batch, 2, count), dtype=F64)
    sum_kernel[(blocks, parts, batch)](
        x, weights, features.key, _inverse(features, math.pi, x), out, n, count, _part(features), per_split,
        dim=dim, BLOCK_I=block_i, BLOCK_K=block_k, num_warps=4,
    )  # fmt: skip
    return (out.sum(0) * _scales(features, x.device)).flatten(1).to(x.dtype)


def fourier_function(
    x: Tensor, coefficients: Tensor, features: FeatureSpec, needs_value: bool, needs_grad: bool
) -> tuple[Tensor, Tensor]:
    """f(x_i) = phi(x_i) . c: value [B, N] and gradient in x [B, N, D]; empty where not needed."""
    (batch, n, dim), count = x.shape, features.count
    block_i, block_k = _blocks(n, count, 128, 32)
    blocks, tiles = triton.cdiv(n, block_i), triton.cdiv(count, block_k)
    parts, per_split = splits(blocks * batch, tiles)
    value = x.new_empty((parts, batch, n) if needs_value else 0, dtype=F64)
    grad = x.new_zeros((parts, batch, n, dim) if needs_grad else 0, dtype=F64)
    scaled = (coefficients.to(F64).unflatten(1, (2, -1)) * _scales(features, x.device)).to(x.dtype)
    function_kernel[(blocks, parts, batch)](
        x, scaled, features.key, _inverse(features, math.pi, x), value, grad, n, count, _part(features), per_split,
        dim=dim, DIM_SLOTS=triton.next_power_of_2(dim) if dim <= SLOTS else 1, VALUE=needs_value,
        GRADIENT=needs_grad, BLOCK_I=block_i, BLOCK_K=block_k, num_warps=4,
    )  # fmt: skip
    empty = x.new_empty(0)
    return (
        value.sum(0).to(x.dtype) if needs_value else empty,
        grad.sum(0).to(x.dtype) if needs_grad else empty.clone(),
    )


def fourier_frequencies(features: FeatureSpec, dim: int, dtype: torch.dtype) -> Tensor:
    """W = G / bandwidth: [count, dim]."""
    out = torch.empty((features.count, dim), dtype=dtype, device=features.key.device)
    block = 1024 if interpreted() else 128
    frequencies_kernel[(triton.cdiv(features.count, block),)](
        features.key, _inverse(features, 1.0, out), out, features.count, _part(features), dim=dim, BLOCK_K=block
    )
    return out


def _part(features: FeatureSpec) -> int:
    return features.count // len(features.bandwidths)


def _inverse(features: FeatureSpec, unit: float, like: Tensor) -> Tensor:
    """1 / (unit bandwidth): [parts]."""
    return constant(tuple(1 / (unit * s) for s in features.bandwidths), like.device, like.dtype)


def _scales(features: FeatureSpec, device: torch.device) -> Tensor:
    """sqrt(weight / features of its part): [count] float64."""
    part = _part(features)
    return constant(tuple(math.sqrt(w / part) for w in features.weights), device, F64).repeat_interleave(part)


def _blocks(n: int, count: int, rows: int, features: int) -> tuple[int, int]:
    """Rows and features of a tile. The interpreter's time is its number of operations."""
    if interpreted():
        return min(512, triton.next_power_of_2(n)), min(256, triton.next_power_of_2(count))
    return rows, features
