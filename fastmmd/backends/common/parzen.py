"""The state of Parzen windows as compiled kernels take it."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..calls import Parzen


def rounded_state(call: Parzen) -> Parzen:
    """The call with its minimum in the dtype of the points, to which the sums, in place, are made relative.

    The caller puts the minimum back. It is a number of that dtype already unless another backend, or a call that took
    float64, has made it.
    """
    if call.points.dtype == torch.float64:
        return call
    minimum = call.minimum.to(call.points.dtype)
    if call.empty:
        return replace(call, minimum=minimum)
    moved = torch.where(call.minimum.isinf(), 0.0, minimum - call.minimum)
    for s, sigma in enumerate(call.sigmas):
        call.sums[s] *= torch.exp(moved * (0.5 / sigma**2))
    return replace(call, minimum=minimum)
