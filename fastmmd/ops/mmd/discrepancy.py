"""`mmd2` and `witness` (Gretton et al. 2012, "A kernel two-sample test")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...backends import current
from ...device_cache import tracing
from ..arguments import (
    DEFAULT_BANDWIDTHS,
    Estimator,
    Floats,
    KernelName,
    batched,
    check_estimator,
    check_number,
    check_points,
    compute_dtype,
    kernel_arguments,
    normalized,
    sample_weights,
    values_are_read,
)
from ..dispatch import needs_grad
from ..labels import Absent, check_classes, class_tensor, into_classes, unknown_labels
from ..shards import Group, Shards, shards_of
from .fixed import FixedSample, opened
from .operators import flattened, mmd2_members, witness_values
from .sharded import sharded_mmd2, side_of


def mmd2(
    x: Tensor,
    y: Tensor | FixedSample,
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
    absent: Absent = "raise",
    group: Group = None,
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
        y: [..., M, D] points, M != N allowed; leading dimensions broadcast. Or a `FixedSample`, which brings its own
            bandwidths, kernel, weights and alpha and takes no labels.
        bandwidths: standard deviations s, S positive floats or a differentiable tensor, [S] or 0-d for a single one. A
            variance v is the bandwidth v**0.5; exp(-gamma r) has the bandwidth (0.5 / gamma)**0.5.
        kernel: one of the names above; the S kernels are summed.
        estimator: "biased" (V-statistic, never negative in exact arithmetic) or "unbiased" (U-statistic, leaves out
            the diagonals of k(x, x') and k(y, y'); may be negative and is not clamped; needs two points on each side;
            weighted: sum_{i != j} w_i w_j k_ij / (1 - sum w_i^2)).
        kernel_weights: S floats or a differentiable tensor, [S] or 0-d; ones by default.
        x_weights, y_weights: [..., N] and [..., M], normalized to sum 1 here; uniform by default.
        alpha: the exponent of "rational_quadratic".
        x_labels, y_labels: [N] and [M] int64, both or neither, for x [N, D] and y [M, D]: the class of each point, or
            -1 for an unlabeled point, which counts in the unconditional term alone, or nowhere without one. Weights of
            points are normalized within each class, and over all points in the unconditional term.
        class_weights: pi, a number >= 0 for each class, used as given; required with labels.
        unconditional_weight: a number >= 0; at 0 that term is not computed.
        absent: what becomes of a class that one sample has no point of (or, with "unbiased", a single one): "raise", or
            "skip", by which it contributes 0, value and gradient, and the weights of the others stay as given: the sum
            has a term less and is not normalized again. A class without points in both contributes 0 in any case.
        group: processes of which each has a shard of x [N, D] and of y [M, D], of any size, 0 included: a ProcessGroup
            of `torch.distributed`, or `fastmmd.Shards`, which says more. The value is that of all points, on every
            process. The gradients in x, y and their weights are its gradients in the points of this process times the
            number of processes, as DistributedDataParallel and its like take the mean of parameters' gradients.
            backward() does not communicate. A FixedSample cannot be spread.

    Returns:
        [...] tensor. Differentiable once in x, y, both weights and tensor-valued bandwidths and kernel_weights. The
        non-smooth kernels have gradient zero where two points coincide. Where x and y are one tensor, or views of the
        same numbers, with the same weights and labels, the biased result and its gradient are exactly 0; the unbiased
        result is not, as only k(x, x') and k(y, y') lose their diagonals.

    Raises:
        TypeError: a wrong type, dtype or layout, or float32 mixed with float64.
        ValueError: a wrong shape, an empty sample, a bandwidth that is not positive and finite, mixed devices, an
            unknown kernel or estimator, weights of points that sum to 0, an invalid label, an absent class. What only
            values of tensors show raises on the CPU alone: on other devices and under torch.compile they are not read,
            and there the result is NaN (for an infinite bandwidth, the limit). Settings that differ between the
            processes of a group.
    """
    shards, arguments = shards_of(group), (bandwidths, kernel, kernel_weights, alpha)
    classes = x_labels, y_labels, class_weights, unconditional_weight, absent
    if shards is not None and shards.count > 1:
        return _of_all(x, y, shards, estimator, arguments, (x_weights, y_weights), classes)
    return _of_one(x, y, estimator, arguments, (x_weights, y_weights), classes)


def witness(
    points: Tensor,
    x: Tensor,
    y: Tensor | FixedSample,
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
        points: [P, D]. x: [N, D]. y: [M, D], or a `FixedSample` of such. The others as in `mmd2`.

    Returns:
        [P] tensor, differentiable once in everything that `mmd2` is, and in points.

    Raises:
        TypeError, ValueError: as `mmd2`.
    """
    y, y_weights, fixed = opened(
        y, y_weights, bandwidths=bandwidths, kernel=kernel, kernel_weights=kernel_weights, alpha=alpha
    )
    check_points(rank=2, points=points, x=x, y=y)
    spec = kernel_arguments(bandwidths, kernel, kernel_weights, alpha, points) if fixed is None else fixed.spec
    s, w, numbers, family = flattened(spec)
    signed = torch.cat([_or_uniform("x", x_weights, x), -_or_uniform("y", y_weights, y)])
    dtype = compute_dtype(points)
    samples = torch.cat([x.to(dtype), y.to(dtype)])
    return witness_values(points.to(dtype), samples, signed, s, w, numbers, family, current())


KernelArguments = tuple[Floats, KernelName, Floats | None, float]  # bandwidths, kernel, kernel_weights, alpha
Weights = tuple[Tensor | None, Tensor | None]
# Labels of x and y, class_weights, unconditional_weight, absent.
Classes = tuple[Tensor | None, Tensor | None, Sequence[float] | None, float, Absent]


def _of_one(
    x: Tensor,
    y: Tensor | FixedSample,
    estimator: Estimator,
    kernel: KernelArguments,
    weights: Weights,
    classes: Classes,
) -> Tensor:
    """`mmd2` of the points of this process."""
    (x_weights, y_weights), (x_labels, y_labels, class_weights, unconditional_weight, absent) = weights, classes
    y, y_weights, fixed = opened(
        y, y_weights, bandwidths=kernel[0], kernel=kernel[1], kernel_weights=kernel[2], alpha=kernel[3],
        x_labels=x_labels, y_labels=y_labels, class_weights=class_weights, unconditional_weight=unconditional_weight,
    )  # fmt: skip
    check_points(x=x, y=y)
    unconditional_weight = _weight(unconditional_weight)
    judged = _judged(x, y, x_labels, absent, unconditional_weight)
    unbiased, batch = check_estimator(estimator, **judged), _broadcast_batch(x, y)
    spec = kernel_arguments(*kernel, x) if fixed is None else fixed.spec
    s, w, numbers, family = flattened(spec)
    wx = _flat(sample_weights("x_weights", x_weights, "x", x, batch))
    wy = _flat(sample_weights("y_weights", y_weights, "y", y, batch))
    xb, yb = batched(x, batch), batched(y, batch)
    pi, offsets = None, None
    if x_labels is not None or y_labels is not None or class_weights is not None or unconditional_weight != 0:
        x_labels, y_labels, pi = check_classes(x, y, x_labels, y_labels, class_weights, unconditional_weight, absent)
        (xb, wx), (yb, wy), offsets = into_classes((xb, wx, x_labels), (yb, wy, y_labels), len(pi), absent, unbiased)
    options, needs = [unbiased, fixed is not None], needs_grad(xb, yb, wx, wy, s, w)
    member_values = mmd2_members(xb, yb, wx, wy, s, w, offsets, numbers, family, options, needs, current())[0]
    if fixed is not None:
        member_values = member_values + fixed.self_term(unbiased).expand(batch).reshape(-1)
    elif not unbiased and _same(x, y) and _same(x_weights, y_weights) and _same(x_labels, y_labels):
        member_values = 0 * member_values.abs()  # what is left is rounding; NaN stays
    if pi is None or x_labels is None or y_labels is None:
        value = member_values.to(xb.dtype)
        return value.reshape(batch) if batch else value.squeeze(0)
    value = (class_tensor(pi, x_labels, y_labels) * member_values).sum()
    if unconditional_weight != 0:
        without = None, None, None, 0.0, absent
        value = value + unconditional_weight * _of_one(x, y, estimator, kernel, (x_weights, y_weights), without)
    return value.to(xb.dtype)


def _of_all(
    x: Tensor,
    y: Tensor | FixedSample,
    shards: Shards,
    estimator: Estimator,
    kernel: KernelArguments,
    weights: Weights,
    classes: Classes,
) -> Tensor:
    """`mmd2` of the points of all processes."""
    with shards.checking(x):
        if isinstance(y, FixedSample):
            raise TypeError("y: got a FixedSample beside group, expected a tensor: this process's shard of its points")
        check_points(2, empty=True, x=x, y=y)
        unbiased, spec = check_estimator(estimator), kernel_arguments(*kernel, x)
        x_weights = sample_weights("x_weights", weights[0], "x", x, zero=True)
        y_weights = sample_weights("y_weights", weights[1], "y", y, zero=True)
        x, y = x.to(compute_dtype(x)), y.to(compute_dtype(x))
        whole = side_of(x, x_weights), side_of(y, y_weights)
        x_labels, y_labels, class_weights, unconditional_weight, absent = classes
        unconditional_weight = _weight(unconditional_weight)
        pi = None
        if not (x_labels is None and y_labels is None and class_weights is None and unconditional_weight == 0):
            x_labels, y_labels, pi = check_classes(
                x, y, x_labels, y_labels, class_weights, unconditional_weight, absent
            )
            for name, labels in (("x_labels", x_labels), ("y_labels", y_labels)):
                if not values_are_read(x.device) and bool(unknown_labels(labels, len(pi)).any()):
                    raise ValueError(f"{name}: got a label that is no class and not -1")
    if pi is None or x_labels is None or y_labels is None:
        return sharded_mmd2(whole, spec, unbiased, shards).to(x.dtype)
    sides = side_of(x, x_weights, x_labels, len(pi)), side_of(y, y_weights, y_labels, len(pi))
    also = f"mmd2 with labels, unconditional_weight={unconditional_weight}"
    value = sharded_mmd2(sides, spec, unbiased, shards, pi, absent, also)
    if unconditional_weight != 0:
        value = value + unconditional_weight * sharded_mmd2(whole, spec, unbiased, shards)
    return value.to(x.dtype)


def _weight(value: float) -> float:
    """`unconditional_weight` as a float, which `check_classes` judges."""
    return value if isinstance(value, float) else check_number("unconditional_weight", value, zero=True)


def _judged(
    x: Tensor, y: Tensor, x_labels: Tensor | None, absent: str, unconditional_weight: float
) -> dict[str, Tensor]:
    """What the unbiased estimator needs two points of: nothing where there are classes alone and small ones skipped."""
    skips = x_labels is not None and isinstance(absent, str) and absent == "skip" and unconditional_weight == 0
    return {} if skips else {"x": x, "y": y}


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


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether both are one tensor, or views of the same numbers of one storage; or None."""
    if a is b:
        return True
    if a is None or b is None or tracing() or a.device.type == "meta":
        return False
    try:
        if a.data_ptr() != b.data_ptr():
            return False
    except RuntimeError:  # a batch of torch.vmap has no storage of its own
        return False
    return a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride() and a.is_neg() == b.is_neg()
