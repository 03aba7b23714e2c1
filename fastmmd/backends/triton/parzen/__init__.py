"""Parzen log-density sums in Triton: all bandwidths in one pass over the distances.

minimum_i = min_j r_ij
sums_si   = sum_j exp((minimum_i - r_ij) t_s)          t_s = 1 / (2 sigma_s^2)
gradient of a point  = sum_j c_ij (q_j - p_i)          c_ij = sum_s share_si exp((minimum_i - r_ij) t_s)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ....device_cache import constant
from ...calls import Parzen, ParzenBackward
from ...common.parzen import rounded_state
from ...common.products import squared_norms
from .. import interpreted
from ..launch import FUSED, splits, stages, tuned
from ..math import LOG2_E
from .halves import halves_of, padded
from .kernels import gradient_kernel, merge_kernel, update_kernel

F64 = torch.float64
DIRECT_DIMS = 16  # up to here by differences
CANCELING = 8000.0  # |x|^2 / (2 sigma^2), beyond which the rounding of products may cost 0.005 nats


def parzen_update(call: Parzen) -> None:
    """Add the samples to minimum [M] and sums [S, M] in place."""
    points, samples, sigmas, sums = call.points, call.samples, call.sigmas, call.sums
    m, n, count = len(points), len(samples), len(sigmas)
    if m == 0 or n == 0:
        return
    minimum = rounded_state(call).minimum
    tile = _tile(m, n, points, False)
    parts, per_split, launches = _launches(m, n, points, tile)
    rates, limit = _rates(sigmas, points)
    halves, norms = zip(*(_prepared(x, limit, tile) for x in (points, samples)), strict=True)
    minima = points.new_empty((len(launches), parts, m))
    partial_sums = points.new_empty((len(launches), parts, count, m), dtype=F64)
    for k, (blocks, options) in enumerate(launches):
        kernel, choice = tuned(update_kernel, m * n, *stages(options.pop("num_warps"), options["HALVES"]))
        kernel[(blocks, parts)](
            points, samples, *halves, *norms, rates, minima[k], partial_sums[k], limit, m, n, per_split,
            S=count, **options, **choice,
        )  # fmt: skip
    merge_kernel[(triton.cdiv(m, 128),)](
        minima, partial_sums, rates, minimum, sums, m, len(launches) * parts, S=count, BLOCK_I=128,
        num_warps=4, **FUSED,
    )  # fmt: skip
    call.minimum.copy_(minimum)


def parzen_backward(call: ParzenBackward) -> tuple[Tensor, Tensor]:
    """Gradients of sum grad * log-density in points [M, D] and samples [N, D]; empty where not needed."""
    forward, grad, needs = call.forward, call.grad, (call.needs_points, call.needs_samples)
    points, samples, sigmas = forward.points, forward.samples, forward.sigmas
    minimum, sums = forward.minimum.to(points.dtype), forward.sums
    if not (len(points) and len(samples)):
        return torch.zeros_like(points), torch.zeros_like(samples)
    tile = _tile(len(points), len(samples), points, True)
    rates, limit = _rates(sigmas, points)
    prepared = [_prepared(x, limit, tile) for x in (points, samples)]
    inverse_squares = constant(tuple(sigma**-2 for sigma in sigmas), grad.device, F64)
    shares = (grad / sums * inverse_squares[:, None]).to(points.dtype)

    def gradient(rows: Tensor, columns: Tensor, rows_are_points: bool) -> Tensor:
        n, m = len(rows), len(columns)
        parts, per_split, launches = _launches(n, m, points, tile)
        halves, norms = zip(*(prepared if rows_are_points else prepared[::-1]), strict=True)
        out = rows.new_empty((parts, *rows.shape), dtype=F64)
        for blocks, options in launches:
            gradient_kernel[(blocks, parts)](
                rows, columns, *halves, *norms, rates, minimum, shares, out, limit, n, m, per_split,
                S=len(sigmas), ROWS_ARE_POINTS=rows_are_points, **options, **FUSED,
            )  # fmt: skip
        return out.sum(0).to(rows.dtype)

    return (
        gradient(points, samples, True) if needs[0] else points.new_empty(0),
        gradient(samples, points, False) if needs[1] else points.new_empty(0),
    )


def _rates(sigmas: Sequence[float], like: Tensor) -> tuple[Tensor, float]:
    """t log2 e of all sigmas [S], and the squared norm beyond which products cancel."""
    rates = tuple(0.5 * LOG2_E.value / sigma**2 for sigma in sigmas)
    limit = 2 * CANCELING * min(sigmas) ** 2 * (2.0**29 if like.dtype == F64 else 1)  # the ratio of precisions
    return constant(rates, like.device, like.dtype), min(limit, 1e38)


def _by_products(points: Tensor) -> bool:
    return points.shape[1] > DIRECT_DIMS


def _tile(n: int, m: int, points: Tensor, gradient: bool) -> dict[str, int]:
    """Sizes of a tile, warps of a program. The interpreter's time is its number of operations."""
    size, dims, warps = 64, 32, 8
    if interpreted():
        size = max(16, min(256, triton.next_power_of_2(max(n, m))))
        dims = max(16, min(128, triton.next_power_of_2(points.shape[1])))
    elif _by_products(points) and points.dtype == torch.float32:
        size, warps = (64, 4) if gradient else (128, 8)  # for each warp 16 rows, as tensor cores take them
    return dict(BLOCK_I=size, BLOCK_J=size, BLOCK_D=dims, num_warps=warps)


def _launches(
    n: int, m: int, points: Tensor, tile: dict[str, int]
) -> tuple[int, int, list[tuple[int, dict[str, Any]]]]:
    """Splits of m columns, the tiles of one, and for each launch the blocks of n rows and the options."""
    dim, products = points.shape[1], _by_products(points)
    parts, per_split = splits(triton.cdiv(n, tile["BLOCK_I"]), triton.cdiv(m, tile["BLOCK_J"]))
    halves = products and points.dtype == torch.float32
    options = dict(dim=dim, DIMS=padded(dim, tile["BLOCK_D"]), PRODUCTS=products, HALVES=halves, **tile)
    launches = [options | dict(CANCELING=False)]
    if products:
        launches.append(options | dict(CANCELING=True, HALVES=False, BLOCK_I=min(tile["BLOCK_I"], 16)))
    return parts, per_split, [(triton.cdiv(n, launch["BLOCK_I"]), launch) for launch in launches]


def _prepared(points: Tensor, limit: float, tile: dict[str, int]) -> tuple[Tensor, Tensor]:
    """Halves and squared norms; the points where nothing reads these."""
    if not _by_products(points):
        return points, points
    if points.dtype == F64:
        return points, squared_norms(points)
    return halves_of(points, limit, tile["BLOCK_I"], tile["BLOCK_D"])
