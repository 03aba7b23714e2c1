"""Parzen log-density sums in plain torch: the nearest sample is the same for every sigma, so one running minimum
of the squared distance per point rescales the sums of all sigmas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .tiles import TILE_ELEMENTS

F64 = torch.float64


def parzen_update(points: Tensor, samples: Tensor, sigmas: Sequence[float], minimum: Tensor, sums: Tensor) -> None:
    """Add the samples to minimum [M] and sums [S, M] in place."""
    for i, _, r in _distance_tiles(points, samples, minimum.dtype):
        nearest = torch.minimum(minimum[i], r.amin(1))
        # The first tile finds minimum = inf and sums = 0: there is nothing to rescale yet.
        shift = torch.where(minimum[i].isinf(), 0.0, (minimum[i] - nearest).to(F64))
        minimum[i] = nearest
        for s, sigma in enumerate(sigmas):
            t = 0.5 / sigma**2
            tile = torch.exp((nearest[:, None] - r) * t)
            sums[s, i] = sums[s, i] * torch.exp(-t * shift) + tile.sum(1, dtype=F64)


def parzen_backward(
    grad: Tensor,
    points: Tensor,
    samples: Tensor,
    sigmas: Sequence[float],
    minimum: Tensor,
    sums: Tensor,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of sum grad * log-density in points [M, D] and samples [N, D]; empty where not needed."""
    g_points = torch.zeros_like(points, dtype=F64) if needs[0] else points.new_empty(0)
    g_samples = torch.zeros_like(samples, dtype=F64) if needs[1] else points.new_empty(0)
    for i, j, r in _distance_tiles(points, samples, minimum.dtype):
        c = torch.zeros_like(r, dtype=F64)
        for s, sigma in enumerate(sigmas):
            share = (grad[s, i].to(F64) / sums[s, i] / sigma**2)[:, None]
            c += share * torch.exp((minimum[i, None] - r).to(F64) * (0.5 / sigma**2))
        x, y = points[i].to(F64), samples[j].to(F64)
        if needs[0]:
            g_points[i] += c @ y - c.sum(1, keepdim=True) * x
        if needs[1]:
            g_samples[j] += c.T @ x - c.sum(0)[:, None] * y
    return g_points.to(points.dtype), g_samples.to(points.dtype)


def _distance_tiles(points: Tensor, samples: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, slice, Tensor]]:
    """Squared distances, tile by tile: products in float64, where they cancel harmlessly, then rounded to dtype.

    Forward and backward see the same rounding, or the minimum would not be that of the tile.
    """
    columns = min(len(samples), 4096)
    rows = max(1, TILE_ELEMENTS // columns)
    for first in range(0, len(points), rows):
        i = slice(first, first + rows)
        x = points[i].to(F64)
        x2 = _norms(x)[:, None]
        for second in range(0, len(samples), columns):
            j = slice(second, second + columns)
            y = samples[j].to(F64)
            yield i, j, torch.addmm(x2 + _norms(y), x, y.T, alpha=-2).clamp_(min=0).to(dtype)


def _norms(x: Tensor) -> Tensor:
    """Squared norms [N]; NaN where a coordinate is not finite, so that no difference of infinities hides it."""
    norms = x.square().sum(1)
    return norms + (norms - norms)
