"""Parzen log-density sums in plain torch: the nearest sample is the same for every sigma, so one running minimum
of the squared distance per point rescales the sums of all sigmas."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..calls import Parzen, ParzenBackward
from .tiles import TILE_ELEMENTS

F64 = torch.float64


def parzen_update(call: Parzen) -> None:
    """Add the samples to minimum [M] and sums [S, M] in place."""
    points, samples, sigmas, minimum, sums = call.points, call.samples, call.sigmas, call.minimum, call.sums
    for i, _, r in _distance_tiles(points.to(F64), samples.to(F64), minimum.dtype):
        nearest = torch.minimum(minimum[i], r.amin(1))
        # The first tile finds minimum = inf and sums = 0: there is nothing to rescale yet.
        shift = torch.where(minimum[i].isinf(), 0.0, (minimum[i] - nearest).to(F64))
        minimum[i] = nearest
        for s, sigma in enumerate(sigmas):
            t = 0.5 / sigma**2
            tile = torch.exp((nearest[:, None] - r) * t)
            sums[s, i] = sums[s, i] * torch.exp(-t * shift) + tile.sum(1, dtype=F64)


def parzen_backward(call: ParzenBackward) -> tuple[Tensor, Tensor]:
    """Gradients of sum grad * log-density in points [M, D] and samples [N, D]; empty where not needed."""
    forward, grad, needs = call.forward, call.grad, (call.needs_points, call.needs_samples)
    points, samples, sigmas = forward.points, forward.samples, forward.sigmas
    minimum, sums = forward.minimum, forward.sums
    dtype, points, samples = points.dtype, points.to(F64), samples.to(F64)
    g_points = torch.zeros_like(points) if needs[0] else points.new_empty(0)
    g_samples = torch.zeros_like(samples) if needs[1] else points.new_empty(0)
    for i, j, r in _distance_tiles(points, samples, minimum.dtype):
        c = torch.zeros_like(r, dtype=F64)
        for s, sigma in enumerate(sigmas):
            share = (grad[s, i].to(F64) / sums[s, i] / sigma**2)[:, None]
            c += share * torch.exp((minimum[i, None] - r).to(F64) * (0.5 / sigma**2))
        x, y = points[i], samples[j]
        if needs[0]:
            g_points[i] += c @ y - c.sum(1, keepdim=True) * x
        if needs[1]:
            g_samples[j] += c.T @ x - c.sum(0)[:, None] * y
    return g_points.to(dtype), g_samples.to(dtype)


def _distance_tiles(points: Tensor, samples: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, slice, Tensor]]:
    """Squared distances of float64 points, whose products cancel harmlessly, tile by tile, then rounded to dtype.

    Forward and backward see the same rounding, or the minimum would not be that of the tile.
    """
    columns = min(len(samples), 4096)
    rows = max(1, TILE_ELEMENTS // columns)
    points2, samples2 = _norms(points)[:, None], _norms(samples)
    for first in range(0, len(points), rows):
        i = slice(first, first + rows)
        for second in range(0, len(samples), columns):
            j = slice(second, second + columns)
            r = torch.addmm(points2[i] + samples2[j], points[i], samples[j].T, alpha=-2)
            yield i, j, r.clamp_(min=0).to(dtype)


def _norms(x: Tensor) -> Tensor:
    """Squared norms [N]; NaN where a coordinate is not finite, so that no difference of infinities hides it."""
    norms = x.square().sum(1)
    return norms + (norms - norms)
