"""Random Fourier features: one launch for few dimensions and not too many rows or features, otherwise two."""

from __future__ import annotations

from collections.abc import Sequence
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
from .library import launch, load, workspace


def fourier_sum(call: FourierSum) -> Tensor:
    """sum_i w_i phi(x_i): [B, 2 * count]."""
    x, weights, features = call.x, call.weights, call.features
    out = x.new_empty((len(x), 2 * features.count))
    task = load().FourierSum(
        is_double(x), *x.shape, x.data_ptr(), weights.data_ptr(), *_features(features), out.data_ptr()
    )
    _run(task, x)
    return out


def fourier_function(call: FourierFunction) -> tuple[Tensor, Tensor]:
    """phi(x_i) . c: value [B, N] and gradient in x [B, N, D]."""
    x, features, needs_value, needs_grad = call.x, call.features, call.needs_value, call.needs_gradient
    value = x.new_empty(x.shape[:2] if needs_value else (0,))
    grad = x.new_empty(x.shape if needs_grad else (0,))
    _function(x, call.coefficients, features, 1.0, None, value, grad)
    return value, grad


def fourier_discrepancy(call: FourierDiscrepancy) -> tuple[Tensor, Tensor]:
    """delta, 0-d, and its slopes 2 alpha zeta [2 * count]: two launches."""
    delta = call.codes.new_empty(())
    slopes = call.codes.new_empty(2 * call.features.count if call.needs_slopes else 0)
    _discrepancy(call, 0.0, delta, slopes)
    return delta, slopes


def fourier_discrepancy_backward(call: FourierDiscrepancyBackward) -> tuple[Tensor, Tensor]:
    """Gradients of grad * delta in codes and draws: a launch or two each."""
    gradients = []
    for points, sign, need in ((call.codes, -1, call.needs_codes), (call.draws, 1, call.needs_draws)):
        gradient = points.new_empty(points.shape if need else (0,))
        if need:
            _function(points[None], call.slopes, call.features, sign / len(points), call.grad, None, gradient)
        gradients.append(gradient)
    return gradients[0], gradients[1]


def fourier_ascent(call: FourierAscent) -> None:
    """Moves alpha in place by `rate` towards zeta^2 over its mean: two launches."""
    _discrepancy(call, call.rate, None, None)


def fourier_frequencies(call: FourierFrequencies) -> Tensor:
    """W = G / bandwidth: [count, dim]."""
    features, dim, dtype = call.features, call.dim, call.dtype
    out = torch.empty((features.count, dim), dtype=dtype, device=features.key.device)
    launch(load().fourier_frequencies, out, is_double(out), dim, *_features(features), out.data_ptr())
    return out


def _function(
    x: Tensor,
    coefficients: Tensor,
    features: Features,
    times: float,
    factor: Tensor | None,
    value: Tensor | None,
    gradient: Tensor | None,
) -> None:
    """times * factor * phi(x_i) . c."""
    task = load().FourierFunction(
        is_double(x), *x.shape, x.data_ptr(), coefficients.data_ptr(), *_features(features), times, address(factor),
        address(value), address(gradient),
    )  # fmt: skip
    _run(task, x)


def _discrepancy(
    call: FourierDiscrepancy | FourierAscent, rate: float, delta: Tensor | None, slopes: Tensor | None
) -> None:
    codes, draws, alpha = call.codes, call.draws, call.alpha
    task = load().FourierDiscrepancy(
        is_double(codes), is_double(alpha), len(draws), *codes.shape, draws.data_ptr(), codes.data_ptr(),
        alpha.data_ptr(), rate, *_features(call.features), address(delta), address(slopes),
    )  # fmt: skip
    _run(task, codes)


def _run(task: Any, like: Tensor) -> None:
    memory = workspace(like, task.workspace)
    launch(task.run, like, memory.data_ptr())


def _features(features: Features) -> tuple[int, int, Sequence[float], Sequence[float]]:
    return features.key.data_ptr(), features.count, features.bandwidths, features.kernel_weights
