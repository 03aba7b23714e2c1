"""Random Fourier features in plain torch: frequencies from Philox-4x32-10 and Box-Muller, tile by tile, in float64."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from ..calls import Features, FourierFrequencies, FourierFunction, FourierSum
from ..common import fourier as common
from .tiles import TILE_ELEMENTS, row_tiles

F64 = torch.float64
MASK = 0xFFFFFFFF


def fourier_sum(call: FourierSum) -> Tensor:
    """sum_i w_i phi(x_i): [B, 2 * count], cosines first."""
    x, weights, features = call.x, call.weights, call.features
    batch, n, dim = x.shape
    frequencies, scale = _scaled(features, dim)
    out = x.new_zeros((batch, 2, features.count), dtype=F64)
    for b, i in row_tiles(batch, n, features.count):
        angle = x[b, i].to(F64) @ frequencies.T
        w = weights[b, i].to(F64)
        out[b, 0] += torch.einsum("bi,bik->bk", w, angle.cos())
        out[b, 1] += torch.einsum("bi,bik->bk", w, angle.sin())
    return (out * scale).flatten(1).to(x.dtype)


def fourier_function(call: FourierFunction) -> tuple[Tensor, Tensor]:
    """f(x_i) = phi(x_i) . c: value [B, N] and gradient in x [B, N, D]; empty where not needed."""
    x, features, needs_value, needs_grad = call.x, call.features, call.needs_value, call.needs_gradient
    batch, n, dim = x.shape
    frequencies, scale = _scaled(features, dim)
    cosine, sine = (call.coefficients.to(F64).unflatten(1, (2, -1)) * scale).unbind(1)
    value = x.new_empty((batch, n) if needs_value else (0,))
    grad = x.new_empty((batch, n, dim) if needs_grad else (0,))
    for b, i in row_tiles(batch, n, features.count):
        angle = x[b, i].to(F64) @ frequencies.T
        cos, sin = angle.cos(), angle.sin()
        if needs_value:
            value[b, i] = (
                torch.einsum("bik,bk->bi", cos, cosine[b]).add_(torch.einsum("bik,bk->bi", sin, sine[b])).to(x.dtype)
            )
        if needs_grad:
            grad[b, i] = ((cos * sine[b, None] - sin * cosine[b, None]) @ frequencies).to(x.dtype)
    return value, grad


def fourier_frequencies(call: FourierFrequencies) -> Tensor:
    """W = G / bandwidth: [count, dim]."""
    features, dim, dtype = call.features, call.dim, call.dtype
    return _frequencies(features, dim).to(dtype)


fourier_discrepancy = partial(common.fourier_discrepancy, fourier_sum)
fourier_discrepancy_backward = partial(common.fourier_discrepancy_backward, fourier_function)
fourier_ascent = partial(common.fourier_ascent, fourier_sum)


def _scaled(features: Features, dim: int) -> tuple[Tensor, Tensor]:
    """Frequencies [count, dim] and the features' scale [count], in float64."""
    part = features.count // len(features.bandwidths)
    return _frequencies(features, dim), _by_part(features, [math.sqrt(w / part) for w in features.kernel_weights])


def _frequencies(features: Features, dim: int) -> Tensor:
    normals = torch.empty((features.count, dim), dtype=F64, device=features.key.device)
    chunk = max(1, TILE_ELEMENTS // (dim + 4))
    for first in range(0, features.count, chunk):
        index = torch.arange(first, min(first + chunk, features.count), device=features.key.device)
        normals[first : first + chunk] = standard_normals(features.key, index, dim)
    return normals * _by_part(features, [1 / s for s in features.bandwidths])[:, None]


def _by_part(features: Features, values: list[float]) -> Tensor:
    """One value per bandwidth, repeated over its part of the features: [count]."""
    part = features.count // len(values)
    device = features.key.device
    return torch.cat([torch.full((part,), value, dtype=F64, device=device) for value in values])


def standard_normals(key: Tensor, index: Tensor, dim: int) -> Tensor:
    """G for the features start + index: [len(index), dim], float64.

    Philox-4x32-10 (Salmon et al. 2011), key = (seed low, seed high), counter = (feature low, feature high,
    dimension // 4, 0). The words 0, 1 and 2, 3 each give two normals by Box-Muller, cosine first.
    """
    seed, feature = key[0], (key[1] + index)[:, None]
    block = torch.arange((dim + 3) // 4, device=key.device)[None]
    words = philox(
        [feature & MASK, (feature >> 32) & MASK, block, torch.zeros_like(block)], [seed & MASK, (seed >> 32) & MASK]
    )
    normals = []
    for first, second in ((words[0], words[1]), (words[2], words[3])):
        radius = torch.sqrt(-2 * torch.log((2 * (first >> 9) + 1).to(F64) * 2.0**-24))
        angle = second.to(F64) * (2 * math.pi * 2.0**-32)
        normals += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(normals, -1).flatten(1)[:, :dim]


def philox(counter: list[Tensor], key: list[Tensor]) -> list[Tensor]:
    """Ten rounds of Philox-4x32 on int64 tensors that hold 32-bit words."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(a, 0xD2511F53)
        high1, low1 = _multiply(c, 0xCD9E8D57)
        a, b, c, d = high1 ^ b ^ k0, low1, high0 ^ d ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return list(torch.broadcast_tensors(a, b, c, d))


def _multiply(word: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """The high and low 32 bits of a 32 x 32-bit product; halves keep int64 from overflowing in the high word."""
    low = word * (constant & 0xFFFF)
    high = word * (constant >> 16)
    return ((high + (low >> 16)) >> 16) & MASK, (low + ((high & 0xFFFF) << 16)) & MASK
