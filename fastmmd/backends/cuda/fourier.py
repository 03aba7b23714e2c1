"""Random Fourier features: one launch for few dimensions and not too many rows or features, otherwise two."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..calls import (
    Features,
    FourierAscent,
    FourierDiscrepancy,
    FourierDiscrepancyBackward,
    FourierFrequencies,
    FourierFunction,
    FourierSum,
)
from ..common.native import address, is_double
from .library import launch, load, run


def fourier_sum(call: FourierSum) -> Tensor:
    """sum_i w_i phi(x_i): [B, 2 * count]."""
    x = call.x
    batch, n, dim = x.shape
    out = x.new_empty((batch, 2 * call.features.count))
    task = load().FourierSum(
        is_double=is_double(x),
        batch=batch,
        n=n,
        dim=dim,
        x=x.data_ptr(),
        weights=call.weights.data_ptr(),
        features=_features(call.features),
        out=out.data_ptr(),
    )
    run(task, x)
    return out


def fourier_function(call: FourierFunction) -> tuple[Tensor, Tensor]:
    """phi(x_i) . c: value [B, N] and gradient in x [B, N, D]."""
    x = call.x
    value = x.new_empty(x.shape[:2] if call.needs_value else (0,))
    grad = x.new_empty(x.shape if call.needs_gradient else (0,))
    _function(x, call.coefficients, call.features, value=value, gradient=grad)
    return value, grad


def fourier_discrepancy(call: FourierDiscrepancy) -> tuple[Tensor, Tensor]:
    """delta, 0-d, and its slopes 2 alpha zeta [2 * count]: two launches."""
    delta = call.codes.new_empty(())
    slopes = call.codes.new_empty(2 * call.features.count if call.needs_slopes else 0)
    _discrepancy(call, delta=delta, slopes=slopes)
    return delta, slopes


def fourier_discrepancy_backward(call: FourierDiscrepancyBackward) -> tuple[Tensor, Tensor]:
    """Gradients of grad * delta in codes and draws: a launch or two each."""

    def gradient(points: Tensor, sign: int, need: bool) -> Tensor:
        out = points.new_empty(points.shape if need else (0,))
        if need:
            times = sign / len(points)
            _function(points[None], call.slopes, call.features, times=times, factor=call.grad, gradient=out)
        return out

    return gradient(call.codes, -1, call.needs_codes), gradient(call.draws, 1, call.needs_draws)


def fourier_ascent(call: FourierAscent) -> None:
    """Moves alpha in place by `rate` towards zeta^2 over its mean: two launches."""
    _discrepancy(call, rate=call.rate)


def fourier_frequencies(call: FourierFrequencies) -> Tensor:
    """W = G / bandwidth: [count, dim]."""
    features = call.features
    out = torch.empty((features.count, call.dim), dtype=call.dtype, device=features.key.device)
    task = load().FourierFrequencies(
        is_double=is_double(out), dim=call.dim, features=_features(features), out=out.data_ptr()
    )
    launch(task.run, out)
    return out


def _function(
    x: Tensor,
    coefficients: Tensor,
    features: Features,
    *,
    times: float = 1.0,
    factor: Tensor | None = None,
    value: Tensor | None = None,
    gradient: Tensor | None = None,
) -> None:
    """times * factor * phi(x_i) . c."""
    batch, n, dim = x.shape
    task = load().FourierFunction(
        is_double=is_double(x),
        batch=batch,
        n=n,
        dim=dim,
        x=x.data_ptr(),
        coefficients=coefficients.data_ptr(),
        features=_features(features),
        times=times,
        factor=address(factor),
        value=address(value),
        gradient=address(gradient),
    )
    run(task, x)


def _discrepancy(
    call: FourierDiscrepancy | FourierAscent,
    *,
    rate: float = 0.0,
    delta: Tensor | None = None,
    slopes: Tensor | None = None,
) -> None:
    """delta and its slopes; without delta a step of alpha."""
    codes, draws, alpha = call.codes, call.draws, call.alpha
    task = load().FourierDiscrepancy(
        is_double=is_double(codes),
        alpha_is_double=is_double(alpha),
        draws_count=len(draws),
        codes_count=len(codes),
        dim=codes.shape[1],
        draws=draws.data_ptr(),
        codes=codes.data_ptr(),
        alpha=alpha.data_ptr(),
        rate=rate,
        features=_features(call.features),
        delta=address(delta),
        slopes=address(slopes),
    )
    run(task, codes)


def _features(features: Features) -> dict[str, Any]:
    return {
        "key": features.key.data_ptr(),
        "count": features.count,
        "bandwidths": features.bandwidths,
        "kernel_weights": features.kernel_weights,
    }
