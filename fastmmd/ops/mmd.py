"""Maximum mean discrepancy: `mmd2` and `witness` (Gretton et al. 2012, "A kernel two-sample test")."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import current, select
from ..backends.calls import Mmd2, Mmd2Inputs, Sample, Witness, WitnessBackward, WitnessInputs, members_of_rows
from ..kernels import Kernel
from .arguments import (
    DEFAULT_BANDWIDTHS,
    Estimator,
    Floats,
    KernelName,
    batched,
    check_estimator,
    check_points,
    compute_dtype,
    kernel_arguments,
    normalized,
    sample_weights,
)
from .dispatch import define, needs_grad
from .labels import by_class, check_classes, check_counts, class_tensor, values_are_read


def mmd2(
    x: Tensor,
    y: Tensor,
    bandwidths: Floats = DEFAULT_BANDWIDTHS,
    *,
    kernel: KernelName = "gaussian",
    estimator: Estimator = "biased",
    kernel_weights: Floats | None = None,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    alpha: float = 1.0,
    x_labels: Tensor | None = None,
    y_labels: Tensor | None = None,
    class_weights: Sequence[float] | None = None,
    unconditional_weight: float = 0.0,
) -> Tensor:
    """Squared maximum mean discrepancy between two samples, in linear memory, value and gradient in one pass.

    MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y) (Gretton et al. 2012, eq. 3 and 5), with
    k(a, b) = sum_s w_s kappa(|a - b|^2; s), r = |a - b|^2:

    - "gaussian": exp(-r / (2 s^2))
    - "laplacian": exp(-sqrt(r) / s)
    - "imq": c / (c + r), c = s^2 (the WAE paper's constant is c = 2 * dim * prior_std^2)
    - "rational_quadratic": (1 + r / (2 alpha s^2))^-alpha
    - "energy": -sqrt(r), without bandwidths; the result is the energy distance

    With labels the result is sum_c pi_c MMD^2(x|c, y|c) + unconditional_weight MMD^2(x, y), where x|c are the points
    of class c, pi are the class weights and the last term is over all points: as the weighted sum of separate calls,
    at the cost of the pairs within classes.

    Args:
        x: [..., N, D] points; float16, bfloat16 and float32 are computed and returned in float32, float64 in float64.
        y: [..., M, D] points, M != N allowed; leading dimensions broadcast.
        bandwidths: standard deviations s, S positive floats or a differentiable [S] tensor, whose values are not
            checked. A variance v is the bandwidth v**0.5; exp(-gamma r) has the bandwidth (0.5 / gamma)**0.5.
        kernel: one of the names above; the S kernels are summed.
        estimator: "biased" (V-statistic, never negative in exact arithmetic) or "unbiased" (U-statistic, leaves out
            the diagonals of k(x, x') and k(y, y'); may be negative and is not clamped; needs two points on each side;
            weighted: sum_{i != j} w_i w_j k_ij / (1 - sum w_i^2)).
        kernel_weights: S floats or a differentiable [S] tensor; ones by default.
        x_weights, y_weights: [..., N] and [..., M], normalized to sum 1 here; uniform by default.
        alpha: the exponent of "rational_quadratic".
        x_labels, y_labels: [N] and [M] int64, both or neither, for x [N, D] and y [M, D]: the class of each point, or
            -1 for an unlabeled point, which counts in the unconditional term alone. Weights of points are normalized
            within each class, and over all points in the unconditional term.
        class_weights: pi, a number >= 0 for each class, used as given; required with labels.
        unconditional_weight: a number >= 0; at 0 that term is not computed.

    Returns:
        [...] tensor. Differentiable once in x, y, both weights and tensor-valued bandwidths and kernel_weights. The
        non-smooth kernels have gradient zero where two points coincide.

    Raises:
        TypeError: a wrong type or dtype, or float32 mixed with float64.
        ValueError: a wrong shape, an empty sample, a bandwidth that is not positive, mixed devices, an unknown kernel
            or estimator. With labels also, on the CPU: an invalid label, a class that is empty on one side only (one
            that is empty on both contributes 0), a class with a single point for "unbiased", unlabeled points without
            an unconditional term. On other devices and under torch.compile labels are not read: there the result is
            NaN in the first three of these cases, and such unlabeled points are ignored.
    """
    check_points(x=x, y=y)
    unbiased = check_estimator(estimator, x=x, y=y)
    batch = _broadcast_batch(x, y)
    s, w, numbers, family = flattened(kernel_arguments(bandwidths, kernel, kernel_weights, alpha, x))
    wx = _flat(sample_weights("x_weights", x_weights, "x", x, batch))
    wy = _flat(sample_weights("y_weights", y_weights, "y", y, batch))
    xb, yb = batched(x, batch), batched(y, batch)
    offsets = None
    if x_labels is not None or y_labels is not None or class_weights is not None or unconditional_weight != 0:
        x_labels, y_labels, pi = check_classes(x, y, x_labels, y_labels, class_weights, unconditional_weight)
        xb, wx, x_offsets = by_class(xb, wx, x_labels, len(pi))
        yb, wy, y_offsets = by_class(yb, wy, y_labels, len(pi))
        if values_are_read(x.device):
            check_counts(x_offsets, y_offsets, x, y, unbiased, all_points=unconditional_weight != 0)
        offsets = torch.stack([x_offsets, y_offsets])
    needs = needs_grad(xb, yb, wx, wy, s, w)
    member_values = mmd2_members(xb, yb, wx, wy, s, w, offsets, numbers, family, unbiased, needs, current())[0]
    if x_labels is None or y_labels is None:
        value = member_values.to(xb.dtype)
        return value.reshape(batch) if batch else value.squeeze(0)
    value = (class_tensor(pi, x_labels, y_labels) * member_values).sum()
    if unconditional_weight != 0:
        value = value + unconditional_weight * mmd2(
            x, y, bandwidths, kernel=kernel, estimator=estimator, kernel_weights=kernel_weights, x_weights=x_weights,
            y_weights=y_weights, alpha=alpha,
        )  # fmt: skip
    return value.to(xb.dtype)


def witness(
    points: Tensor,
    x: Tensor,
    y: Tensor,
    bandwidths: Floats = DEFAULT_BANDWIDTHS,
    *,
    kernel: KernelName = "gaussian",
    kernel_weights: Floats | None = None,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    alpha: float = 1.0,
) -> Tensor:
    """Witness function mean_i k(p, x_i) - mean_j k(p, y_j) at each point p: positive where x has more mass than y.

    Gretton et al. 2012, section 2.3 (empirical witness, up to its normalization). Kernels, weights and promotion as
    in `mmd2`; mean over x minus mean over y of the witness is the biased MMD^2.

    Args:
        points: [P, D]. x: [N, D]. y: [M, D]. The others as in `mmd2`.

    Returns:
        [P] tensor, differentiable once in everything that `mmd2` is, and in points.

    Raises:
        TypeError, ValueError: as `mmd2`.
    """
    check_points(rank=2, points=points, x=x, y=y)
    s, w, numbers, family = flattened(kernel_arguments(bandwidths, kernel, kernel_weights, alpha, points))
    signed = torch.cat([_or_uniform("x", x_weights, x), -_or_uniform("y", y_weights, y)])
    dtype = compute_dtype(points)
    samples = torch.cat([x.to(dtype), y.to(dtype)])
    return witness_values(points.to(dtype), samples, signed, s, w, numbers, family, current())


def _broadcast_batch(x: Tensor, y: Tensor) -> torch.Size:
    if x.ndim == y.ndim == 2:
        return torch.Size()
    try:
        return torch.Size(torch.broadcast_shapes(x.shape[:-2], y.shape[:-2]))
    except RuntimeError:
        raise ValueError(
            f"y: got leading dimensions {list(y.shape[:-2])}, which do not broadcast with {list(x.shape[:-2])} of x"
        ) from None


def _flat(weights: Tensor | None) -> Tensor | None:
    return None if weights is None else weights.reshape(-1, weights.shape[-1])


def _or_uniform(name: str, weights: Tensor | None, points: Tensor) -> Tensor:
    given, n = sample_weights(f"{name}_weights", weights, name, points), points.shape[0]
    return points.new_full((n,), 1.0 / n, dtype=compute_dtype(points)) if given is None else normalized(given)


# --- the operators ---

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
    unbiased: bool,
    needs: Sequence[bool],
    backend: str,
) -> SevenTensors:
    """The value of each member and the gradients in the first six arguments; offsets [2, C + 1]: those of x and y."""
    x_offsets, y_offsets = (None, None) if offsets is None else offsets.unbind()
    call = Mmd2(
        Sample(x.contiguous(), _contiguous(x_weights), x_offsets),
        None if y is None else Sample(y.contiguous(), _contiguous(y_weights), y_offsets),
        restored(bandwidths, kernel_weights, numbers, family),
        unbiased,
        Mmd2Inputs(*needs),
    )
    value, gradients = select(backend, "mmd", x.device.type).mmd2(call)
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
    unbiased: bool,
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
    return select(backend, "mmd", points.device.type).witness(call)


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
    return select(backend, "mmd", points.device.type).witness_backward(call)


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
