"""The adversary of the doubly stochastic adversarial autoencoder: what it sees, and its step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...backends import current, select
from ...backends.calls import FourierAscent, FourierDiscrepancy, FourierDiscrepancyBackward
from ..arguments import check_number, compute_dtype, reject_unsupported
from ..dispatch import define, needs_grad
from ..shards import Group, Shards, shards_of
from .features import FourierFeatures, check_features, empty_gradients, flattened, restored
from .sums import agree, fourier_sum


def fourier_discrepancy(
    codes: Tensor,
    draws: Tensor,
    alpha: Tensor,
    features: FourierFeatures,
    *,
    group: Group = None,
) -> Tensor:
    """How far a random-feature adversary tells codes from draws of the prior: delta = sum_k alpha_k |zeta_k|^2.

    zeta = mean phi(draws) - mean phi(codes), and |zeta_k|^2 is over the cosine and the sine of frequency k. It is the
    first-order form of the adversary of the DS-AAE (Azarafrooz 2018, arXiv:1807.07603), f(z) = sum_k alpha_k zeta_k
    phi_k(z), at mean f(draws) - mean f(codes); the feature expansion is that of doubly stochastic gradients (Dai et al.
    2014, arXiv:1407.5599). With alpha = 1 delta estimates the biased `mmd2` of the features' kernel. The encoder
    descends delta, and `fourier_ascent` moves alpha to where codes and draws differ most.

    delta does not depend on the origin, but in float32 its features do: each is off by about 1e-7 |z| / bandwidth.
    Codes and draws that are more than 100 bandwidths from the origin are better centered, both by the same point.

    No [N, count] matrix exists. On CUDA: two kernel launches, and one backward, or two where features are shared out
    between blocks (thousands of codes or features, or more than 16 dimensions).

    Args:
        codes, draws: [M, D] and [N, D] points, D = features.dim; computed in float32, or float64 for float64.
        alpha: [count] weights of the frequencies.
        features: the description.
        group: processes of which each has a shard of codes and of draws, as in `mmd2`; alpha is the same on all.

    Returns:
        0-d tensor, differentiable once in codes and draws.

    Raises:
        TypeError, ValueError: naming the argument.
        RuntimeError: in backward, where alpha needs a gradient.
    """
    if (shards := shards_of(group)) is not None:
        if alpha.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("alpha: fourier_discrepancy is differentiable in codes and draws only")
        zeta = _difference_of_all(codes, draws, alpha, features, shards)
        return (alpha.to(zeta).repeat(2) * zeta.square()).sum().to(compute_dtype(codes))
    check_clouds(codes, draws, alpha, features)
    dtype = compute_dtype(codes)
    needs_slopes = any(needs_grad(codes, draws))
    codes, draws, alpha = codes.to(dtype), draws.to(dtype), alpha.to(dtype)
    flat = flattened(features, codes.device)
    return discrepancy_and_slopes(codes, draws, alpha, *flat, needs_slopes, current())[0]


@torch.no_grad()
def fourier_ascent(
    alpha: Tensor,
    codes: Tensor,
    draws: Tensor,
    features: FourierFeatures,
    learning_rate: float,
    *,
    group: Group = None,
) -> None:
    """The adversary's step beside `fourier_discrepancy`, in place: alpha moves towards where codes and draws differ.

    alpha <- (1 - learning_rate) alpha + learning_rate |zeta_k|^2 / mean_k |zeta_k|^2, the ascent of delta under the
    constraint that alpha has mean 1, which keeps it bounded (DS-AAE, arXiv:1807.07603). It is not
    differentiable. Far from the origin, center as for `fourier_discrepancy`. On CUDA: two kernel launches.

    Args:
        alpha: [count], of any floating dtype, changed in place; start with ones.
        codes, draws: [M, D] and [N, D] points, D = features.dim.
        features: the description.
        learning_rate: from 0 to 1.
        group: processes of which each has a shard of codes and of draws, as in `mmd2`; all alpha move alike.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    shards = shards_of(group)
    if shards is None:
        check_clouds(codes, draws, alpha, features)
    if check_number("learning_rate", learning_rate, zero=True) > 1:
        raise ValueError(f"learning_rate: got {learning_rate!r}, expected a number from 0 to 1")
    if shards is not None:
        squared = _difference_of_all(codes, draws, alpha, features, shards).square().view(2, -1).sum(0)
        mean = squared.mean().clamp(min=torch.finfo(torch.float32).tiny)
        alpha.copy_((1 - learning_rate) * alpha.to(squared) + learning_rate * squared / mean)
        return
    dtype = compute_dtype(codes)
    fits = alpha.dtype in (torch.float32, torch.float64) and alpha.is_contiguous()
    moved = alpha if fits else alpha.to(dtype, copy=True, memory_format=torch.contiguous_format)
    ascend(moved, codes.to(dtype), draws.to(dtype), *flattened(features, codes.device), float(learning_rate), current())
    if moved is not alpha:
        alpha.copy_(moved)


def check_clouds(
    codes: Tensor, draws: Tensor, alpha: Tensor, features: FourierFeatures, *, empty: bool = False
) -> None:
    """Two samples of the features' dimension, and a weight for each frequency."""
    check_features(features, rank=2, empty=empty, codes=codes, draws=draws)
    if not isinstance(alpha, Tensor) or not alpha.is_floating_point():
        given = alpha.dtype if isinstance(alpha, Tensor) else type(alpha).__name__
        raise TypeError(f"alpha: got {given}, expected a floating tensor of shape {[features.count]}")
    reject_unsupported("alpha", alpha)
    if alpha.shape != (features.count,):
        raise ValueError(f"alpha: got shape {list(alpha.shape)}, expected [{features.count}], one for each frequency")
    if alpha.device != codes.device:
        raise ValueError(f"alpha: got device {alpha.device}, expected {codes.device} as codes")


def _difference_of_all(
    codes: Tensor, draws: Tensor, alpha: Tensor, features: FourierFeatures, shards: Shards
) -> Tensor:
    """zeta = mean phi(draws) - mean phi(codes) over all processes: [2 * count] float64."""
    with shards.checking(codes):
        check_clouds(codes, draws, alpha, features, empty=True)
    agree(shards, "fourier_discrepancy", features, codes, None)
    counts = shards.total(torch.tensor([len(draws), len(codes)], dtype=torch.float64, device=codes.device)).tolist()
    for name, count in zip(("draws", "codes"), counts, strict=True):
        if count == 0:
            raise ValueError(f"{name}: got no point on all processes, expected at least one")
    dtype = compute_dtype(codes)
    points = torch.cat([draws.to(dtype), codes.to(dtype)])
    weights = torch.cat([
        points.new_full((len(cloud),), sign / count)
        for cloud, sign, count in zip((draws, codes), (1.0, -1.0), counts, strict=True)
    ])  # fmt: skip
    local = points.new_zeros(2 * features.count, dtype=torch.float64) + points[:0].sum()
    if len(points):
        local = fourier_sum(points[None], weights[None], *flattened(features, points.device), current())[0].double()
    return shards.total(local) + shards.scaled(local - local.detach())


# --- the operators ---


def _fourier_discrepancy(
    codes: Tensor,
    draws: Tensor,
    alpha: Tensor,
    key: Tensor,
    count: int,
    bandwidths: Sequence[float],
    kernel_weights: Sequence[float],
    needs_slopes: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    clouds = codes.contiguous(), draws.contiguous(), alpha.contiguous()
    call = FourierDiscrepancy(*clouds, restored(key, count, bandwidths, kernel_weights), needs_slopes)
    return select(backend, "fourier", codes.device).fourier_discrepancy(call)


def _fourier_discrepancy_backward(
    grad: Tensor,
    codes: Tensor,
    draws: Tensor,
    slopes: Tensor,
    key: Tensor,
    count: int,
    bandwidths: Sequence[float],
    kernel_weights: Sequence[float],
    needs: Sequence[bool],
    backend: str,
) -> tuple[Tensor, Tensor]:
    clouds = codes.contiguous(), draws.contiguous(), slopes.contiguous()
    features = restored(key, count, bandwidths, kernel_weights)
    call = FourierDiscrepancyBackward(*clouds, features, grad.contiguous(), *needs)
    return select(backend, "fourier", codes.device).fourier_discrepancy_backward(call)


def _fourier_ascent(
    alpha: Tensor,
    codes: Tensor,
    draws: Tensor,
    key: Tensor,
    count: int,
    bandwidths: Sequence[float],
    kernel_weights: Sequence[float],
    rate: float,
    backend: str,
) -> None:
    torch.autograd.graph.increment_version(alpha)
    features = restored(key, count, bandwidths, kernel_weights)
    call = FourierAscent(codes.contiguous(), draws.contiguous(), alpha, features, rate)
    select(backend, "fourier", codes.device).fourier_ascent(call)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    codes, draws, _, key, ctx.count, ctx.bandwidths, ctx.kernel_weights, _, ctx.backend = inputs
    ctx.save_for_backward(codes, draws, output[1], key)


def _gradients(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    codes, draws, slopes, key = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:2])
    if ctx.needs_input_grad[2]:
        raise RuntimeError("alpha: fourier_discrepancy is differentiable in codes and draws only")
    if slopes.numel() == 0:
        raise RuntimeError("the forward pass did not compute what the gradient in an input needs")
    features = key, ctx.count, ctx.bandwidths, ctx.kernel_weights
    gradients = discrepancy_backward(grad, codes, draws, slopes, *features, needs, ctx.backend)
    return [gradient if need else None for gradient, need in zip(gradients, needs, strict=True)]


discrepancy_and_slopes = define(
    _fourier_discrepancy,
    lambda codes, draws, alpha, key, count, bandwidths, kernel_weights, needs_slopes, backend: (
        codes.new_empty(()),
        codes.new_empty(2 * count if needs_slopes else 0),
    ),
    _setup,
    _gradients,
)
discrepancy_backward = define(
    _fourier_discrepancy_backward,
    lambda grad, codes, draws, slopes, *rest: empty_gradients(codes, draws, rest[-2]),
)
ascend = define(_fourier_ascent, lambda *_: None, mutates=("alpha",))
