"""mmd2 and witness through the compiled kernels, in many dimensions mostly by matrix products."""

from __future__ import annotations

import torch
from torch import Tensor

from ....kernels import FAMILIES, Kernel
from ...calls import Mmd2, Mmd2Inputs, Sample, Witness, WitnessBackward, WitnessInputs
from ...common.native import address, is_double
from ..library import kernel_fields, load, threads

# Products are faster than differences from so many dimensions on, with more points than
PRODUCT_DIMS_OF_WITNESS = 32  # any number
PRODUCT_DIMS = 24
PRODUCT_POINTS = 256  # in the larger sample, or where only the value is wanted
PRODUCT_POINTS_OF_VALUE = 1024  # in it, or beside a fixed one
PRODUCT_POINTS_BESIDE_FIXED = 16  # in x


def mmd2(call: Mmd2) -> tuple[Tensor, Mmd2Inputs[Tensor]]:
    """Value [B] in float64 and six gradients; see `calls.MmdBackend.mmd2`."""
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
        product_points=_product_points(call),
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


def _product_points(call: Mmd2) -> int:
    """Members with more points than this take products, where these are faster; -1: none does."""
    x, needs = call.x.points, call.needs
    if not _pay(call.kernel, x, PRODUCT_DIMS):
        return -1
    if call.fixed_y:
        return 0 if x.shape[1] > PRODUCT_POINTS_BESIDE_FIXED else -1
    return PRODUCT_POINTS if needs.x or needs.y else PRODUCT_POINTS_OF_VALUE


def _pay(kernel: Kernel, points: Tensor, dims: int) -> bool:
    """Whether products may: in many dimensions, and where the kernel hides what they round, not if it is unbounded."""
    return points.shape[-1] >= dims and FAMILIES[kernel.family].bounded


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
        products=_pay(call.kernel, points, PRODUCT_DIMS_OF_WITNESS),
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
