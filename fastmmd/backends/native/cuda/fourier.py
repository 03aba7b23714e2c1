"""Random Fourier features: one launch for few dimensions and not too many rows or features, otherwise two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...specs import FeatureSpec
from ..library import address, is_double
from .library import launch, load, workspace


def fourier_sum(x: Tensor, weights: Tensor, features: FeatureSpec) -> Tensor:
    """sum_i w_i phi(x_i): [B, 2 * count]."""
    out = x.new_empty((len(x), 2 * features.count))
    task = load().FourierSum(
        is_double(x), *x.shape, x.data_ptr(), weights.data_ptr(), *_features(features), out.data_ptr()
    )
    _run(task, x)
    return out


def fourier_function(
    x: Tensor, coefficients: Tensor, features: FeatureSpec, needs_value: bool, needs_grad: bool
) -> tuple[Tensor, Tensor]:
    """phi(x_i) . c: value [B, N] and gradient in x [B, N, D]."""
    value = x.new_empty(x.shape[:2] if needs_value else (0,))
    grad = x.new_empty(x.shape if needs_grad else (0,))
    _function(x, coefficients, features, 1.0, None, value, grad)
    return value, grad


def fourier_discrepancy(
    codes: Tensor, draws: Tensor, alpha: Tensor, features: FeatureSpec, needs_slopes: bool
) -> tuple[Tensor, Tensor]:
    """delta, 0-d, and its slopes 2 alpha zeta [2 * count]: two launches."""
    delta = codes.new_empty(())
    slopes = codes.new_empty(2 * features.count if needs_slopes else 0)
    _discrepancy(alpha, codes, draws, features, 0.0, delta, slopes)
    return delta, slopes


def fourier_discrepancy_backward(
    grad: Tensor, codes: Tensor, draws: Tensor, slopes: Tensor, features: FeatureSpec, needs: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """Gradients of grad * delta in codes and draws: a launch or two each."""
    found = []
    for points, sign, need in ((codes, -1, needs[0]), (draws, 1, needs[1])):
        gradient = points.new_empty(points.shape if need else (0,))
        if need:
            _function(points[None], slopes, features, sign / len(points), grad, None, gradient)
        found.append(gradient)
    return found[0], found[1]


def fourier_ascent(alpha: Tensor, codes: Tensor, draws: Tensor, features: FeatureSpec, rate: float) -> None:
    """Moves alpha in place by `rate` towards zeta^2 over its mean: two launches."""
    _discrepancy(alpha, codes, draws, features, rate, None, None)


def fourier_frequencies(features: FeatureSpec, dim: int, dtype: torch.dtype) -> Tensor:
    """W = G / bandwidth: [count, dim]."""
    out = torch.empty((features.count, dim), dtype=dtype, device=features.key.device)
    launch(load().fourier_frequencies, out, is_double(out), dim, *_features(features), out.data_ptr())
    return out


def _function(
    x: Tensor,
    coefficients: Tensor,
    features: FeatureSpec,
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
    alpha: Tensor,
    codes: Tensor,
    draws: Tensor,
    features: FeatureSpec,
    rate: float,
    delta: Tensor | None,
    slopes: Tensor | None,
) -> None:
    task = load().FourierDiscrepancy(
        is_double(codes), is_double(alpha), len(draws), *codes.shape, draws.data_ptr(), codes.data_ptr(),
        alpha.data_ptr(), rate, *_features(features), address(delta), address(slopes),
    )  # fmt: skip
    _run(task, codes)


def _run(task: Any, like: Tensor) -> None:
    memory = workspace(like, task.workspace)
    launch(task.run, like, memory.data_ptr())


def _features(features: FeatureSpec) -> tuple[int, int, Sequence[float], Sequence[float]]:
    return features.key.data_ptr(), features.count, features.bandwidths, features.weights
