"""The public functions of tensors alone, with tensors to call them on: what the tests of all operators run through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import F32, points, positive
from torch import Tensor

import fastmmd

FEATURES = fastmmd.FourierFeatures(3, 6, bandwidths=(1.0, 2.0), seed=3)
PRIOR = fastmmd.priors.Gaussian(3, 1.5)
CLOUDS = [(7, 3), (5, 3)]
KERNEL_TENSORS = [(2,), (2,)]  # bandwidths, kernel weights


def labels(x_labels: list[int], y_labels: list[int]) -> dict[str, Any]:
    return {"x_labels": torch.tensor(x_labels), "y_labels": torch.tensor(y_labels), "class_weights": (0.3, 1.0, 0.7)}


# Public functions of tensors alone, and the shapes of the tensors; every one is differentiable in all of them.
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "mmd2": (lambda x, y, s, w, a, b: fastmmd.mmd2(x, y, s, kernel_weights=w, x_weights=a, y_weights=b),
             [*CLOUDS, *KERNEL_TENSORS, (7,), (5,)]),
    "mmd2 unbiased": (
        lambda x, y, s, w, a, b: fastmmd.mmd2(
            x, y, s, kernel="rational_quadratic", estimator="unbiased", kernel_weights=w, x_weights=a, y_weights=b),
        [*CLOUDS, *KERNEL_TENSORS, (7,), (5,)]),
    "mmd2 labels": (
        lambda x, y, s, w, a, b: fastmmd.mmd2(
            x, y, s, kernel_weights=w, x_weights=a, y_weights=b, unconditional_weight=0.5,
            **labels([0, 2, -1, 0, 2, 2, 0], [-1, 0, 0, 2, -1])),
        [*CLOUDS, *KERNEL_TENSORS, (7,), (5,)]),
    "mmd2 labels unbiased": (
        lambda x, y: fastmmd.mmd2(
            x, y, (1.0, 2.0), kernel="imq", estimator="unbiased", **labels([0, 2, 2, 0, 2, 2, 0], [2, 0, 0, 2, 0])),
        CLOUDS),
    "mmd2 energy": (lambda x, y: fastmmd.mmd2(x, y, kernel="energy"), [(2, 7, 3), (2, 5, 3)]),
    "mmd2 laplacian": (lambda x, y: fastmmd.mmd2(x, y, (1.0, 2.0), kernel="laplacian"), CLOUDS),
    "mmd2 imq": (lambda x, y: fastmmd.mmd2(x, y, (1.0, 2.0), kernel="imq"), CLOUDS),
    "mmd2_to_prior": (
        lambda x, s, w, a: fastmmd.mmd2_to_prior(x, PRIOR, s, kernel_weights=w, x_weights=a),
        [(7, 3), *KERNEL_TENSORS, (7,)]),
    "witness": (
        lambda p, x, y, s, w, a, b: fastmmd.witness(p, x, y, s, kernel_weights=w, x_weights=a, y_weights=b),
        [(4, 3), *CLOUDS, *KERNEL_TENSORS, (7,), (5,)]),
    "fourier_mean": (lambda x, w: fastmmd.fourier_mean(x, FEATURES, weights=w), [(2, 7, 3), (2, 7)]),
    "fourier_function": (lambda x, c: fastmmd.fourier_function(x, c, FEATURES), [(7, 3), (12,)]),
    "fourier_discrepancy": (
        lambda x, y: fastmmd.fourier_discrepancy(x, y, torch.linspace(0.5, 2.0, 6), FEATURES), CLOUDS),
    "parzen": (lambda x, y: fastmmd.parzen_log_likelihood(x, y, (0.5, 1.0)), CLOUDS),
}  # fmt: skip
every_function = pytest.mark.parametrize("name", FUNCTIONS)


def arguments(name: str, dtype: torch.dtype = F32) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """Clouds are normal; bandwidths and weights positive."""
    function, shapes = FUNCTIONS[name]
    return function, [
        (points if shape[-1] == 3 or shape == (12,) else positive)(*shape, seed=i, dtype=dtype)
        for i, shape in enumerate(shapes)
    ]
