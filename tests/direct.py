"""Backends called without the operators around them, as functions of tensors."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastmmd.backends import calls
from fastmmd.kernels import Kernel


class Direct:
    """A backend by the name of its package."""

    def __init__(self, package: str) -> None:
        self.package = f"fastmmd.backends.{package}"

    def module(self, operation: str) -> Any:
        return importlib.import_module(f"{self.package}.{operation}")

    def mmd2(
        self,
        x: Tensor,
        y: Tensor | None,
        x_weights: Tensor | None,
        y_weights: Tensor | None,
        kernel: Kernel,
        unbiased: bool,
        needs: Sequence[bool],
    ) -> tuple[Tensor, ...]:
        """Value [B] and six gradients."""
        other = None if y is None else calls.Sample(y, y_weights)
        call = calls.Mmd2(calls.Sample(x, x_weights), other, kernel, unbiased, calls.Mmd2Inputs(*needs))
        value, gradients = self.module("mmd").mmd2(call)
        return value, *gradients

    def witness(self, points: Tensor, samples: Tensor, weights: Tensor, kernel: Kernel) -> Tensor:
        return self.module("mmd").witness(calls.Witness(points, samples, weights, kernel))

    def witness_backward(
        self, grad: Tensor, points: Tensor, samples: Tensor, weights: Tensor, kernel: Kernel, needs: Sequence[bool]
    ) -> tuple[Tensor, ...]:
        forward = calls.Witness(points, samples, weights, kernel)
        return self.module("mmd").witness_backward(calls.WitnessBackward(forward, grad, calls.WitnessInputs(*needs)))

    def fourier_sum(self, x: Tensor, weights: Tensor, features: calls.Features) -> Tensor:
        return self.module("fourier").fourier_sum(calls.FourierSum(x, weights, features))

    def fourier_function(
        self, x: Tensor, coefficients: Tensor, features: calls.Features, value: bool, gradient: bool
    ) -> tuple[Tensor, Tensor]:
        call = calls.FourierFunction(x, coefficients, features, value, gradient)
        return self.module("fourier").fourier_function(call)

    def fourier_frequencies(self, features: calls.Features, dim: int, dtype: Any) -> Tensor:
        return self.module("fourier").fourier_frequencies(calls.FourierFrequencies(features, dim, dtype))

    def parzen_update(
        self, points: Tensor, samples: Tensor, sigmas: Sequence[float], minimum: Tensor, sums: Tensor
    ) -> None:
        self.module("parzen").parzen_update(calls.Parzen(points, samples, tuple(sigmas), minimum, sums))

    def parzen_backward(
        self,
        grad: Tensor,
        points: Tensor,
        samples: Tensor,
        sigmas: Sequence[float],
        minimum: Tensor,
        sums: Tensor,
        needs: Sequence[bool],
    ) -> tuple[Tensor, Tensor]:
        forward = calls.Parzen(points, samples, tuple(sigmas), minimum, sums)
        return self.module("parzen").parzen_backward(calls.ParzenBackward(forward, grad, *needs))


native = Direct("cpu")
