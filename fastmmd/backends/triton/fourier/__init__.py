"""Random Fourier features in Triton, their frequencies made from the seed in registers, tile by tile.

    t_ik  = W_k . x_i / pi                              angles in half turns
    sum   = sum_i w_i [cos(pi t_ik), sin(pi t_ik)]      [2 * count]
    f(x_i) = sum_k a_k cos(pi t_ik) + b_k sin(pi t_ik)  and its gradient in x_i

In few dimensions rows are spread over the threads and stay in registers with their sums, lane by lane; a feature's
frequencies are the same number in every thread, each pair of normals made by one thread and handed to the others. In
more dimensions t is summed over blocks of four, whose normals all rows of a tile share, and the gradient is kept in
memory. See `frequencies`.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...calls import Features, FourierFrequencies, FourierFunction, FourierSum
from ...common import fourier as common
from .. import interpreted
from ..tiles import FUSED, MOST_SPLITS, constant, coordinate, signed, sincospi, tuned
from .frequencies import frequencies, half_turns, handed_out, normals, plus_items, product

F64 = torch.float64
SMALL_DIMS = 16  # all coordinates in registers
FLUSH = tl.constexpr(8)  # tiles of features that are made at once, their sums in the points' dtype; float64 beyond
PI = tl.constexpr(math.pi)
AT_ONCE = 396  # programs that an H200 runs at once: three on each of its 132 multiprocessors, for their registers


# --- few dimensions ---


@triton.jit
def sums_of_few(
    x, weights, key, inverse, k, n, count, part, first, last, dim: tl.constexpr, SLOTS: tl.constexpr,
    BLOCK_I: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Sums over the tiles first ... last - 1 of rows, of cosines and of sines, of the features k: twice [BLOCK_K]."""
    dtype: tl.constexpr = x.dtype.element_ty
    shape: tl.constexpr = [k.shape[0], LANES]
    w = handed_out(frequencies(key, inverse, k, count, part, SLOTS), 0, dim, k.shape[0], LANES)
    cosines = tl.zeros(shape, tl.float64)
    sines = tl.zeros(shape, tl.float64)
    for tile in range(first, last):
        lane_cosines = tl.zeros(shape, dtype)
        lane_sines = tl.zeros(shape, dtype)
        for step in tl.static_range(BLOCK_I // LANES):
            i = tile * BLOCK_I + step * LANES + tl.arange(0, LANES)
            point = tl.tuple([])
            for d in tl.static_range(dim):
                point = point + (tl.load(x + tl.cast(n, tl.int64) * d + i, mask=i < n, other=0.0),)
            sine, cosine, shifted = sincospi(product(point, w, dim))
            mass = tl.load(weights + i, mask=i < n, other=0.0)
            mass = signed(tl.broadcast_to(mass[None, :], shape), shifted)
            lane_cosines += mass * cosine
            lane_sines += mass * sine
        cosines += lane_cosines.to(tl.float64)
        sines += lane_sines.to(tl.float64)
    return tl.sum(cosines, axis=1), tl.sum(sines, axis=1)


@triton.jit
def function_of_few(
    x, coefficients, key, inverse, i, n, count, part, first, last, dim: tl.constexpr, SLOTS: tl.constexpr,
    VALUE: tl.constexpr, GRADIENT: tl.constexpr, BLOCK_K: tl.constexpr, FLUSH: tl.constexpr,
):  # fmt: skip
    """Sums over the groups first ... last - 1 of FLUSH tiles of features, at the rows i: value [BLOCK_I] and, for every
    dimension, gradient [BLOCK_I]."""
    dtype: tl.constexpr = x.dtype.element_ty
    point = tl.tuple([])
    gradients = (tl.zeros(i.shape, tl.float64),) * dim
    values = tl.zeros(i.shape, tl.float64)
    for d in tl.static_range(dim):
        point = point + (coordinate(x, i, n, dim, d),)
    for group in range(first, last):
        made_first = group * FLUSH * BLOCK_K
        made = frequencies(key, inverse, made_first + tl.arange(0, FLUSH * BLOCK_K), count, part, SLOTS)
        lane_values = tl.zeros(i.shape, dtype)
        lane_gradients = (lane_values,) * dim
        for tile in range(FLUSH):
            w = handed_out(made, tile * BLOCK_K, dim, BLOCK_K, i.shape[0])
            k = made_first + tile * BLOCK_K + tl.arange(0, BLOCK_K)
            a = tl.load(coefficients + k, mask=k < count, other=0.0)[:, None]
            c = tl.load(coefficients + count + k, mask=k < count, other=0.0)[:, None]
            sine, cosine, shifted = sincospi(product(point, w, dim))
            if VALUE:
                lane_values = plus_items(lane_values, signed(cosine * a + sine * c, shifted))
            if GRADIENT:
                slope = signed(cosine * c - sine * a, shifted)
                sums = tl.tuple([])
                for d in tl.static_range(dim):
                    sums = sums + (plus_items(lane_gradients[d], slope * w[d]),)
                lane_gradients = sums
        values += lane_values.to(tl.float64)
        sums = tl.tuple([])
        for d in tl.static_range(dim):
            sums = sums + (gradients[d] + lane_gradients[d].to(tl.float64),)
        gradients = sums
    return values, gradients


# --- many dimensions ---


@triton.jit
def sums_of_many(
    x, weights, key, inverse, k, n, count, part, first, last, dim: tl.constexpr, BLOCK_I: tl.constexpr
):  # fmt: skip
    """As sums_of_few."""
    scale = tl.load(inverse + k // part, mask=k < count, other=0.0)
    cosines = tl.zeros(k.shape, tl.float64)
    sines = tl.zeros(k.shape, tl.float64)
    for tile in range(first, last):
        i = tile * BLOCK_I + tl.arange(0, BLOCK_I)
        sine, cosine, shifted = sincospi(half_turns(x, key, scale, i, k, n, dim))
        mass = tl.load(weights + i, mask=i < n, other=0.0)
        mass = signed(tl.broadcast_to(mass[:, None], shifted.shape), shifted)
        cosines += tl.sum(mass * cosine, axis=0).to(tl.float64)
        sines += tl.sum(mass * sine, axis=0).to(tl.float64)
    return cosines, sines


@triton.jit
def function_of_many(
    x, coefficients, key, inverse, gradient, i, n, count, part, first, last, dim: tl.constexpr, VALUE: tl.constexpr,
    GRADIENT: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sums over the tiles first ... last - 1 of features, at the rows i: value [BLOCK_I]; the gradient is added to
    `gradient` [BLOCK_I], pointers to its rows."""
    dtype: tl.constexpr = x.dtype.element_ty
    values = tl.zeros(i.shape, tl.float64)
    for tile in range(first, last):
        k = tile * BLOCK_K + tl.arange(0, BLOCK_K)
        scale = tl.load(inverse + k // part, mask=k < count, other=0.0)
        a = tl.load(coefficients + k, mask=k < count, other=0.0)[None, :]
        c = tl.load(coefficients + count + k, mask=k < count, other=0.0)[None, :]
        sine, cosine, shifted = sincospi(half_turns(x, key, scale, i, k, n, dim))
        if VALUE:
            values += tl.sum(signed(cosine * a + sine * c, shifted), axis=1).to(tl.float64)
        if GRADIENT:
            slope = signed(cosine * c - sine * a, shifted) * (scale * PI)[None, :]
            for block in range((dim + 3) // 4):
                g = normals(key, k, block, dtype)
                for offset in tl.static_range(4):
                    d = 4 * block + offset
                    there = i < tl.where(d < dim, n, 0)
                    before = tl.load(gradient + d, mask=i < tl.where((d < dim) & (tile > first), n, 0), other=0.0)
                    sums = tl.sum(slope * g[offset][None, :], axis=1).to(tl.float64)
                    tl.store(gradient + d, before + sums, mask=there)
    return values


# --- kernels ---


@triton.jit
def sum_kernel(
    x,  # [B, dim, n] with SLOTS, otherwise [B, n, dim]
    weights,  # [B, n]
    key,  # [2] int64: seed, first feature
    inverse,  # [parts]: 1 / (pi bandwidth)
    scale,  # [parts] float64: of the features of a part
    out,  # [splits, B, 2, count] float64
    n,
    count,
    part,  # features of one bandwidth
    split_tiles,  # tiles of rows in a split
    dim: tl.constexpr,
    SLOTS: tl.constexpr,  # power of 2 of at least dim, at least 2; 0 where dim is many
    BLOCK_I: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LANES: tl.constexpr,  # divides BLOCK_I
):
    block, split, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    k = block * BLOCK_K + tl.arange(0, BLOCK_K)
    first, last = split * split_tiles, tl.minimum((split + 1) * split_tiles, tl.cdiv(n, BLOCK_I))
    x += b * n * dim
    weights += b * n
    if SLOTS:
        cosines, sines = sums_of_few(
            x, weights, key, inverse, k, n, count, part, first, last, dim, SLOTS, BLOCK_I, LANES
        )  # fmt: skip
    else:
        cosines, sines = sums_of_many(x, weights, key, inverse, k, n, count, part, first, last, dim, BLOCK_I)
    at = out + (split * tl.num_programs(2) + b) * 2 * count + k
    unit = tl.load(scale + k // part, mask=k < count, other=0.0)
    tl.store(at, unit * cosines, mask=k < count)
    tl.store(at + count, unit * sines, mask=k < count)


@triton.jit
def function_kernel(
    x,  # [B, n, dim]
    coefficients,  # [B, 2, count]: of cosines, of sines, times the features' scale
    key,  # [2] int64
    inverse,  # [parts]
    value,  # [splits, B, n] float64; unread without VALUE
    gradient,  # [splits, B, n, dim] float64; unread without GRADIENT
    n,
    count,
    part,
    split_tiles,  # tiles of features in a split, groups of FLUSH with SLOTS
    dim: tl.constexpr,
    SLOTS: tl.constexpr,
    VALUE: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    block, split, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i = block * BLOCK_I + tl.arange(0, BLOCK_I)
    row = (split * tl.num_programs(2) + b) * n + i
    x += b * n * dim
    coefficients += b * 2 * count
    gradient += row * dim
    first = split * split_tiles
    if SLOTS:
        last = tl.minimum(first + split_tiles, tl.cdiv(count, FLUSH * BLOCK_K))
        values, gradients = function_of_few(
            x, coefficients, key, inverse, i, n, count, part, first, last, dim, SLOTS, VALUE, GRADIENT, BLOCK_K, FLUSH
        )  # fmt: skip
        if GRADIENT:
            for d in tl.static_range(dim):
                tl.store(gradient + d, gradients[d] * PI, mask=i < n)
    else:
        last = tl.minimum(first + split_tiles, tl.cdiv(count, BLOCK_K))
        values = function_of_many(
            x, coefficients, key, inverse, gradient, i, n, count, part, first, last, dim, VALUE, GRADIENT, BLOCK_K
        )  # fmt: skip
    if VALUE:
        tl.store(value + row, values, mask=i < n)


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


def fourier_sum(call: FourierSum) -> Tensor:
    """sum_i w_i phi(x_i): [B, 2 * count], cosines first."""
    x, weights, features = call.x, call.weights, call.features
    (batch, n, dim), count, few = x.shape, features.count, x.shape[2] <= SMALL_DIMS
    block_i, block_k, lanes = _sum_blocks(n, count, dim, x.dtype)
    blocks = triton.cdiv(count, block_k)
    parts, per_split = _splits(blocks * batch, triton.cdiv(n, block_i))
    out = x.new_empty((parts, batch, 2, count), dtype=F64)
    kernel, choice = tuned(sum_kernel, batch * n * count, *_choices("BLOCK_K", block_k, few))
    kernel[lambda meta: (triton.cdiv(count, meta["BLOCK_K"]), parts, batch)](
        x.mT.contiguous() if few else x, weights, features.key, _inverse(features, math.pi, x),
        _scales(features, x.device, F64), out, n, count, _part(features), per_split, dim=dim, SLOTS=_slots(dim),
        BLOCK_I=block_i, LANES=lanes, **choice,
    )  # fmt: skip
    return _added(out).flatten(1).to(x.dtype)


def fourier_function(call: FourierFunction) -> tuple[Tensor, Tensor]:
    """f(x_i) = phi(x_i) . c: value [B, N] and gradient in x [B, N, D]; empty where not needed."""
    x, features, needs_value, needs_grad = call.x, call.features, call.needs_value, call.needs_gradient
    (batch, n, dim), count = x.shape, features.count
    block_i, block_k = _function_blocks(n, count, dim, x.dtype, needs_grad)
    blocks = triton.cdiv(n, block_i)
    parts, per_split = _splits(blocks * batch, triton.cdiv(count, block_k * (FLUSH.value if _slots(dim) else 1)))
    value = x.new_empty((parts, batch, n) if needs_value else 0, dtype=F64)
    grad = x.new_empty((parts, batch, n, dim) if needs_grad else 0, dtype=F64)
    by_part = call.coefficients.unflatten(1, (2, len(features.bandwidths), -1))
    scaled = by_part * _scales(features, x.device, x.dtype)[:, None]
    kernel, choice = tuned(function_kernel, batch * n * count, *_choices("BLOCK_I", block_i, _slots(dim) > 0))
    kernel[lambda meta: (triton.cdiv(n, meta["BLOCK_I"]), parts, batch)](
        x, scaled, features.key, _inverse(features, math.pi, x), value, grad, n, count, _part(features), per_split,
        dim=dim, SLOTS=_slots(dim), VALUE=needs_value, GRADIENT=needs_grad, BLOCK_K=block_k, **choice,
    )  # fmt: skip
    return (
        _added(value).to(x.dtype) if needs_value else x.new_empty(0),
        _added(grad).to(x.dtype) if needs_grad else x.new_empty(0),
    )


def fourier_frequencies(call: FourierFrequencies) -> Tensor:
    """W = G / bandwidth: [count, dim]."""
    features, dim, dtype = call.features, call.dim, call.dtype
    out = torch.empty((features.count, dim), dtype=dtype, device=features.key.device)
    block = 1024 if interpreted() else 128
    frequencies_kernel[(triton.cdiv(features.count, block),)](
        features.key,
        _inverse(features, 1.0, out),
        out,
        features.count,
        _part(features),
        dim=dim,
        BLOCK_K=block,
        **FUSED,
    )
    return out


fourier_discrepancy = partial(common.fourier_discrepancy, fourier_sum)
fourier_discrepancy_backward = partial(common.fourier_discrepancy_backward, fourier_function)
fourier_ascent = partial(common.fourier_ascent, fourier_sum)


def _part(features: Features) -> int:
    return features.count // len(features.bandwidths)


def _inverse(features: Features, unit: float, like: Tensor) -> Tensor:
    """1 / (unit bandwidth): [parts]."""
    return constant(tuple(1 / (unit * s) for s in features.bandwidths), like.device, like.dtype)


def _scales(features: Features, device: torch.device, dtype: torch.dtype) -> Tensor:
    """sqrt(weight / features of its part): [parts]."""
    part = _part(features)
    return constant(tuple(math.sqrt(w / part) for w in features.kernel_weights), device, dtype)


def _added(partial: Tensor) -> Tensor:
    """Partial results [splits, ...] added up."""
    return partial[0] if len(partial) == 1 else partial.sum(0)


def _slots(dim: int) -> int:
    return max(2, triton.next_power_of_2(dim)) if dim <= SMALL_DIMS else 0


@lru_cache(1024)
def _splits(programs: int, tiles: int) -> tuple[int, int]:
    """Parts into which `tiles` are shared out, and tiles of one: so that programs end first of which AT_ONCE run at
    once and each takes a tile's time to start. By sizes alone: sums, and their order, depend on nothing else."""
    waves = [
        (-(-programs * parts // AT_ONCE) * (-(-tiles // parts) + 1), parts)
        for parts in range(1, min(MOST_SPLITS, tiles) + 1)
    ]
    per_split = -(-tiles // min(waves)[1])
    return -(-tiles // per_split), per_split


def _choices(name: str, size: int, few: bool) -> list[dict[str, int]]:
    """Results of a program; in many dimensions their number moves lanes and with them the order of sums."""
    return [{name: part, "num_warps": 4} for part in ((size, size // 2) if few and size > 1 else (size,))]


def _sum_blocks(n: int, count: int, dim: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Rows and features of a tile, rows of a step. The interpreter's time is its number of operations."""
    if interpreted():
        rows = min(512, triton.next_power_of_2(n))
        return rows, min(64 if dim <= SMALL_DIMS else 256, triton.next_power_of_2(count)), rows
    if dim > SMALL_DIMS:
        return 256, 16, 256
    return 512, (8 if dim <= 8 else 4) // (dtype.itemsize // 4), 128  # frequencies and sums in registers


def _function_blocks(n: int, count: int, dim: int, dtype: torch.dtype, gradient: bool) -> tuple[int, int]:
    """Rows and features of a tile."""
    if interpreted():
        return min(512, triton.next_power_of_2(n)), min(8 if dim <= SMALL_DIMS else 256, triton.next_power_of_2(count))
    words = dtype.itemsize // 4
    if dim > SMALL_DIMS:
        return 128, 32 // words
    if not gradient:
        return 512 // words, 8 // words
    if dtype == F64:  # points, their gradients and the frequencies in registers
        return (256, 4) if dim <= 6 else (128, 4 if dim <= 12 else 2)
    return (512 if dim <= 6 else 256), 4
