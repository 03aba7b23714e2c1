"""The first-order adversary of DS-AAE from sums and functions of features: what the backends without kernels of its
own share.

    zeta  = mean phi(draws) - mean phi(codes)      [2 * count], cosines first
    delta = sum_k alpha_k (zeta_k^2 + zeta_(count + k)^2)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..calls import (
    Features,
    FourierAscent,
    FourierDiscrepancy,
    FourierDiscrepancyBackward,
    FourierFunction,
    FourierSum,
)

Sum = Callable[[FourierSum], Tensor]
Function = Callable[[FourierFunction], tuple[Tensor, Tensor]]


def fourier_discrepancy(fourier_sum: Sum, call: FourierDiscrepancy) -> tuple[Tensor, Tensor]:
    """delta and the slopes 2 alpha zeta; see `calls.FourierBackend.fourier_discrepancy`."""
    zeta = _zeta(fourier_sum, call.codes, call.draws, call.features)
    weighted = call.alpha * zeta
    delta = (weighted * zeta).sum()
    return delta, weighted.mul_(2).flatten() if call.needs_slopes else call.codes.new_empty(0)


def fourier_discrepancy_backward(fourier_function: Function, call: FourierDiscrepancyBackward) -> tuple[Tensor, Tensor]:
    """Gradients of grad * delta in codes and draws."""

    def gradient(points: Tensor, sign: int, need: bool) -> Tensor:
        if not need:
            return points.new_empty(0)
        coefficients = (call.slopes * call.grad).mul_(sign / len(points))
        return fourier_function(FourierFunction(points[None], coefficients[None], call.features, False, True))[1][0]

    return gradient(call.codes, -1, call.needs_codes), gradient(call.draws, 1, call.needs_draws)


def fourier_ascent(fourier_sum: Sum, call: FourierAscent) -> None:
    """Moves alpha in place by `rate` towards zeta^2 over its mean."""
    squares = _zeta(fourier_sum, call.codes, call.draws, call.features).square_().sum(0)
    target = squares.div_(squares.mean().clamp_(min=torch.finfo(squares.dtype).tiny))
    call.alpha.lerp_(target.to(call.alpha.dtype), call.rate)


def _zeta(fourier_sum: Sum, codes: Tensor, draws: Tensor, features: Features) -> Tensor:
    """[2, count]; samples of one size in one call."""

    def means(points: Tensor) -> Tensor:
        weights = points.new_full(points.shape[:2], 1 / points.shape[1])
        return fourier_sum(FourierSum(points, weights, features))

    if len(codes) == len(draws):
        prior, posterior = means(torch.stack([draws, codes]))
    else:
        prior, posterior = means(draws[None])[0], means(codes[None])[0]
    zeta: Tensor = prior - posterior
    return zeta.view(2, -1)
