"""mmd2 and witness through the compiled CUDA kernels, distances of many dimensions through matrix products."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...kernels import FAMILIES, Kernel
from ..calls import Mmd2, Mmd2Inputs, Sample, Witness, WitnessBackward, WitnessInputs
from ..common.native import address, is_double
from ..common.products import blocks_of, full_precision, squared_norms, tile_size
from .library import launch, load, workspace

F64 = torch.float64
DIRECT_DIMS = 48  # up to here distances by differences cost less than products, and so do those of few points:
DIRECT_WORK = 2**30  # pairs times dimensions; products take some 80 torch operations for each member of a batch
MOST_LISTED = 128  # bandwidths, which travel with a launch; csrc/cuda/launcher.hpp
LEADERS = 64  # points whose mean is near enough to all points' to center them
TILE = 2048  # rows and columns of products, which stay in a GPU's second-level cache


def mmd2(call: Mmd2) -> tuple[Tensor, Mmd2Inputs[Tensor]]:
    """Value [B] in float64 and six gradients; see `calls.MmdBackend.mmd2`."""
    x, y, needs = call.x.points, None if call.y is None else call.y.points, call.needs
    batch = len(x) if call.x.offsets is None else len(call.x.offsets) - 1
    made = torch.empty_like if call.x.offsets is None else torch.zeros_like  # some points may be of no member

    def gradient(need: bool, of: Tensor | None) -> Tensor:
        return made(of) if need and of is not None else x.new_empty(0)

    grads = Mmd2Inputs(
        x=gradient(needs.x, x),
        y=gradient(needs.y, y),
        x_weights=gradient(needs.x_weights, x[..., 0]),
        y_weights=gradient(needs.y_weights, None if y is None else y[..., 0]),
        bandwidths=x.new_empty((batch, len(call.kernel.bandwidths)) if needs.bandwidths else 0),
        kernel_weights=x.new_empty((batch, len(call.kernel.weights)) if needs.kernel_weights else 0),
    )
    value = x.new_empty(batch, dtype=F64)
    if batch == 0:
        return value, grads
    kernel, products = _listed(call.kernel), _by_products(call)
    task = load().Mmd(
        is_double=is_double(x),
        batch=batch,
        dim=x.shape[2],
        x=_sample(call.x, grads.x, grads.x_weights),
        y=None if call.y is None else _sample(call.y, grads.y, grads.y_weights),
        kernel=_kernel(kernel),
        normalized=True,
        unbiased=call.unbiased,
        fixed_y=call.fixed_y,
        products=products,
        value=value.data_ptr(),
        grad_bandwidths=address(grads.bandwidths),
        grad_kernel_weights=address(grads.kernel_weights),
    )
    _run(task, x, x if y is None else y, products)
    return value, grads


def witness(call: Witness) -> Tensor:
    """sum_j weights_j u(points_i, samples_j): [P]."""
    value = call.points.new_empty(len(call.points))
    _run_witness(call, None, value, None)
    return value


def witness_backward(call: WitnessBackward) -> WitnessInputs[Tensor]:
    """The five gradients of grad . witness; see `calls.MmdBackend.witness_backward`."""
    forward, count = call.forward, len(call.forward.kernel.bandwidths)
    points, samples, weights = forward.points, forward.samples, forward.weights
    shapes = (points.shape, samples.shape, weights.shape, (count,), (count,))
    grads = WitnessInputs(
        *[points.new_empty(shape if need else (0,)) for shape, need in zip(shapes, call.needs, strict=True)]
    )
    _run_witness(forward, call.grad, None, grads)
    return grads


def _run_witness(
    call: Witness, points_weights: Tensor | None, value: Tensor | None, grads: WitnessInputs[Tensor] | None
) -> None:
    """The value at the points, or the gradients of the product of their weights with it."""
    points, samples, weights, kernel = call.points, call.samples, call.weights, _listed(call.kernel)
    of_points, of_samples, of_weights, of_bandwidths, of_kernel_weights = grads or (None,) * 5
    task = load().Mmd(
        is_double=is_double(points),
        batch=1,
        dim=points.shape[1],
        x=_sample(Sample(points[None], points_weights), of_points, values=value),
        y=_sample(Sample(samples[None], weights), of_samples, values=of_weights),
        kernel=_kernel(kernel),
        normalized=False,
        unbiased=False,
        fixed_y=False,
        products=False,
        value=0,
        grad_bandwidths=address(of_bandwidths),
        grad_kernel_weights=address(of_kernel_weights),
    )
    _run(task, points, samples, False)


def _by_products(call: Mmd2) -> bool:
    """Whether distances come from matrix products.

    Slopes that are infinite at r = 0 show what products round; the tiles of products are of one size for all members.
    """
    x, y = call.x.points, call.y
    n, m = x.shape[1], 0 if y is None else y.points.shape[1]
    work = x.shape[2] * max(n, m) * (n if call.fixed_y else max(n, m))
    large = x.shape[2] > DIRECT_DIMS and work > DIRECT_WORK
    return large and FAMILIES[call.kernel.family].smooth and call.x.offsets is None


def _listed(kernel: Kernel) -> Kernel:
    """The kernel with contiguous tensors, whose numbers are as many as the launches take.

    Raises:
        ValueError: too many bandwidths.
    """
    if len(kernel.bandwidths) > MOST_LISTED:
        raise ValueError(
            f"bandwidths: got {len(kernel.bandwidths)}, the CUDA kernels take at most {MOST_LISTED}; "
            'use fastmmd.backend("triton") or fewer'
        )
    if isinstance(kernel.bandwidths, Tensor):
        kernel = replace(kernel, bandwidths=kernel.bandwidths.contiguous())
    if isinstance(kernel.weights, Tensor):
        kernel = replace(kernel, weights=kernel.weights.contiguous())
    return kernel


def _kernel(kernel: Kernel) -> dict[str, Any]:
    return {
        "family": kernel.family,
        "alpha": kernel.alpha,
        "count": len(kernel.bandwidths),
        "bandwidths": _numbers(kernel.bandwidths),
        "weights": _numbers(kernel.weights),
    }


def _numbers(values: tuple[float, ...] | Tensor) -> tuple[float, ...] | int:
    return address(values) if isinstance(values, Tensor) else values


def _sample(
    sample: Sample, grad_points: Tensor | None, grad_weights: Tensor | None = None, values: Tensor | None = None
) -> dict[str, int]:
    """values: where the witness of the other sample goes."""
    return {
        "count": sample.points.shape[1],
        "offsets": address(sample.offsets),
        "points": address(sample.points),
        "weights": address(sample.weights),
        "values": address(values),
        "grad_points": address(grad_points),
        "grad_weights": address(grad_weights),
    }


def _run(task: Any, x: Tensor, y: Tensor, products: bool) -> None:
    """x, y: [B, N, D]; with products their tiles are between plan and end."""
    memory = workspace(x, task.workspace)
    if products:
        memory.zero_()  # sums grow there tile by tile
    launch(partial(task.plan, memory.data_ptr()), x)
    if products:
        _tiles(task, x, y, memory)
    else:
        launch(partial(task.pairs, memory.data_ptr()), x)
    launch(partial(task.finish, memory.data_ptr()), x)


def _tiles(task: Any, x: Tensor, y: Tensor, memory: Tensor) -> None:
    """All terms by matrix products of centered points, tile by tile, with the fused kernel on each."""
    samples = (x, y)
    centers = [points[:, :LEADERS].mean(1, dtype=F64) for points in samples]
    with full_precision(x.device.type):
        for number, place in enumerate(task.terms):
            rows, columns = samples[place.rows], samples[place.columns]
            middle = (centers[place.rows] + centers[place.columns]) / 2
            sums = None
            if place.slopes >= 0:
                sums = memory[place.slopes : place.slopes + 8 * rows.numel()].view(F64).view(rows.shape)
            for member in range(len(x)):
                p, q = ((points[member] - middle[member]).to(x.dtype) for points in (rows, columns))
                term = _Term(task, number, member, place.half, memory, None if sums is None else sums[member])
                _add_products(term, p, q, place.rows == place.columns)


@dataclass(frozen=True)
class _Term:
    """A term for one member of the batch."""

    task: Any
    number: int
    member: int
    half: bool  # tiles below the diagonal are left out
    memory: Tensor  # of all kernels
    slopes: Tensor | None  # [n, D] float64: the gradient's sums; None: not needed


def _add_products(term: _Term, p: Tensor, q: Tensor, same: bool) -> None:
    """The tiles of p [n, D] and q [m, D], centered points, which are the same or are not."""
    rows, columns = tile_size(len(p), TILE), tile_size(len(q), TILE)
    if same:
        rows = columns
    left = [(i, block, squared_norms(block)) for i, block in blocks_of(p, rows)]
    right = left if same else [(j, block, squared_norms(block)) for j, block in blocks_of(q, columns)]
    products = p.new_empty((rows, columns))
    slope_sums = None if term.slopes is None else p.new_zeros(len(p), dtype=F64)
    for i, block, norms in left:
        for j, other, other_norms in right:
            if term.half and j.start < i.start:
                continue
            torch.mm(block, other.T, out=products)
            tile = load().Tile(
                term=term.number,
                member=term.member,
                row=i.start,
                column=j.start,
                rows=i.stop - i.start,
                columns=j.stop - j.start,
                stride=columns,
                products=products.data_ptr(),
                row_norms=norms.data_ptr(),
                column_norms=other_norms.data_ptr(),
                slope_sums=0 if slope_sums is None else slope_sums[i].data_ptr(),
            )
            launch(partial(term.task.tile, tile, term.memory.data_ptr()), p)
            if term.slopes is not None:  # sum_j c_ij (p_i - q_j) = (sum_j c_ij) p_i - (c q)_i, c in products
                term.slopes[i] -= (products @ other)[: i.stop - i.start]
    if term.slopes is not None and slope_sums is not None:
        term.slopes.addcmul_(p.to(F64), slope_sums[:, None])
