"""Maximum mean discrepancy: `mmd2` and `witness` (Gretton et al. 2012, "A kernel two-sample test")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import current, select
from ..backends.calls import Mmd2, Mmd2Inputs, Sample, Witness, WitnessBackward, WitnessInputs
from ..kernels import Kernel
from .arguments import (
    DEFAULT_BANDWIDTHS,
    Floats,
    batched,
    check_points,
    compute_dtype,
    kernel_arguments,
    normalized,
    reject_unknown,
    sample_weights,
)
from .labels import by_class, check_classes, check_counts, class_tensor, values_are_read
from .registration import apply_gradient, define, needs_grad, operators

ESTIMATORS = ("biased", "unbiased")


def mmd2(
    x: Tensor,
    y: Tensor,
    bandwidths: Floats = DEFAULT_BANDWIDTHS,
    *,
    kernel: str = "gaussian",
    estimator: str = "biased",
    kernel_weights: Floats | None = None,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    alpha: float = 1.0,
    x_labels: Tensor | None = None,
    y_labels: Tensor | None = None,
    class_weights: Sequence[float] | None = None,
    unconditional_weight: float = 0.0,
    **unknown: object,
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
    at the cost of the pairs that they have.

    Args:
        x: [..., N, D] points; float16, bfloat16 and float32 are computed and returned in float32, float64 in float64.
        y: [..., M, D] points, M != N allowed; leading dimensions broadcast.
        bandwidths: standard deviations s, S positive floats or a differentiable [S] tensor (its values unchecked).
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
        TypeError: a wrong type or dtype, float32 mixed with float64, or `sigma=`/`gamma=`.
        ValueError: a wrong shape, an empty sample, a bandwidth that is not positive, mixed devices, an unknown kernel
            or estimator. With labels also, on the CPU: a label that is no class, a class without points on one side
            only (without points on either it counts 0), one with a single point for "unbiased", unlabeled points
            beside no unconditional term. On other devices and under torch.compile labels are not read; the result is
            NaN there in the first three of these cases, and such unlabeled points count nowhere.
    """
    reject_unknown(unknown)
    check_points(x=x, y=y)
    unbiased = check_estimator(estimator, x=x, y=y)
    batch = _broadcast_batch(x, y)
    s, w, s_floats, w_floats = kernel_arguments(bandwidths, kernel, kernel_weights, alpha, x)
    wx = _flat(sample_weights("x_weights", x_weights, "x", x, batch))
    wy = _flat(sample_weights("y_weights", y_weights, "y", y, batch))
    xb, yb = batched(x, batch), batched(y, batch)
    x_offsets = y_offsets = None
    if x_labels is not None or y_labels is not None or class_weights is not None or unconditional_weight != 0:
        x_labels, y_labels, pi = check_classes(x, y, x_labels, y_labels, class_weights, unconditional_weight)
        xb, wx, x_offsets = by_class(xb, wx, x_labels, len(pi))
        yb, wy, y_offsets = by_class(yb, wy, y_labels, len(pi))
        if values_are_read(x.device):
            check_counts(x_offsets, y_offsets, x, y, unbiased, all_points=unconditional_weight != 0)
    needs = needs_grad(xb, yb, wx, wy, s, w)
    out = operators.mmd2(
        xb, yb, wx, wy, s, w, s_floats, w_floats, kernel, float(alpha), unbiased, needs, x_offsets, y_offsets, current()
    )
    if x_labels is None or y_labels is None:
        return out[0].to(xb.dtype).reshape(batch)  # type: ignore[no-any-return]
    value = (class_tensor(pi, x_labels, y_labels) * out[0]).sum()
    if unconditional_weight != 0:
        value = value + unconditional_weight * mmd2(
            x, y, bandwidths, kernel=kernel, estimator=estimator, kernel_weights=kernel_weights, x_weights=x_weights,
            y_weights=y_weights, alpha=alpha,
        )  # fmt: skip
    return value.to(xb.dtype)  # type: ignore[no-any-return]


def witness(
    points: Tensor,
    x: Tensor,
    y: Tensor,
    bandwidths: Floats = DEFAULT_BANDWIDTHS,
    *,
    kernel: str = "gaussian",
    kernel_weights: Floats | None = None,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    alpha: float = 1.0,
    **unknown: object,
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
    reject_unknown(unknown)
    check_points(rank=2, points=points, x=x, y=y)
    s, w, s_floats, w_floats = kernel_arguments(bandwidths, kernel, kernel_weights, alpha, points)
    signed = torch.cat([_or_uniform("x", x_weights, x), -_or_uniform("y", y_weights, y)])
    dtype = compute_dtype(points)
    samples = torch.cat([x.to(dtype), y.to(dtype)])
    return operators.witness(  # type: ignore[no-any-return]
        points.to(dtype), samples, signed, s, w, s_floats, w_floats, kernel, float(alpha), current()
    )


def check_estimator(estimator: str, **samples: Tensor) -> bool:
    """True for "unbiased", which needs two points in each sample."""
    if estimator not in ESTIMATORS:
        raise ValueError(f'estimator: got {estimator!r}, expected "biased" or "unbiased"')
    for name, sample in samples.items():
        if estimator == "unbiased" and sample.shape[-2] < 2:
            raise ValueError(f'{name}: got {sample.shape[-2]} point, expected at least 2 for estimator="unbiased"')
    return estimator == "unbiased"


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
    found = sample_weights(f"{name}_weights", weights, name, points)
    n = points.shape[0]
    return points.new_full((n,), 1.0 / n, dtype=compute_dtype(points)) if found is None else normalized(found)


def _kernel(
    s: Tensor | None, w: Tensor | None, s_floats: Sequence[float], w_floats: Sequence[float], kernel: str, alpha: float
) -> Kernel:
    return Kernel(kernel, tuple(s_floats) if s is None else s, tuple(w_floats) if w is None else w, alpha)


def _mmd2(
    x: Tensor, y: Tensor | None, x_weights: Tensor | None, y_weights: Tensor | None, *description: Any
) -> tuple[Tensor, ...]:
    *kernel, unbiased, needs, x_offsets, y_offsets, backend = description
    call = Mmd2(
        Sample(x.contiguous(), _contiguous(x_weights), x_offsets),
        None if y is None else Sample(y.contiguous(), _contiguous(y_weights), y_offsets),
        _kernel(*kernel),
        unbiased,
        Mmd2Inputs(*needs),
    )
    value, gradients = select(backend, "mmd", x.device.type).mmd2(call)
    return value, *gradients


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _mmd2_fake(
    x: Tensor, y: Tensor | None, x_weights: Tensor | None, y_weights: Tensor | None, *description: Any
) -> tuple[Tensor, ...]:
    s, _, s_floats, *_, needs, x_offsets, _, _ = description
    other = x if y is None else y
    members = x.shape[0] if x_offsets is None else x_offsets.shape[0] - 1
    per_kernel = torch.Size([members, len(s_floats) if s is None else s.shape[0]])
    shapes = (x.shape, other.shape, x.shape[:2], other.shape[:2], per_kernel, per_kernel)
    gradients = [x.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needs, strict=True)]
    return (x.new_empty(members, dtype=torch.float64), *gradients)


def _mmd2_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:6], *inputs[-3:-1], *output[1:])


def _mmd2_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # read once: activation checkpointing allows no more
    inputs, offsets, gradients = saved[:6], saved[6:8], saved[8:]
    by_side = (grad, grad) if offsets[0] is None else tuple(map(_of_rows, (grad, grad), offsets, inputs[:2]))
    found = (
        apply_gradient(grad if index >= 4 else by_side[index % 2], gradient, inputs, shared=index >= 4)
        if need
        else None
        for index, (gradient, need) in enumerate(zip(gradients, ctx.needs_input_grad, strict=False))
    )
    return (*found, None, None)


def _of_rows(grad: Tensor, offsets: Tensor, points: Tensor) -> Tensor:
    """For each row of points [1, N, D] the entry of grad [C] for its member, 0 where it has none: [1, N]."""
    rows = torch.arange(points.shape[1], device=points.device)
    member = torch.searchsorted(offsets[1:], rows, right=True)
    return torch.nn.functional.pad(grad, (0, 1))[member][None]


KERNEL_SCHEMA = (
    "Tensor? bandwidths, Tensor? kernel_weights, float[] bandwidth_floats, float[] kernel_weight_floats, str kernel, "
    "float alpha"
)
define(
    f"mmd2(Tensor x, Tensor? y, Tensor? x_weights, Tensor? y_weights, {KERNEL_SCHEMA}, bool unbiased, bool[] needs, "
    "Tensor? x_offsets, Tensor? y_offsets, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _mmd2,
    _mmd2_fake,
    _mmd2_setup,
    _mmd2_backward,
)


def _witness_call(points: Tensor, samples: Tensor, weights: Tensor, *kernel: Any) -> Witness:
    return Witness(points.contiguous(), samples.contiguous(), weights.contiguous(), _kernel(*kernel))


def _witness(points: Tensor, samples: Tensor, weights: Tensor, *description: Any) -> Tensor:
    *kernel, backend = description
    return select(backend, "mmd", points.device.type).witness(_witness_call(points, samples, weights, *kernel))


def _witness_backward(grad: Tensor, points: Tensor, samples: Tensor, weights: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *kernel, needs, backend = rest
    forward = _witness_call(points, samples, weights, *kernel)
    call = WitnessBackward(forward, grad.contiguous(), WitnessInputs(*needs))
    return select(backend, "mmd", points.device.type).witness_backward(call)


def _witness_backward_fake(
    grad: Tensor, points: Tensor, samples: Tensor, weights: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    s, _, s_floats, *_, needs, _ = rest
    count = torch.Size([len(s_floats) if s is None else s.shape[0]])
    shapes = (points.shape, samples.shape, weights.shape, count, count)
    return tuple(points.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needs, strict=True))


def _witness_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.description = inputs[5:]


def _witness_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *description, backend = ctx.description
    needs = list(ctx.needs_input_grad[:5])
    found = operators.witness_backward(grad, *ctx.saved_tensors, *description, needs, backend)
    return tuple(g if need else None for g, need in zip(found, needs, strict=True))


define(
    f"witness(Tensor points, Tensor samples, Tensor weights, {KERNEL_SCHEMA}, str backend) -> Tensor",
    _witness,
    lambda points, *_: points.new_empty(points.shape[0]),
    _witness_setup,
    _witness_gradient,
)
define(
    f"witness_backward(Tensor grad, Tensor points, Tensor samples, Tensor weights, {KERNEL_SCHEMA}, bool[] needs, "
    "str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _witness_backward,
    _witness_backward_fake,
)
