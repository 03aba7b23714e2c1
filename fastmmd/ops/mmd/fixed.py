"""A sample that many calls compare others with, whose own pairs are summed once."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ...backends import current
from ..arguments import (
    DEFAULT_BANDWIDTHS,
    Floats,
    KernelName,
    check_points,
    compute_dtype,
    kernel_arguments,
    normalized,
    sample_weights,
)
from .operators import flattened, mmd2_members

DEFAULTS = {"bandwidths": DEFAULT_BANDWIDTHS, "kernel": "gaussian", "alpha": 1.0, "unconditional_weight": 0.0}


class FixedSample:
    """A sample y, weights and a kernel that do not change, with mean k(y, y'), which is computed once, here.

    `mmd2(x, fixed)` and `witness(points, x, fixed)` take it in place of y and of the arguments below. Then mmd2 costs
    the pairs of x with itself and with y alone: a few points against 100,000 take milliseconds, not the seconds that
    the pairs of these take. Accuracy and gradients in x and its weights are those of mmd2(x, y).

    It holds a copy of y and constants: nothing here has a gradient, and what changes y later changes nothing here. It
    stays on the device of y, and belongs to the backend that is selected when it is made, whose kernels round alike.

    Args:
        y: [..., M, D] points; float16, bfloat16 and float32 go with x of these, float64 with float64.
        bandwidths, kernel, kernel_weights, alpha, y_weights: as in `mmd2`; tensors are constants as well.

    Raises:
        TypeError, ValueError: as `mmd2`; a tensor that requires a gradient.
    """

    def __init__(
        self,
        y: Tensor,
        bandwidths: Floats = DEFAULT_BANDWIDTHS,
        *,
        kernel: KernelName = "gaussian",
        kernel_weights: Floats | None = None,
        y_weights: Tensor | None = None,
        alpha: float = 1.0,
    ) -> None:
        check_points(y=y)
        tensors = {"y": y, "bandwidths": bandwidths, "kernel_weights": kernel_weights, "y_weights": y_weights}
        for name, tensor in tensors.items():
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                raise ValueError(
                    f"{name}: got a tensor that requires a gradient, and a FixedSample holds constants; pass "
                    f"{name}.detach(), or y itself to mmd2"
                )
        weights = sample_weights("y_weights", y_weights, "y", y)
        spec = kernel_arguments(bandwidths, kernel, kernel_weights, alpha, y)
        with torch.inference_mode(False):  # an inference tensor could not be saved for a later backward pass
            self.points = y.to(compute_dtype(y), copy=True, memory_format=torch.contiguous_format)
            self.weights = None if weights is None else weights.clone()
            self.spec = replace(spec, bandwidths=_copy(spec.bandwidths), weights=_copy(spec.weights))
            self._own, self._factor = self._self_term()

    def __repr__(self) -> str:
        return f"FixedSample({list(self.points.shape)}, {self.points.dtype}, kernel={self.spec.family!r})"

    def self_term(self, unbiased: bool) -> Tensor:
        """The mean of u(y, y') over all pairs, or, unbiased, over those of distinct points: [...] float64."""
        return self._own * self._factor if unbiased else self._own

    def check_alone(self, **arguments: object) -> None:
        """None of the arguments that a FixedSample brings along is given beside it.

        Raises:
            ValueError: one is.
        """
        for name, value in arguments.items():
            default = DEFAULTS.get(name)
            if value is not default and (hasattr(value, "shape") or value != default):  # of arrays there is no one `!=`
                reason = "takes no classes: make one of each class" if "_labels" in name else "has its own"
                given = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
                raise ValueError(f"{name}: got {given} beside a FixedSample, which {reason}; leave the argument out")

    def _self_term(self) -> tuple[Tensor, Tensor | float]:
        """The mean of u over all pairs of each member, and what it is multiplied by without those of a point itself."""
        *batch, n, _ = self.points.shape
        weights = None if self.weights is None else self.weights.reshape(-1, n)
        s, w, numbers, family = flattened(self.spec)
        points, needs = self.points.flatten(0, -3) if batch else self.points[None], [False] * 6
        own = mmd2_members(points, None, weights, None, s, w, None, numbers, family, [False, False], needs, current())[
            0
        ]
        if self.weights is None:
            return own.reshape(batch), n / (n - 1) if n > 1 else math.nan
        return own.reshape(batch), 1 / (1 - normalized(self.weights.to(torch.float64)).square().sum(-1))


def opened(
    y: Tensor | FixedSample, y_weights: Tensor | None, **others: object
) -> tuple[Tensor, Tensor | None, FixedSample | None]:
    """The points and weights of y, and y itself if it is a FixedSample, which needs none of the other arguments."""
    if not isinstance(y, FixedSample):
        return y, y_weights, None
    y.check_alone(y_weights=y_weights, **others)
    return y.points, y.weights, y


def _copy(values: tuple[float, ...] | Tensor) -> tuple[float, ...] | Tensor:
    return values.clone() if isinstance(values, Tensor) else values
