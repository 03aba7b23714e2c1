"""Kernels of random Fourier features: sums over rows, sums over features, the frequencies themselves.

In few dimensions rows are spread over the threads and stay in registers with their sums, lane by lane; a feature's
frequencies are the same number in every thread, each pair of normals made by one thread and handed to the others. In
more dimensions t is summed over blocks of four, whose normals all rows of a tile share, and the gradient is kept in
memory. See `frequencies`.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from ..math import signed, sincospi
from ..points import coordinate, place_and_member
from .frequencies import Drawn, frequencies, half_turns, handed_out, plus_items, product, scales
from .normals import normals

ROW_TILES = tl.constexpr(4)  # tiles of rows whose 16 terms a lane adds up in float32: many GPUs have little float64
FLUSH = tl.constexpr(8)  # tiles of features that are made at once, their sums in the points' dtype; float64 beyond
PI = tl.constexpr(math.pi)


# --- few dimensions ---


@triton.jit
def sums_of_few(
    x, weights, drawn, k, n, first, last, dim: tl.constexpr, SLOTS: tl.constexpr, BLOCK_I: tl.constexpr,
    LANES: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Sums over the tiles first ... last - 1 of rows, of cosines and of sines, of the features k: twice [BLOCK_K].
    TILES: after how many of them they go on in float64."""
    dtype: tl.constexpr = x.dtype.element_ty
    shape: tl.constexpr = [k.shape[0], LANES]
    w = handed_out(frequencies(drawn, k, SLOTS), 0, dim, k.shape[0], LANES)
    cosines = tl.zeros(shape, tl.float64)
    sines = tl.zeros(shape, tl.float64)
    for group in range(first, last, TILES):
        lane_cosines = tl.zeros(shape, dtype)
        lane_sines = tl.zeros(shape, dtype)
        for tile in range(group, tl.minimum(group + TILES, last)):
            for step in tl.static_range(BLOCK_I // LANES):
                i = tile * BLOCK_I + step * LANES + tl.arange(0, LANES)
                point = ()
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
    x, coefficients, drawn, i, n, first, last, dim: tl.constexpr, SLOTS: tl.constexpr, VALUE: tl.constexpr,
    GRADIENT: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sums over the groups first ... last - 1 of FLUSH tiles of features, at the rows i: value [BLOCK_I] and, for every
    dimension, gradient [BLOCK_I]."""
    dtype: tl.constexpr = x.dtype.element_ty
    point = ()
    gradients = (tl.zeros(i.shape, tl.float64),) * dim
    values = tl.zeros(i.shape, tl.float64)
    for d in tl.static_range(dim):
        point = point + (coordinate(x, i, n, dim, d),)
    for group in range(first, last):
        made_first = group * FLUSH * BLOCK_K
        made = frequencies(drawn, made_first + tl.arange(0, FLUSH * BLOCK_K), SLOTS)
        lane_values = tl.zeros(i.shape, dtype)
        lane_gradients = (lane_values,) * dim
        for tile in range(FLUSH):
            w = handed_out(made, tile * BLOCK_K, dim, BLOCK_K, i.shape[0])
            k = made_first + tile * BLOCK_K + tl.arange(0, BLOCK_K)
            a = tl.load(coefficients + k, mask=k < drawn.count, other=0.0)[:, None]
            c = tl.load(coefficients + drawn.count + k, mask=k < drawn.count, other=0.0)[:, None]
            sine, cosine, shifted = sincospi(product(point, w, dim))
            if VALUE:
                lane_values = plus_items(lane_values, signed(cosine * a + sine * c, shifted))
            if GRADIENT:
                slope = signed(cosine * c - sine * a, shifted)
                sums = ()
                for d in tl.static_range(dim):
                    sums = sums + (plus_items(lane_gradients[d], slope * w[d]),)
                lane_gradients = sums
        values += lane_values.to(tl.float64)
        sums = ()
        for d in tl.static_range(dim):
            sums = sums + (gradients[d] + lane_gradients[d].to(tl.float64),)
        gradients = sums
    return values, gradients


# --- many dimensions ---


@triton.jit
def sums_of_many(
    x, weights, drawn, k, n, first, last, dim: tl.constexpr, BLOCK_I: tl.constexpr
):  # fmt: skip
    """As sums_of_few."""
    scale = scales(drawn, k)
    cosines = tl.zeros(k.shape, tl.float64)
    sines = tl.zeros(k.shape, tl.float64)
    for tile in range(first, last):
        i = tile * BLOCK_I + tl.arange(0, BLOCK_I)
        sine, cosine, shifted = sincospi(half_turns(x, drawn.key, scale, i, k, n, dim))
        mass = tl.load(weights + i, mask=i < n, other=0.0)
        mass = signed(tl.broadcast_to(mass[:, None], shifted.shape), shifted)
        cosines += tl.sum(mass * cosine, axis=0).to(tl.float64)
        sines += tl.sum(mass * sine, axis=0).to(tl.float64)
    return cosines, sines


@triton.jit
def function_of_many(
    x, coefficients, drawn, gradient, i, n, first, last, dim: tl.constexpr, VALUE: tl.constexpr,
    GRADIENT: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sums over the tiles first ... last - 1 of features, at the rows i: value [BLOCK_I]; the gradient is added to
    `gradient` [BLOCK_I], pointers to its rows."""
    dtype: tl.constexpr = x.dtype.element_ty
    values = tl.zeros(i.shape, tl.float64)
    for tile in range(first, last):
        k = tile * BLOCK_K + tl.arange(0, BLOCK_K)
        scale = scales(drawn, k)
        a = tl.load(coefficients + k, mask=k < drawn.count, other=0.0)[None, :]
        c = tl.load(coefficients + drawn.count + k, mask=k < drawn.count, other=0.0)[None, :]
        sine, cosine, shifted = sincospi(half_turns(x, drawn.key, scale, i, k, n, dim))
        if VALUE:
            values += tl.sum(signed(cosine * a + sine * c, shifted), axis=1).to(tl.float64)
        if GRADIENT:
            slope = signed(cosine * c - sine * a, shifted) * (scale * PI)[None, :]
            for block in range((dim + 3) // 4):
                g = normals(drawn.key, k, block, dtype)
                for offset in tl.static_range(4):
                    d = 4 * block + offset
                    there = i < tl.where(d < dim, n, 0)
                    before = tl.load(gradient + d, mask=i < tl.where((d < dim) & (tile > first), n, 0), other=0.0)
                    sums = tl.sum(slope * g[offset][None, :], axis=1).to(tl.float64)
                    tl.store(gradient + d, before + sums, mask=there)
    return values


# --- kernels ---


@triton.jit(do_not_specialize=["n", "split_tiles", "members"])
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
    members,  # B
    dim: tl.constexpr,
    SLOTS: tl.constexpr,  # power of 2 of at least dim, at least 2; 0 where dim is many
    BLOCK_I: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LANES: tl.constexpr,  # divides BLOCK_I
):
    block, b = place_and_member(tl.cdiv(count, BLOCK_K))
    split = tl.program_id(1)
    k = block * BLOCK_K + tl.arange(0, BLOCK_K)
    first, last = split * split_tiles, tl.minimum((split + 1) * split_tiles, tl.cdiv(n, BLOCK_I))
    drawn = Drawn(key, inverse, count, part)
    x += b * n * dim
    weights += b * n
    if SLOTS:
        cosines, sines = sums_of_few(x, weights, drawn, k, n, first, last, dim, SLOTS, BLOCK_I, LANES, ROW_TILES)
    else:
        cosines, sines = sums_of_many(x, weights, drawn, k, n, first, last, dim, BLOCK_I)
    at = out + (split * members + b) * 2 * count + k
    unit = tl.load(scale + k // part, mask=k < count, other=0.0)
    tl.store(at, unit * cosines, mask=k < count)
    tl.store(at + count, unit * sines, mask=k < count)


@triton.jit(do_not_specialize=["n", "split_tiles", "members"])
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
    members,  # B
    dim: tl.constexpr,
    SLOTS: tl.constexpr,
    VALUE: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    block, b = place_and_member(tl.cdiv(n, BLOCK_I))
    split = tl.program_id(1)
    i = block * BLOCK_I + tl.arange(0, BLOCK_I)
    row = (split * members + b) * n + i
    drawn = Drawn(key, inverse, count, part)
    x += b * n * dim
    coefficients += b * 2 * count
    gradient += row * dim
    first = split * split_tiles
    if SLOTS:
        last = tl.minimum(first + split_tiles, tl.cdiv(count, FLUSH * BLOCK_K))
        values, gradients = function_of_few(
            x, coefficients, drawn, i, n, first, last, dim, SLOTS, VALUE, GRADIENT, BLOCK_K
        )  # fmt: skip
        if GRADIENT:
            for d in tl.static_range(dim):
                tl.store(gradient + d, gradients[d] * PI, mask=i < n)
    else:
        last = tl.minimum(first + split_tiles, tl.cdiv(count, BLOCK_K))
        values = function_of_many(
            x, coefficients, drawn, gradient, i, n, first, last, dim, VALUE, GRADIENT, BLOCK_K
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
