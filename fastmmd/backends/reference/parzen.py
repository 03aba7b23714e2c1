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
    for i, _, r in _distance_tiles(points.to(F64), samples.to(F64)):
        before, nearest = minimum[i], torch.minimum(minimum[i], r.amin(1))
        # The first tile finds minimum = inf and sums = 0: there is nothing to rescale yet.
        shift = torch.where(before.isinf(), 0.0, before - nearest)
        minimum[i] = nearest
        for s, sigma in enumerate(sigmas):
            t = 0.5 / sigma**2
            sums[s, i] = sums[s, i] * torch.exp(-t * shift) + torch.exp((nearest[:, None] - r) * t).sum(1)


def parzen_backward(call: ParzenBackward) -> tuple[Tensor, Tensor]:
    """Gradients of sum grad * log-density in points [M, D] and samples [N, D]; empty where not needed."""
    forward, grad, needs = call.forward, call.grad.to(F64), (call.needs_points, call.needs_samples)
    sigmas, minimum, sums = forward.sigmas, forward.minimum, forward.sums
    points, samples = forward.points.to(F64), forward.samples.to(F64)
    g_points = torch.zeros_like(points) if needs[0] else points.new_empty(0)
    g_samples = torch.zeros_like(samples) if needs[1] else points.new_empty(0)
    for i, j, r in _distance_tiles(points, samples):
        c = torch.zeros_like(r)
        for s, sigma in enumerate(sigmas):
            share = (grad[s, i] / sums[s, i] / sigma**2)[:, None]
            c += share * torch.exp((minimum[i, None] - r) * (0.5 / sigma**2))
        x, y = points[i], samples[j]
        if needs[0]:
            g_points[i] += c @ y - c.sum(1, keepdim=True) * x
        if needs[1]:
            g_samples[j] += c.T @ x - c.sum(0)[:, None] * y
    dtype = forward.points.dtype
    return g_points.to(dtype), g_samples.to(dtype)


def _distance_tiles(points: Tensor, samples: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Squared distances of float64 points tile by tile, at most the largest number; NaN for infinite points."""
    columns = min(len(samples), 4096)
    rows = max(1, TILE_ELEMENTS // columns)
    points, samples = (p + (p - p) for p in (points, samples))
    for first in range(0, len(points), rows):
        i = slice(first, first + rows)
        for second in range(0, len(samples), columns):
            j = slice(second, second + columns)
            # By differences: products cancel for near pairs.
            r = torch.cdist(points[i], samples[j], compute_mode="donot_use_mm_for_euclid_dist").square_()
            yield i, j, r.clamp_(max=torch.finfo(F64).max)
