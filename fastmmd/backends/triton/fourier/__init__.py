"""Random Fourier features in Triton, their frequencies made from the seed in registers, tile by tile.

t_ik  = W_k . x_i / pi                              angles in half turns
sum   = sum_i w_i [cos(pi t_ik), sin(pi t_ik)]      [2 * count]
f(x_i) = sum_k a_k cos(pi t_ik) + b_k sin(pi t_ik)  and its gradient in x_i
"""

from __future__ import annotations

import math
from functools import lru_cache, partial

import torch
import triton
from torch import Tensor

from ....device_cache import constant
from ...calls import Features, FourierFrequencies, FourierFunction, FourierSum
from ...common import fourier as common
from .. import interpreted
from ..launch import FUSED, MOST_SPLITS, tuned
from .kernels import FLUSH, frequencies_kernel, function_kernel, sum_kernel

F64 = torch.float64
SMALL_DIMS = 16  # all coordinates in registers
AT_ONCE = 396  # programs that an H200 runs at once: three on each of its 132 multiprocessors, for their registers


def fourier_sum(call: FourierSum) -> Tensor:
    """sum_i w_i phi(x_i): [B, 2 * count], cosines first."""
    x, weights, features = call.x, call.weights, call.features
    (batch, n, dim), count, few = x.shape, features.count, x.shape[2] <= SMALL_DIMS
    block_i, block_k, lanes = _sum_blocks(n, count, dim, x.dtype)
    blocks = triton.cdiv(count, block_k)
    parts, per_split = _splits(blocks * batch, triton.cdiv(n, block_i))
    out = x.new_empty((parts, batch, 2, count), dtype=F64)
    kernel, choice = tuned(sum_kernel, batch * n * count, *_choices("BLOCK_K", block_k, few))
    kernel[lambda meta: (triton.cdiv(count, meta["BLOCK_K"]) * batch, parts)](
        x.mT.contiguous() if few else x, weights, features.key, _inverse(features, math.pi, x),
        _scales(features, x.device, F64), out, n, count, _part(features), per_split, batch, dim=dim, SLOTS=_slots(dim),
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
    kernel[lambda meta: (triton.cdiv(n, meta["BLOCK_I"]) * batch, parts)](
        x, scaled, features.key, _inverse(features, math.pi, x), value, grad, n, count, _part(features), per_split,
        batch, dim=dim, SLOTS=_slots(dim), VALUE=needs_value, GRADIENT=needs_grad, BLOCK_K=block_k, **choice,
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
