"""MMD between a sample and a prior in closed form: no prior samples, no sampling noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor

from ..backends import current
from ..kernels import Kernel
from .arguments import (
    DEFAULT_BANDWIDTHS,
    Estimator,
    Floats,
    batched,
    check_estimator,
    check_points,
    compute_dtype,
    kernel_arguments,
    normalized,
    sample_weights,
)
from .dispatch import needs_grad
from .mmd.operators import flattened, mmd2_members
from .mmd.sharded import sharded_mmd2, side_of
from .shards import Group, Shards, shards_of

F64 = torch.float64


class KernelMeans(Protocol):
    """Expectations of u = k - k(0) over draws y, y' of a prior, k(x, y) = sum_s w_s exp(-|x - y|^2 / (2 s^2))."""

    @property
    def own(self) -> Tensor:
        """E u(y, y'): 0-d, float64."""

    def cross(self, x: Tensor) -> Tensor:
        """E_y u(x_i, y), the kernel mean embedding at points: [N, D] float64 -> [N] float64, differentiable."""


class EmbeddedPrior(Protocol):
    """What `mmd2_to_prior` needs of a prior."""

    @property
    def dim(self) -> int:
        """Dimension D."""

    def kernel_means(
        self,
        bandwidths: tuple[float, ...] | Tensor,
        kernel_weights: tuple[float, ...] | Tensor,
        device: torch.device,
    ) -> KernelMeans:
        """The expectations for S Gaussian kernels, differentiable in bandwidths and weights that are [S] tensors."""


def mmd2_to_prior(
    x: Tensor,
    prior: EmbeddedPrior,
    bandwidths: Floats = DEFAULT_BANDWIDTHS,
    *,
    estimator: Estimator = "biased",
    kernel_weights: Floats | None = None,
    x_weights: Tensor | None = None,
    group: Group = None,
) -> Tensor:
    """Squared MMD between a sample and a prior, Gaussian kernels, the prior's expectations in closed form.

    MMD^2 = mean k(x, x') - 2 mean_i E_y k(x_i, y) + E k(y, y'). For a Gaussian component N(m, C) and bandwidth s,
    E_y k(x, y) = |I + C / s^2|^(-1/2) exp(-(x - m)^T (C + s^2 I)^-1 (x - m) / 2); for a uniform box, products of error
    functions. Each term is evaluated as k - k(0) in float64 (expm1), where the constants cancel exactly.

    Args:
        x: [..., N, D] points.
        prior: `priors.Gaussian`, `priors.GaussianMixture` or `priors.Uniform` of dimension D, or any object with `dim`
            and `kernel_means` as in `ops.closed_form.EmbeddedPrior`.
        bandwidths, estimator, kernel_weights, x_weights: as in `mmd2`; the estimator applies only to the term of x.
        group: processes of which each has a shard of x [N, D], as in `mmd2`; the prior is the same on all.

    Returns:
        [...] tensor, differentiable once in x, x_weights and tensor-valued bandwidths and kernel_weights.

    Raises:
        TypeError, ValueError: as `mmd2`; a prior without a closed form (sample it and use `mmd2`).
    """
    shards = shards_of(group)
    with nullcontext() if shards is None else shards.checking(x):
        kernel_means = _checked(x, prior, sharded=shards is not None)
    if shards is not None:
        return _of_all(x, kernel_means, bandwidths, check_estimator(estimator), kernel_weights, x_weights, shards)
    unbiased = check_estimator(estimator, x=x)
    batch, n = x.shape[:-2], x.shape[-2]
    kernel = kernel_arguments(bandwidths, "gaussian", kernel_weights, 1.0, x)
    weights = sample_weights("x_weights", x_weights, "x", x)
    weights = None if weights is None else weights.reshape(-1, n)
    xb = batched(x, batch)
    if xb.dtype == torch.float32:
        kernel = _as_float32(kernel)
    s, w, numbers, family = flattened(kernel)
    needs = needs_grad(xb, None, weights, None, s, w)
    options = [unbiased, False]
    self_term = mmd2_members(xb, None, weights, None, s, w, None, numbers, family, options, needs, current())[0]
    means = kernel_means(kernel.bandwidths, kernel.weights, x.device)
    u = means.cross(xb.flatten(0, 1).to(F64)).view(-1, n)  # in float64, which autocast leaves alone
    mean = u.mean(-1) if weights is None else (u * normalized(weights.to(F64))).sum(-1)
    value = torch.add(self_term + means.own, mean, alpha=-2).to(xb.dtype)
    return value.reshape(batch) if batch else value.squeeze(0)


def _checked(x: Tensor, prior: EmbeddedPrior, sharded: bool) -> Callable[..., KernelMeans]:
    """The prior's method, for points of its dimension."""
    check_points(2 if sharded else None, empty=sharded, x=x)
    kernel_means: Callable[..., KernelMeans] | None = getattr(prior, "kernel_means", None)
    if kernel_means is None:
        raise TypeError(
            f"prior: got {type(prior).__name__}, expected Gaussian, GaussianMixture or Uniform, which have a closed "
            "form; for another prior use mmd2(x, prior.sample(count))"
        )
    if prior.dim != x.shape[-1]:
        raise ValueError(f"prior: got dimension {prior.dim}, expected {x.shape[-1]} as x of shape {list(x.shape)}")
    return kernel_means


def _of_all(
    x: Tensor,
    kernel_means: Callable[..., KernelMeans],
    bandwidths: Floats,
    unbiased: bool,
    kernel_weights: Floats | None,
    x_weights: Tensor | None,
    shards: Shards,
) -> Tensor:
    """`mmd2_to_prior` of the points of all processes."""
    with shards.checking(x):
        kernel = kernel_arguments(bandwidths, "gaussian", kernel_weights, 1.0, x)
        weights = sample_weights("x_weights", x_weights, "x", x, zero=True)
    dtype = compute_dtype(x)
    kernel = _as_float32(kernel) if dtype == torch.float32 else kernel
    own = sharded_mmd2([side_of(x.to(dtype), weights)], kernel, unbiased, shards, also="mmd2_to_prior")
    means = kernel_means(kernel.bandwidths, kernel.weights, x.device)
    masses = x.new_ones(len(x), dtype=F64) if weights is None else weights.to(F64)
    cross = (means.cross(x.to(F64)) * masses).sum() if len(x) else masses.sum()
    # The prior's own term, and its gradient, is the same on all processes: each has its share of the gradient.
    of_prior = means.own.detach() + shards.scaled(means.own - means.own.detach()) / shards.count
    return (own + of_prior - 2 * shards.mean(cross, masses.sum())).to(dtype)


def _as_float32(kernel: Kernel) -> Kernel:
    """The nearest bandwidths whose -1 / (2 s^2), and the nearest weights, are float32 numbers; tensors as they are.

    Kernels compute with such numbers. Rounded in the term of x alone, they would not cancel against the other terms:
    MMD^2 would be off by 2^-25 of a kernel mean, which is many times itself near convergence. Rounded in every term,
    it is off by 2^-23 of itself.
    """
    s, w = kernel.bandwidths, kernel.weights
    if not isinstance(s, Tensor):
        s = tuple([(0.5 / _round(0.5 / width**2)) ** 0.5 if 1e-18 < width < 1e18 else width for width in s])
    if not isinstance(w, Tensor):
        w = tuple([_round(weight) for weight in w])
    return Kernel(kernel.family, s, w, kernel.alpha)


def _round(value: float) -> float:
    """To 24 bits (Veltkamp 1968)."""
    multiple = (2.0**29 + 1) * value
    rounded = multiple - (multiple - value)
    return rounded if math.isfinite(rounded) and rounded != 0 else value
