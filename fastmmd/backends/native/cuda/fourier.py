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


def _run(task: Any, like: Tensor) -> None:
    memory = workspace(like, task.workspace)
    launch(task.run, like, memory.data_ptr())


def _features(features: FeatureSpec) -> tuple[int, int, Sequence[float], Sequence[float]]:
    return features.key.data_ptr(), features.count, features.bandwidths, features.weights
