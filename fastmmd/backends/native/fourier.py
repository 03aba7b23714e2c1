"""Random Fourier features through the compiled kernels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from .. import discrepancy
from ..specs import FeatureSpec
from .library import address, is_double, load, threads


def fourier_sum(x: Tensor, weights: Tensor, features: FeatureSpec) -> Tensor:
    """sum_i w_i phi(x_i): [B, 2 * count]."""
    out = x.new_empty((len(x), 2 * features.count))
    load().fourier_sum(
        is_double(x),
        threads(),
        *x.shape,
        x.data_ptr(),
        weights.data_ptr(),
        *_features(features),
        out.data_ptr(),
    )
    return out


def fourier_function(
    x: Tensor, coefficients: Tensor, features: FeatureSpec, needs_value: bool, needs_grad: bool
) -> tuple[Tensor, Tensor]:
    """phi(x_i) . c: value [B, N] and gradient in x [B, N, D]."""
    value = x.new_empty(x.shape[:2] if needs_value else (0,))
    grad = x.new_empty(x.shape if needs_grad else (0,))
    load().fourier_function(
        is_double(x), threads(), *x.shape, x.data_ptr(), coefficients.data_ptr(), *_features(features),
        address(value), address(grad),
    )  # fmt: skip
    return value, grad


def fourier_frequencies(features: FeatureSpec, dim: int, dtype: torch.dtype) -> Tensor:
    """W = G / bandwidth: [count, dim]."""
    out = torch.empty((features.count, dim), dtype=dtype)
    load().fourier_frequencies(is_double(out), threads(), dim, *_features(features), out.data_ptr())
    return out


fourier_discrepancy = partial(discrepancy.fourier_discrepancy, fourier_sum)
fourier_discrepancy_backward = partial(discrepancy.fourier_discrepancy_backward, fourier_function)
fourier_ascent = partial(discrepancy.fourier_ascent, fourier_sum)


def _features(features: FeatureSpec) -> tuple[int, int, Sequence[float], Sequence[float]]:
    return features.key.data_ptr(), features.count, features.bandwidths, features.weights
