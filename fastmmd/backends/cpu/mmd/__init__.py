"""mmd2 and witness through the compiled kernels, mmd2 of many points in many dimensions through matrix products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ....kernels import Kernel
from ...calls import Mmd2, Mmd2Inputs, Witness, WitnessBackward, WitnessInputs
from ..library import address, is_double, load, numbers, threads
from . import products

DIRECT_DIMS = 48  # up to here distances by differences cost less than products, and so do those of few points:
DIRECT_COORDINATES = 2**16  # of x and y together


def mmd2(call: Mmd2) -> tuple[Tensor, Mmd2Inputs[Tensor]]:
    """Value [B] in float64 and six gradients; see `calls.MmdBackend.mmd2`."""
    # The rounding of a product shows most where the kernel is unbounded and not smooth. Members by offsets are usually
    # too small for products, and take differences in many dimensions as well.
    y = None if call.y is None else call.y.points
    if call.kernel.family != "energy" and call.x.offsets is None and _products_pay(call.x.points, y):
        return products.mmd2(call)
    return _by_differences(call)


def _products_pay(x: Tensor, y: Tensor | None) -> bool:
    """Whether products are faster, and no squared norm overflows, nor is anything infinite or NaN."""
    samples = [x] if y is None else [x, y]
    coordinates, dim = sum(sample.shape[1] for sample in samples) * x.shape[2], x.shape[2]
    if dim <= DIRECT_DIMS or coordinates < DIRECT_COORDINATES or x.numel() == 0:
        return False
    limit = (1e-2 * torch.finfo(x.dtype).max / dim) ** 0.5
    return all(-limit < float(bound) < limit for sample in samples for bound in sample.aminmax())


def _by_differences(call: Mmd2) -> tuple[Tensor, Mmd2Inputs[Tensor]]:
    x, x_weights, x_offsets, kernel, needs = call.x.points, call.x.weights, call.x.offsets, call.kernel, call.needs
    y, y_weights, y_offsets = (None,) * 3 if call.y is None else (call.y.points, call.y.weights, call.y.offsets)
    batch, n, dim = x.shape
    members = batch if x_offsets is None else len(x_offsets) - 1
    m = 0 if y is None else y.shape[1]
    count = len(kernel.bandwidths)
    has_y = y is not None
    value = x.new_empty(members, dtype=torch.float64)
    grads = (
        x.new_empty((batch, n, dim) if needs[0] else 0),
        x.new_empty((batch, m, dim) if needs[1] and has_y else 0),
        x.new_empty((batch, n) if needs[2] else 0),
        x.new_empty((batch, m) if needs[3] and has_y else 0),
        x.new_empty((members, count) if needs[4] else 0),
        x.new_empty((members, count) if needs[5] else 0),
    )
    load().mmd2(
        is_double(x), threads(), members, n, m, dim, x.data_ptr(), address(y), address(x_weights),
        address(y_weights), address(x_offsets), address(y_offsets), *_kernel(kernel), call.unbiased, value.data_ptr(),
        *map(address, grads),
    )  # fmt: skip
    return value, Mmd2Inputs(*grads)


def witness(call: Witness) -> Tensor:
    """sum_j weights_j u(points_i, samples_j): [P]."""
    value = call.points.new_empty(len(call.points))
    _witness(call, value.data_ptr(), 0, (0, 0, 0, 0, 0))
    return value


def witness_backward(call: WitnessBackward) -> WitnessInputs[Tensor]:
    """Gradients of grad . witness in points, samples, weights, bandwidths and kernel weights."""
    forward, count = call.forward, len(call.forward.kernel.bandwidths)
    shapes = (forward.points.shape, forward.samples.shape, forward.weights.shape, (count,), (count,))
    grads = [forward.points.new_empty(shape if need else (0,)) for shape, need in zip(shapes, call.needs, strict=True)]
    _witness(forward, 0, call.grad.data_ptr(), tuple(map(address, grads)))
    return WitnessInputs(*grads)


def _witness(call: Witness, value: int, grad: int, grads: tuple[int, ...]) -> None:
    points, samples = call.points, call.samples
    load().witness(
        is_double(points), threads(), len(points), *samples.shape, points.data_ptr(), samples.data_ptr(),
        call.weights.data_ptr(), *_kernel(call.kernel), value, grad, *grads,
    )  # fmt: skip


def _kernel(kernel: Kernel) -> tuple[str, Sequence[float], Sequence[float], float]:
    return kernel.family, numbers(kernel.bandwidths), numbers(kernel.weights), kernel.alpha
