"""mmd2 and witness through the compiled kernels, mmd2 of many points in many dimensions through matrix products."""

from __future__ import annotations

import torch
from torch import Tensor

from ....kernels import FAMILIES
from ...calls import Mmd2, Mmd2Inputs, Sample, Witness, WitnessBackward, WitnessInputs
from ...common.native import address, is_double
from ..library import kernel_fields, load, threads
from . import products

DIRECT_DIMS = 48  # up to here differences cost less than products, and so they do for few points and coordinates:
DIRECT_POINTS = 4096  # of x and y together
DIRECT_COORDINATES = 2**21  # alike
FIXED_COORDINATES = 2**16  # of x alone beside a fixed y: few pairs for the products that y takes


def mmd2(call: Mmd2) -> tuple[Tensor, Mmd2Inputs[Tensor]]:
    """Value [B] in float64 and six gradients; see `calls.MmdBackend.mmd2`."""
    # The rounding of a product shows most where the kernel is unbounded and not smooth. Members by offsets are usually
    # too small for products, and take differences in many dimensions as well.
    y = None if call.y is None else call.y.points
    if call.fixed_y and call.x.points[0].numel() < FIXED_COORDINATES:
        return _by_differences(call)
    if FAMILIES[call.kernel.family].bounded and call.x.offsets is None and _products_pay(call.x.points, y):
        return products.mmd2(call)
    return _by_differences(call)


def _products_pay(x: Tensor, y: Tensor | None) -> bool:
    """Whether products are faster, and no squared norm overflows, nor is anything infinite or NaN."""
    samples = [x] if y is None else [x, y]
    count, dim = sum(sample.shape[1] for sample in samples), x.shape[2]
    few = count <= DIRECT_POINTS and count * dim <= DIRECT_COORDINATES
    if dim <= DIRECT_DIMS or few or x.numel() == 0:
        return False
    limit = (1e-2 * torch.finfo(x.dtype).max / dim) ** 0.5
    return all(-limit < float(bound) < limit for sample in samples for bound in sample.aminmax())


def _by_differences(call: Mmd2) -> tuple[Tensor, Mmd2Inputs[Tensor]]:
    x, y, needs, count = call.x, call.y, call.needs, len(call.kernel.bandwidths)
    batch, n, dim = x.points.shape
    members = batch if x.offsets is None else len(x.offsets) - 1
    m = 0 if y is None else y.points.shape[1]
    new = x.points.new_empty
    value = new(members, dtype=torch.float64)
    gradients = Mmd2Inputs(
        x=new((batch, n, dim) if needs.x else 0),
        y=new((batch, m, dim) if needs.y and y is not None else 0),
        x_weights=new((batch, n) if needs.x_weights else 0),
        y_weights=new((batch, m) if needs.y_weights and y is not None else 0),
        bandwidths=new((members, count) if needs.bandwidths else 0),
        kernel_weights=new((members, count) if needs.kernel_weights else 0),
    )
    load().mmd2(
        is_double=is_double(x.points),
        threads=threads(),
        batch=members,
        dim=dim,
        x=_sample(x),
        y=None if y is None else _sample(y),
        kernel=kernel_fields(call.kernel),
        unbiased=call.unbiased,
        fixed_y=call.fixed_y,
        value=value.data_ptr(),
        gradients={
            "x": address(gradients.x),
            "y": address(gradients.y),
            "x_weights": address(gradients.x_weights),
            "y_weights": address(gradients.y_weights),
            "bandwidths": address(gradients.bandwidths),
            "kernel_weights": address(gradients.kernel_weights),
        },
    )
    return value, gradients


def _sample(sample: Sample) -> dict[str, int]:
    points = sample.points
    return {
        "count": points.shape[1],
        "points": address(points),
        "weights": address(sample.weights),
        "offsets": address(sample.offsets),
    }


def witness(call: Witness) -> Tensor:
    """sum_j weights_j u(points_i, samples_j): [P]."""
    value = call.points.new_empty(len(call.points))
    _witness(call, value, None, None)
    return value


def witness_backward(call: WitnessBackward) -> WitnessInputs[Tensor]:
    """Gradients of grad . witness in points, samples, weights, bandwidths and kernel weights."""
    forward, needs, count = call.forward, call.needs, len(call.forward.kernel.bandwidths)
    new = forward.points.new_empty
    gradients = WitnessInputs(
        points=new(forward.points.shape if needs.points else 0),
        samples=new(forward.samples.shape if needs.samples else 0),
        weights=new(forward.weights.shape if needs.weights else 0),
        bandwidths=new(count if needs.bandwidths else 0),
        kernel_weights=new(count if needs.kernel_weights else 0),
    )
    _witness(forward, None, call.grad, gradients)
    return gradients


def _witness(call: Witness, value: Tensor | None, grad: Tensor | None, gradients: WitnessInputs[Tensor] | None) -> None:
    points, samples = call.points, call.samples
    load().witness(
        is_double=is_double(points),
        threads=threads(),
        p=len(points),
        n=len(samples),
        dim=samples.shape[1],
        points=points.data_ptr(),
        samples=samples.data_ptr(),
        weights=call.weights.data_ptr(),
        kernel=kernel_fields(call.kernel),
        value=address(value),
        grad=address(grad),
        gradients=None
        if gradients is None
        else {
            "points": address(gradients.points),
            "samples": address(gradients.samples),
            "weights": address(gradients.weights),
            "bandwidths": address(gradients.bandwidths),
            "kernel_weights": address(gradients.kernel_weights),
        },
    )
