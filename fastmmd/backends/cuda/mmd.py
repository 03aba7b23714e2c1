"""mmd2 and witness through the compiled CUDA kernels, distances of many dimensions through matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...kernels import Kernel
from ..calls import Mmd2, Mmd2Inputs, Witness, WitnessBackward, WitnessInputs
from ..common.native import address, is_double
from ..common.products import blocks_of, full_precision, squared_norms, tile_size
from .library import launch, load, workspace

F64 = torch.float64
DIRECT_DIMS = 48  # up to here distances by differences cost less than products, and so do those of few points:
DIRECT_WORK = 2**28  # pairs times dimensions; products take some 80 torch operations for each member of a batch
MOST_LISTED = 128  # bandwidths, which travel with a launch; csrc/cuda/operations.hpp
LEADERS = 64  # points whose mean is near enough to all points' to center them
TILE = 2048  # rows and columns of products, which stay in a GPU's second-level cache


def mmd2(call: Mmd2) -> tuple[Tensor, Mmd2Inputs[Tensor]]:
    """Value [B] in float64 and six gradients; see `calls.MmdBackend.mmd2`."""
    x, x_weights, x_offsets, kernel, needs = call.x.points, call.x.weights, call.x.offsets, call.kernel, call.needs
    y, y_weights, y_offsets = (None,) * 3 if call.y is None else (call.y.points, call.y.weights, call.y.offsets)
    batch, count = len(x) if x_offsets is None else len(x_offsets) - 1, len(kernel.bandwidths)
    value = x.new_empty(batch, dtype=F64)
    given = (x, y, x_weights, y_weights)
    made = torch.empty_like if x_offsets is None else torch.zeros_like  # some points may be of no member
    grads = [
        made(of) if need and of is not None else x.new_empty(0)
        for of, need in zip((x, y, x[..., 0], None if y is None else y[..., 0]), needs, strict=False)
    ]
    rungs = [x.new_empty((batch, count) if need else 0) for need in needs[4:]]
    samples = [
        (0 if points is None else points.shape[1], *map(address, (offsets, points, mass)), 0, *map(address, of))
        for offsets, points, mass, of in zip(
            (x_offsets, y_offsets), given[:2], given[2:], (grads[::2], grads[1::2]), strict=True
        )
    ]
    work = x.shape[2] * max(x.shape[1], 0 if y is None else y.shape[1]) ** 2
    # Laplacian and energy show what products round; the tiles of products are of one size for all members.
    products = x.shape[2] > DIRECT_DIMS and work > DIRECT_WORK and kernel.family not in ("laplacian", "energy")
    products = products and x_offsets is None
    _run(x, y, batch, samples, kernel, True, call.unbiased, products, value, rungs)
    return value, Mmd2Inputs(*grads, *rungs)


def witness(call: Witness) -> Tensor:
    """sum_j weights_j u(points_i, samples_j): [P]."""
    points, samples, weights = call.points, call.samples, call.weights
    value = points.new_empty(len(points))
    sides = [
        (len(points), 0, address(points), 0, address(value), 0, 0),
        (len(samples), 0, *map(address, (samples, weights)), 0, 0, 0),
    ]
    _run(points[None], samples[None], 1, sides, call.kernel, False, False, False, None, ())
    return value


def witness_backward(call: WitnessBackward) -> WitnessInputs[Tensor]:
    """The five gradients of grad . witness; see `calls.MmdBackend.witness_backward`."""
    forward, count = call.forward, len(call.forward.kernel.bandwidths)
    points, samples, weights = forward.points, forward.samples, forward.weights
    shapes = (points.shape, samples.shape, weights.shape, (count,), (count,))
    grads = WitnessInputs(
        *[points.new_empty(shape if need else (0,)) for shape, need in zip(shapes, call.needs, strict=True)]
    )
    sides = [
        (len(points), 0, *map(address, (points, call.grad)), 0, address(grads.points), 0),
        (len(samples), 0, *map(address, (samples, weights, grads.weights, grads.samples)), 0),
    ]
    _run(points[None], samples[None], 1, sides, forward.kernel, False, False, False, None, grads[3:])
    return grads


def _run(
    x: Tensor,  # [B, N, D], or with offsets [1, N, D]
    y: Tensor | None,
    batch: int,  # B
    samples: list[tuple[int, ...]],
    kernel: Kernel,
    normalized: bool,
    unbiased: bool,
    products: bool,
    value: Tensor | None,
    rungs: Sequence[Tensor],
) -> None:
    if batch == 0:
        return
    if len(kernel.bandwidths) > MOST_LISTED:
        raise ValueError(
            f"bandwidths: got {len(kernel.bandwidths)}, the CUDA kernels take at most {MOST_LISTED}; "
            'use fastmmd.backend("triton") or fewer'
        )
    numbers = [
        values.contiguous() if isinstance(values, Tensor) else values for values in (kernel.bandwidths, kernel.weights)
    ]
    lists = [[] if isinstance(values, Tensor) else values for values in numbers]
    tensors = [address(values) if isinstance(values, Tensor) else 0 for values in numbers]
    outputs = [address(gradient) for gradient in rungs] or [0, 0]
    call = load().Mmd(
        is_double(x), batch, x.shape[2], *samples, kernel.family, kernel.alpha, len(kernel.bandwidths), *lists,
        *tensors, normalized, unbiased, products, address(value), *outputs,
    )  # fmt: skip
    memory = workspace(x, call.workspace)
    if products:
        memory.zero_()  # sums grow there tile by tile
    launch(call.plan, x, memory.data_ptr())
    if products:
        _tiles(call, x, x if y is None else y, memory)
    else:
        launch(call.pairs, x, memory.data_ptr())
    launch(call.finish, x, memory.data_ptr())


def _tiles(call: Any, x: Tensor, y: Tensor, memory: Tensor) -> None:
    """All terms by matrix products of centered points, tile by tile, with the fused kernel on each."""
    centers = [points[:, :LEADERS].mean(1, dtype=F64) for points in (x, y)]
    with full_precision(x.device.type):
        for term, (rows, columns, half, slopes) in enumerate(call.terms):
            pair = [(x, y)[side] for side in (rows, columns)]
            middle = (centers[rows] + centers[columns]) / 2
            size = 8 * pair[0].numel()
            sums = memory[slopes : slopes + size].view(F64).view(pair[0].shape) if slopes >= 0 else None
            for b in range(len(x)):
                p, q = ((points[b] - middle[b]).to(x.dtype) for points in pair)
                _term(call, term, b, p, q, rows == columns, half, None if sums is None else sums[b], memory)


def _term(
    call: Any, term: int, b: int, p: Tensor, q: Tensor, same: bool, half: bool, sums: Tensor | None, memory: Tensor
) -> None:
    """One term for one member of the batch; p [n, D], q [m, D] centered. sums [n, D] float64: of the gradient."""
    rows, columns = tile_size(len(p), TILE), tile_size(len(q), TILE)
    if same:
        rows = columns
    left = [(i, block, squared_norms(block)) for i, block in blocks_of(p, rows)]
    right = left if same else [(j, block, squared_norms(block)) for j, block in blocks_of(q, columns)]
    products = p.new_empty((rows, columns))
    rest = None if sums is None else p.new_zeros(len(p), dtype=F64)
    for i, block, norms in left:
        for j, other, other_norms in right:
            if half and j.start < i.start:
                continue
            torch.mm(block, other.T, out=products)
            launch(
                call.tile, p, term, b, i.start, j.start, i.stop - i.start, j.stop - j.start, columns,
                *map(address, (products, norms, other_norms, None if rest is None else rest[i])), memory.data_ptr(),
            )  # fmt: skip
            if sums is not None:
                sums[i] -= (products @ other)[: i.stop - i.start]
    if sums is not None:
        assert rest is not None
        sums.addcmul_(p.to(F64), rest[:, None])
