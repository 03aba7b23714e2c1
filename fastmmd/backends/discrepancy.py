"""The first-order adversary of DS-AAE from sums and functions of features: what the backends without kernels of its
own share.

    zeta  = mean phi(draws) - mean phi(codes)      [2 * count], cosines first
    delta = sum_k alpha_k (zeta_k^2 + zeta_(count + k)^2)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .specs import FeatureSpec

FourierSum = Callable[[Tensor, Tensor, FeatureSpec], Tensor]
FourierFunction = Callable[[Tensor, Tensor, FeatureSpec, bool, bool], tuple[Tensor, Tensor]]


def fourier_discrepancy(
    fourier_sum: FourierSum, codes: Tensor, draws: Tensor, alpha: Tensor, features: FeatureSpec, needs_slopes: bool
) -> tuple[Tensor, Tensor]:
    """delta and the slopes 2 alpha zeta; see `specs.Backend.fourier_discrepancy`."""
    zeta = _zeta(fourier_sum, codes, draws, features)
    weighted = alpha * zeta
    delta = (weighted * zeta).sum()
    return delta, weighted.mul_(2).flatten() if needs_slopes else codes.new_empty(0)


def fourier_discrepancy_backward(
    fourier_function: FourierFunction,
    grad: Tensor,
    codes: Tensor,
    draws: Tensor,
    slopes: Tensor,
    features: FeatureSpec,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of grad * delta in codes and draws."""

    def gradient(points: Tensor, sign: int, need: bool) -> Tensor:
        if not need:
            return points.new_empty(0)
        coefficients = (slopes * grad).mul_(sign / len(points))
        return fourier_function(points[None], coefficients[None], features, False, True)[1][0]

    return gradient(codes, -1, needs[0]), gradient(draws, 1, needs[1])


def fourier_ascent(
    fourier_sum: FourierSum, alpha: Tensor, codes: Tensor, draws: Tensor, features: FeatureSpec, rate: float
) -> None:
    """Moves alpha in place by `rate` towards zeta^2 over its mean."""
    squares = _zeta(fourier_sum, codes, draws, features).square_().sum(0)
    target = squares.div_(squares.mean().clamp_(min=torch.finfo(squares.dtype).tiny))
    alpha.lerp_(target.to(alpha.dtype), rate)


def _zeta(fourier_sum: FourierSum, codes: Tensor, draws: Tensor, features: FeatureSpec) -> Tensor:
    """[2, count]; samples of one size in one call."""
    if len(codes) == len(draws):
        samples = torch.stack([draws, codes])
        means = fourier_sum(samples, samples.new_full(samples.shape[:2], 1 / len(codes)), features)
        return (means[0] - means[1]).view(2, -1)
    prior, posterior = (fourier_sum(z[None], z.new_full((1, len(z)), 1 / len(z)), features) for z in (draws, codes))
    return (prior - posterior).view(2, -1)
