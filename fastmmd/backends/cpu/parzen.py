"""Parzen windows through the compiled kernels: distances by products, by differences for few dimensions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..calls import Parzen, ParzenBackward
from ..common.native import address, is_double
from ..common.parzen import rounded_state
from .library import load, threads

PARZEN_DIRECT_DIMS = 16  # up to here distances by differences cost less than products


def parzen_update(call: Parzen) -> None:
    """Add samples to minimum [M] and sums [S, M], in place."""
    empty = call.points.new_empty(0)
    for tried, products in _attempts(call):
        if products:  # whose results may be void
            tried = replace(tried, sums=call.sums.clone(), minimum=call.minimum.clone())
        state = rounded_state(tried)
        if _run(state, products, None, empty, empty):
            call.minimum.copy_(state.minimum)
            call.sums.copy_(state.sums)
            return


def parzen_backward(call: ParzenBackward) -> tuple[Tensor, Tensor]:
    """Gradients of sum grad (log sums - minimum / (2 sigma^2)) in points [M, D] and samples [N, D]."""
    dtype = call.forward.points.dtype
    for tried, products in _attempts(call.forward):
        points, samples = tried.points, tried.samples
        tried = replace(tried, minimum=tried.minimum.to(points.dtype))
        g_points = torch.empty_like(points) if call.needs_points else points.new_empty(0)
        g_samples = torch.empty_like(samples) if call.needs_samples else points.new_empty(0)
        if _run(tried, products, call.grad.to(points.dtype), g_points, g_samples):
            break
    return g_points.to(dtype), g_samples.to(dtype)


def _attempts(call: Parzen) -> Iterator[tuple[Parzen, bool]]:
    """The call, and whether by products, until one says that points are not too far apart for it."""
    if call.points.shape[1] > PARZEN_DIRECT_DIMS:
        yield call, True
        call = replace(call, points=call.points.double(), samples=call.samples.double())
        yield call, True
    yield call, False


def _run(call: Parzen, products: bool, grad: Tensor | None, g_points: Tensor, g_samples: Tensor) -> bool:
    """Whether points were not too far apart; else all results are void."""
    points, samples = call.points, call.samples
    done: bool = load().parzen(
        is_double=is_double(points),
        threads=threads(),
        m=len(points),
        n=len(samples),
        dim=samples.shape[1],
        points=points.data_ptr(),
        samples=samples.data_ptr(),
        products=products,
        sigmas=call.sigmas,
        minimum=call.minimum.data_ptr(),
        sums=call.sums.data_ptr(),
        grad=address(grad),
        grad_points=address(g_points),
        grad_samples=address(g_samples),
    )
    return done
