"""Random Fourier features through the compiled kernels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..calls import Features, FourierFrequencies, FourierFunction, FourierSum
from ..common import fourier as common
from .library import address, is_double, load, threads


def fourier_sum(call: FourierSum) -> Tensor:
    """sum_i w_i phi(x_i): [B, 2 * count]."""
    x, weights, features = call.x, call.weights, call.features
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


def fourier_function(call: FourierFunction) -> tuple[Tensor, Tensor]:
    """phi(x_i) . c: value [B, N] and gradient in x [B, N, D]."""
    x, features, needs_value, needs_grad = call.x, call.features, call.needs_value, call.needs_gradient
    value = x.new_empty(x.shape[:2] if needs_value else (0,))
    grad = x.new_empty(x.shape if needs_grad else (0,))
    load().fourier_function(
        is_double(x), threads(), *x.shape, x.data_ptr(), call.coefficients.data_ptr(), *_features(features),
        address(value), address(grad),
    )  # fmt: skip
    return value, grad


def fourier_frequencies(call: FourierFrequencies) -> Tensor:
    """W = G / bandwidth: [count, dim]."""
    features, dim, dtype = call.features, call.dim, call.dtype
    out = torch.empty((features.count, dim), dtype=dtype)
    load().fourier_frequencies(is_double(out), threads(), dim, *_features(features), out.data_ptr())
    return out


fourier_discrepancy = partial(common.fourier_discrepancy, fourier_sum)
fourier_discrepancy_backward = partial(common.fourier_discrepancy_backward, fourier_function)
fourier_ascent = partial(common.fourier_ascent, fourier_sum)


def _features(features: Features) -> tuple[int, int, Sequence[float], Sequence[float]]:
    return features.key.data_ptr(), features.count, features.bandwidths, features.kernel_weights
