"""Sums of features over points, and functions of features at points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...backends import current, select
from ...backends.calls import FourierFunction, FourierSum
from ..arguments import batched, check_same, compute_dtype, normalized, reject_unsupported, sample_weights
from ..dispatch import define
from ..shards import Group, Shards, shards_of
from .features import FourierFeatures, check_features, empty_gradients, flattened, restored


def fourier_mean(
    x: Tensor,
    features: FourierFeatures,
    *,
    weights: Tensor | None = None,
    group: Group = None,
) -> Tensor:
    """Mean feature vector of a sample, sum_i w_i phi(x_i), without an [N, count] matrix.

    |fourier_mean(x) - fourier_mean(y)|^2 estimates the biased mmd2(x, y) of the features' kernel. In float32 the angle
    W x of a feature is rounded: relative to its scale, it is off by about 1e-7 |x| / bandwidth, and by up to four
    times that for the largest of its frequencies. That is 1e-3 for data at 1e4 bandwidths from the origin. Center such
    data, x and y by the same point, or pass float64; the distance of the means does not depend on the origin.

    Args:
        x: [..., N, D] points, D = features.dim; float32 compute for half types, float64 for float64.
        features: the description; features are always scaled by their own count.
        weights: [..., N], normalized to sum 1 here; uniform by default.
        group: processes of which each has a shard of x [N, D], as in `mmd2`: the mean over all of them. What is made
            of it has to be the same on all processes, as its gradient is taken to be.

    Returns:
        [..., 2 * count] tensor, cosines first. Differentiable once in x and weights; the backward pass
        regenerates the frequencies.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if (shards := shards_of(group)) is not None:
        return _of_all(x, features, weights, shards)
    check_features(features, x=x)
    batch, n = x.shape[:-2], x.shape[-2]
    xb = batched(x, batch)
    w = sample_weights("weights", weights, "x", x)
    w = xb.new_full(xb.shape[:2], 1.0 / n) if w is None else normalized(w).reshape(-1, n)
    return fourier_sum(xb, w, *flattened(features, x.device), current()).reshape(*batch, 2 * features.count)


def _of_all(x: Tensor, features: FourierFeatures, weights: Tensor | None, shards: Shards) -> Tensor:
    """`fourier_mean` of the points of all processes."""
    with shards.checking(x):
        check_features(features, rank=2, empty=True, x=x)
        given = sample_weights("weights", weights, "x", x, zero=True)
    agree(shards, "fourier_mean", features, x, given)
    points = x.to(compute_dtype(x))
    masses = torch.ones_like(points[:, 0]) if given is None else given
    sums = points.new_zeros(2 * features.count) + points[:0].sum()  # differentiable all the same
    if len(x):
        sums = fourier_sum(points[None], masses[None], *flattened(features, x.device), current())[0]
    return shards.mean(sums.to(torch.float64), masses.to(torch.float64).sum()).to(points.dtype)


def agree(shards: Shards, what: str, features: FourierFeatures, x: Tensor, weights: Tensor | None) -> None:
    """The processes of a group make the same call; the seed and the start of features that are tensors are not read.

    Raises:
        ValueError: they do not.
    """
    key = [value if isinstance(value, int) else "a tensor" for value in (features.seed, features.start)]
    settings = (
        f"{what}, D={features.dim}, count={features.count}, bandwidths {features.bandwidths}, kernel_weights "
        f"{features.kernel_weights}, seed {key[0]}, start {key[1]}, {compute_dtype(x)}, "
        f"{'without' if weights is None else 'with'} weights of points"
    )
    shards.agree(settings, [], x.device)


def fourier_function(x: Tensor, coefficients: Tensor, features: FourierFeatures) -> Tensor:
    """The function f(x) = phi(x) . coefficients at each point (Rahimi and Recht 2008, random kitchen sinks).

    Features far from the origin are rounded as in `fourier_mean`: center the points before the coefficients are made.

    Args:
        x: [N, D] points, D = features.dim. coefficients: [2 * count], cosines first. features: the description.

    Returns:
        [N] tensor, differentiable once in x and coefficients.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    check_features(features, rank=2, x=x)
    if isinstance(coefficients, Tensor):
        reject_unsupported("coefficients", coefficients)
    if not isinstance(coefficients, Tensor) or coefficients.shape != (2 * features.count,):
        given = list(coefficients.shape) if isinstance(coefficients, Tensor) else type(coefficients).__name__
        raise ValueError(f"coefficients: got {given}, expected a tensor of shape [{2 * features.count}], 2 * count")
    if not coefficients.is_floating_point():
        raise TypeError(f"coefficients: got dtype {coefficients.dtype}, expected a floating one")
    check_same(x=x, coefficients=coefficients)
    xb, cb = (tensor.to(compute_dtype(x))[None] for tensor in (x, coefficients))
    return function_values(xb, cb, *flattened(features, x.device), current())[0]


# --- the operators ---


def _fourier_sum(
    x: Tensor,
    weights: Tensor,
    key: Tensor,
    count: int,
    bandwidths: Sequence[float],
    kernel_weights: Sequence[float],
    backend: str,
) -> Tensor:
    call = FourierSum(x.contiguous(), weights.contiguous(), restored(key, count, bandwidths, kernel_weights))
    return select(backend, "fourier", x.device).fourier_sum(call)


def _fourier_sum_backward(
    grad: Tensor,
    x: Tensor,
    weights: Tensor,
    key: Tensor,
    count: int,
    bandwidths: Sequence[float],
    kernel_weights: Sequence[float],
    needs: Sequence[bool],
    backend: str,
) -> tuple[Tensor, Tensor]:
    """sum_k grad_k phi_k is a function of the points: its value is the gradient in a weight."""
    features = restored(key, count, bandwidths, kernel_weights)
    call = FourierFunction(x.contiguous(), grad.contiguous(), features, needs_value=needs[1], needs_gradient=needs[0])
    value, gradient = select(backend, "fourier", x.device).fourier_function(call)
    return (gradient.mul_(weights[..., None]) if needs[0] else gradient), value


def _fourier_function(
    x: Tensor,
    coefficients: Tensor,
    key: Tensor,
    count: int,
    bandwidths: Sequence[float],
    kernel_weights: Sequence[float],
    backend: str,
) -> Tensor:
    features = restored(key, count, bandwidths, kernel_weights)
    call = FourierFunction(x.contiguous(), coefficients.contiguous(), features, needs_value=True, needs_gradient=False)
    return select(backend, "fourier", x.device).fourier_function(call)[0]


def _fourier_function_backward(
    grad: Tensor,
    x: Tensor,
    coefficients: Tensor,
    key: Tensor,
    count: int,
    bandwidths: Sequence[float],
    kernel_weights: Sequence[float],
    needs: Sequence[bool],
    backend: str,
) -> tuple[Tensor, Tensor]:
    features, module = restored(key, count, bandwidths, kernel_weights), select(backend, "fourier", x.device)
    points, of_x, of_coefficients = x.contiguous(), x.new_empty(0), x.new_empty(0)
    if needs[0]:
        call = FourierFunction(points, coefficients.contiguous(), features, needs_value=False, needs_gradient=True)
        of_x = module.fourier_function(call)[1].mul_(grad[..., None])
    if needs[1]:
        of_coefficients = module.fourier_sum(FourierSum(points, grad.contiguous(), features))
    return of_x, of_coefficients


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.count, ctx.bandwidths, ctx.kernel_weights, ctx.backend = inputs[3:]


def _sum_gradients(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    (x, weights, key), needs = ctx.saved_tensors, list(ctx.needs_input_grad[:2])
    features = key, ctx.count, ctx.bandwidths, ctx.kernel_weights
    gradients = fourier_sum_backward(grad, x, weights, *features, needs, ctx.backend)
    return [gradient if need else None for gradient, need in zip(gradients, needs, strict=True)]


def _function_gradients(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    (x, coefficients, key), needs = ctx.saved_tensors, list(ctx.needs_input_grad[:2])
    features = key, ctx.count, ctx.bandwidths, ctx.kernel_weights
    gradients = fourier_function_backward(grad, x, coefficients, *features, needs, ctx.backend)
    return [gradient if need else None for gradient, need in zip(gradients, needs, strict=True)]


fourier_sum = define(
    _fourier_sum, lambda x, weights, key, count, *_: x.new_empty(x.shape[0], 2 * count), _setup, _sum_gradients
)
fourier_sum_backward = define(
    _fourier_sum_backward, lambda grad, x, weights, *rest: empty_gradients(x, weights, rest[-2])
)
function_values = define(_fourier_function, lambda x, *_: x.new_empty(x.shape[:2]), _setup, _function_gradients)
fourier_function_backward = define(
    _fourier_function_backward, lambda grad, x, coefficients, *rest: empty_gradients(x, coefficients, rest[-2])
)
