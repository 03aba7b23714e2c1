"""The operators behind `mmd2`, `mmd2_to_prior` and `witness`, with their derivatives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...backends import select
from ...backends.calls import Mmd2, Mmd2Inputs, Sample, Witness, WitnessBackward, WitnessInputs, members_of_rows
from ...kernels import Kernel
from ..dispatch import define

FlatKernel = tuple[Tensor | None, Tensor | None, list[float], str]
FiveTensors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
SevenTensors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def flattened(kernel: Kernel) -> FlatKernel:
    """The kernel as arguments of an operator: bandwidths, kernel_weights, numbers, family.

    Bandwidths and weights that are tensors are arguments of their own, since they may need gradients. Those that are
    floats follow alpha in `numbers`.
    """
    s, w, numbers = kernel.bandwidths, kernel.weights, [kernel.alpha]
    if not isinstance(s, Tensor):
        numbers += s
    if not isinstance(w, Tensor):
        numbers += w
    return s if isinstance(s, Tensor) else None, w if isinstance(w, Tensor) else None, numbers, kernel.family


def restored(bandwidths: Tensor | None, kernel_weights: Tensor | None, numbers: Sequence[float], family: str) -> Kernel:
    """The kernel that was `flattened`."""
    alpha, *floats = numbers
    if bandwidths is not None:
        weights = tuple(floats) if kernel_weights is None else kernel_weights.contiguous()
        return Kernel(family, bandwidths.contiguous(), weights, alpha)
    if kernel_weights is not None:
        return Kernel(family, tuple(floats), kernel_weights.contiguous(), alpha)
    count = len(floats) // 2
    return Kernel(family, tuple(floats[:count]), tuple(floats[count:]), alpha)


def _mmd2(
    x: Tensor,
    y: Tensor | None,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    bandwidths: Tensor | None,
    kernel_weights: Tensor | None,
    offsets: Tensor | None,
    numbers: Sequence[float],
    family: str,
    options: Sequence[bool],
    needs: Sequence[bool],
    backend: str,
) -> SevenTensors:
    """The value of each member and the gradients in the first six arguments.

    offsets: [2, C + 1], those of x and y. options: whether the estimator is unbiased, whether y is fixed.
    """
    unbiased, fixed_y = options
    x_offsets, y_offsets = (None, None) if offsets is None else offsets.unbind()
    call = Mmd2(
        Sample(x.contiguous(), _contiguous(x_weights), x_offsets),
        None if y is None else Sample(y.contiguous(), _contiguous(y_weights), y_offsets),
        restored(bandwidths, kernel_weights, numbers, family),
        unbiased,
        Mmd2Inputs(*needs),
        fixed_y,
    )
    value, gradients = select(backend, "mmd", x.device).mmd2(call)
    return value, *gradients


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _mmd2_fake(
    x: Tensor,
    y: Tensor | None,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    bandwidths: Tensor | None,
    kernel_weights: Tensor | None,
    offsets: Tensor | None,
    numbers: Sequence[float],
    family: str,
    options: Sequence[bool],
    needs: Sequence[bool],
    backend: str,
) -> SevenTensors:
    other = x if y is None else y
    members = x.shape[0] if offsets is None else offsets.shape[1] - 1
    of_kernels = torch.Size([members, len(restored(bandwidths, kernel_weights, numbers, family).bandwidths)])
    shapes = Mmd2Inputs(x.shape, other.shape, x.shape[:2], other.shape[:2], of_kernels, of_kernels)
    return x.new_empty(members, dtype=torch.float64), *Mmd2Inputs(*_empty(x, shapes, needs))


def _empty(like: Tensor, shapes: Iterable[torch.Size], needs: Iterable[bool]) -> list[Tensor]:
    return [like.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needs, strict=True)]


def _mmd2_setup(ctx: Any, inputs: tuple[Any, ...], output: SevenTensors) -> None:
    ctx.save_for_backward(*inputs[:7], *output[1:])


def _mmd2_backward(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    saved = ctx.saved_tensors  # read once: activation checkpointing allows no more
    inputs, offsets, gradients = saved[:6], saved[6], saved[7:]
    grads = [grad] * 6
    if offsets is not None:  # the rows of x and y belong to members of their own
        in_x, in_y = (_of_rows(grad, *side) for side in zip(offsets, inputs[:2], strict=True))
        grads = [in_x, in_y, in_x, in_y, grad, grad]
    return [
        _chain(grads[i], gradients[i], inputs, shared=i >= 4) if need else None
        for i, need in enumerate(ctx.needs_input_grad[:6])
    ]


def _of_rows(grad: Tensor, offsets: Tensor, points: Tensor) -> Tensor:
    """For each row of points [1, N, D] the entry of grad [C] for its member, 0 where it has none: [1, N]."""
    return torch.nn.functional.pad(grad, (0, 1))[members_of_rows(offsets, points.shape[1])][None]


def _chain(grad: Tensor, gradient: Tensor, inputs: Sequence[Tensor | None], shared: bool) -> Tensor:
    """grad [B] (or [1, N], one for each row) times the gradient [B, ...] in one input, which the forward pass made.

    The saved gradient is data to autograd, so a second derivative through it would be a silent zero. Where one can
    follow, all inputs of the operator travel along to make the result depend on them, and differentiating that raises.

    Raises:
        RuntimeError: the forward pass ran without this gradient.
    """
    if gradient.ndim == 1:  # the empty tensor that stands for a gradient not asked for; gradients are [B, ...]
        raise RuntimeError("the forward pass did not compute the gradient in an input that needs it")
    if torch.is_grad_enabled():
        x, y, x_weights, y_weights, bandwidths, kernel_weights = inputs
        return apply_gradient(grad, gradient, x, y, x_weights, y_weights, bandwidths, kernel_weights, shared)
    return _product(grad, gradient, shared)


def _product(grad: Tensor, gradient: Tensor, shared: bool) -> Tensor:
    if shared:  # by the whole batch
        return (grad[:, None] * gradient).sum(0).to(gradient.dtype)
    return grad.to(gradient.dtype).reshape(*grad.shape, *[1] * (gradient.ndim - grad.ndim)) * gradient


def _apply_gradient(
    grad: Tensor,
    gradient: Tensor,
    x: Tensor | None,
    y: Tensor | None,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    bandwidths: Tensor | None,
    kernel_weights: Tensor | None,
    shared: bool,
) -> Tensor:
    return _product(grad, gradient, shared)


def _witness(
    points: Tensor,
    samples: Tensor,
    weights: Tensor,
    bandwidths: Tensor | None,
    kernel_weights: Tensor | None,
    numbers: Sequence[float],
    family: str,
    backend: str,
) -> Tensor:
    kernel = restored(bandwidths, kernel_weights, numbers, family)
    call = Witness(points.contiguous(), samples.contiguous(), weights.contiguous(), kernel)
    return select(backend, "mmd", points.device).witness(call)


def _witness_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.numbers, ctx.family, ctx.backend = inputs[5:]


def _witness_gradient(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    points, samples, weights, s, w = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:5])
    gradients = witness_backward(grad, points, samples, weights, s, w, ctx.numbers, ctx.family, needs, ctx.backend)
    return [gradient if need else None for gradient, need in zip(gradients, needs, strict=True)]


def _witness_backward(
    grad: Tensor,
    points: Tensor,
    samples: Tensor,
    weights: Tensor,
    bandwidths: Tensor | None,
    kernel_weights: Tensor | None,
    numbers: Sequence[float],
    family: str,
    needs: Sequence[bool],
    backend: str,
) -> FiveTensors:
    kernel = restored(bandwidths, kernel_weights, numbers, family)
    forward = Witness(points.contiguous(), samples.contiguous(), weights.contiguous(), kernel)
    call = WitnessBackward(forward, grad.contiguous(), WitnessInputs(*needs))
    return select(backend, "mmd", points.device).witness_backward(call)


def _witness_backward_fake(
    grad: Tensor,
    points: Tensor,
    samples: Tensor,
    weights: Tensor,
    bandwidths: Tensor | None,
    kernel_weights: Tensor | None,
    numbers: Sequence[float],
    family: str,
    needs: Sequence[bool],
    backend: str,
) -> FiveTensors:
    of_kernels = torch.Size([len(restored(bandwidths, kernel_weights, numbers, family).bandwidths)])
    shapes = (points.shape, samples.shape, weights.shape, of_kernels, of_kernels)
    return WitnessInputs(*_empty(points, shapes, needs))


mmd2_members = define(_mmd2, _mmd2_fake, _mmd2_setup, _mmd2_backward)
apply_gradient = define(
    _apply_gradient,
    lambda grad, gradient, *rest: gradient.new_empty(gradient.shape[1:] if rest[-1] else gradient.shape),
)
witness_values = define(
    _witness, lambda points, *_: points.new_empty(points.shape[0]), _witness_setup, _witness_gradient
)
witness_backward = define(_witness_backward, _witness_backward_fake)
