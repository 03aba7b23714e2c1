"""Random Fourier features through the compiled kernels."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..calls import Features, FourierFrequencies, FourierFunction, FourierSum
from ..common import fourier as common
from ..common.native import address, is_double
from .library import load, threads


def fourier_sum(call: FourierSum) -> Tensor:
    """sum_i w_i phi(x_i): [B, 2 * count]."""
    x = call.x
    batch, n, dim = x.shape
    out = x.new_empty((batch, 2 * call.features.count))
    load().fourier_sum(
        is_double=is_double(x),
        threads=threads(),
        batch=batch,
        n=n,
        dim=dim,
        x=x.data_ptr(),
        weights=call.weights.data_ptr(),
        features=_fields(call.features),
        out=out.data_ptr(),
    )
    return out


def fourier_function(call: FourierFunction) -> tuple[Tensor, Tensor]:
    """phi(x_i) . c: value [B, N] and gradient in x [B, N, D]."""
    x = call.x
    batch, n, dim = x.shape
    value = x.new_empty((batch, n) if call.needs_value else 0)
    grad = x.new_empty((batch, n, dim) if call.needs_gradient else 0)
    load().fourier_function(
        is_double=is_double(x),
        threads=threads(),
        batch=batch,
        n=n,
        dim=dim,
        x=x.data_ptr(),
        coefficients=call.coefficients.data_ptr(),
        features=_fields(call.features),
        value=address(value),
        grad=address(grad),
    )
    return value, grad


def fourier_frequencies(call: FourierFrequencies) -> Tensor:
    """W = G / bandwidth: [count, dim]."""
    out = torch.empty((call.features.count, call.dim), dtype=call.dtype)
    load().fourier_frequencies(
        is_double=is_double(out),
        threads=threads(),
        dim=call.dim,
        features=_fields(call.features),
        out=out.data_ptr(),
    )
    return out


fourier_discrepancy = partial(common.fourier_discrepancy, fourier_sum)
fourier_discrepancy_backward = partial(common.fourier_discrepancy_backward, fourier_function)
fourier_ascent = partial(common.fourier_ascent, fourier_sum)


def _fields(features: Features) -> dict[str, Any]:
    return {
        "key": features.key.data_ptr(),
        "count": features.count,
        "bandwidths": features.bandwidths,
        "kernel_weights": features.kernel_weights,
    }
