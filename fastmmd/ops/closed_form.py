"""MMD between a sample and a prior in closed form: no prior samples, no sampling noise."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import reduce
from operator import add

import torch
from torch import Tensor

from ..backends import current
from ..priors import MixturePrior, Prior, Uniform
from .arguments import (
    DEFAULT_BANDWIDTHS,
    Floats,
    batched,
    check_points,
    kernel_arguments,
    normalized,
    reject_unknown,
    sample_weights,
)
from .mmd import check_estimator
from .registration import needs_grad

F64 = torch.float64
Members = list[tuple[float | Tensor, float | Tensor]]  # (bandwidth, weight) of each kernel


def mmd2_to_prior(
    x: Tensor,
    prior: Prior,
    bandwidths: Floats = DEFAULT_BANDWIDTHS,
    *,
    estimator: str = "biased",
    kernel_weights: Floats | None = None,
    x_weights: Tensor | None = None,
    **unknown: object,
) -> Tensor:
    """Squared MMD between a sample and a prior, Gaussian kernels, the prior's expectations in closed form.

    MMD^2 = mean k(x, x') - 2 mean_i E_y k(x_i, y) + E k(y, y'). For a Gaussian component N(m, C) and bandwidth s,
    E_y k(x, y) = |I + C / s^2|^(-1/2) exp(-(x - m)^T (C + s^2 I)^-1 (x - m) / 2); for a uniform box, products of error
    functions. Each term is evaluated as k - k(0) in float64 (expm1), where the constants cancel exactly.

    Args:
        x: [..., N, D] points.
        prior: `priors.Gaussian`, `priors.GaussianMixture` or `priors.Uniform` of dimension D.
        bandwidths, estimator, kernel_weights, x_weights: as in `mmd2`; the estimator concerns the term of x.

    Returns:
        [...] tensor, differentiable once in x, x_weights and tensor-valued bandwidths and kernel_weights.

    Raises:
        TypeError, ValueError: as `mmd2`; a prior without a closed form (sample it and use `mmd2`).
    """
    reject_unknown(unknown)
    check_points(x=x)
    if not isinstance(prior, (MixturePrior, Uniform)):
        raise TypeError(
            f"prior: got {type(prior).__name__}, expected Gaussian, GaussianMixture or Uniform, which have a closed "
            "form; for another prior use mmd2(x, prior.sample(count))"
        )
    if prior.dim != x.shape[-1]:
        raise ValueError(f"prior: got dimension {prior.dim}, expected {x.shape[-1]} as x of shape {list(x.shape)}")
    unbiased = check_estimator(estimator, x=x)
    batch, n = x.shape[:-2], x.shape[-2]
    s, w, s_floats, w_floats = kernel_arguments(bandwidths, "gaussian", kernel_weights, 1.0, x)
    weights = sample_weights("x_weights", x_weights, "x", x)
    weights = None if weights is None else weights.reshape(-1, n)
    xb = batched(x, batch)
    needs = needs_grad(xb, None, weights, None, s, w)
    self_term = torch.ops.fastmmd.mmd2(
        xb, None, weights, None, s, w, s_floats, w_floats, "gaussian", 1.0, unbiased, needs, current()
    )[0]
    scales, shares = (s_floats if s is None else s.to(F64)), (w_floats if w is None else w.to(F64))
    members: Members = list(zip(scales, shares, strict=True))
    # All in float64, which autocast leaves alone.
    if isinstance(prior, Uniform):
        cross, prior_term = _uniform_terms(xb, prior, members)
    else:
        cross, prior_term = _mixture_terms(xb, prior, members)
    mean = cross.mean(-1) if weights is None else (cross * normalized(weights.to(F64))).sum(-1)
    mmd: Tensor = self_term - 2 * mean + prior_term
    return mmd.to(xb.dtype).reshape(batch)


def _mixture_terms(x: Tensor, prior: MixturePrior, members: Members) -> tuple[Tensor, Tensor]:
    """E_y u(x_i, y) [B, N] and E u(y, y') [] for a Gaussian mixture, float64."""
    components, pairs = prior.components(x.device), prior.differences(x.device)
    offset = x.to(F64)[..., None, :] - components.means  # [B, N, K, D]
    if components.eigenvectors is not None:
        offset = torch.einsum("bnkd,kde->bnke", offset, components.eigenvectors)
    offset2 = offset.square()
    cross = _weighted((w, components.weights * _expected_u(offset2, components.eigenvalues, s)) for s, w in members)
    own = _weighted((w, pairs.weights * _expected_u(pairs.means.square(), pairs.eigenvalues, s)) for s, w in members)
    return cross.sum(-1), own.sum()


def _expected_u(offset2: Tensor, variance: Tensor, s: float | Tensor) -> Tensor:
    """E exp(-|a|^2 / (2 s^2)) - 1 for a ~ N(offset, diag(variance)): [..., D], [..., D] -> [...]."""
    return torch.expm1(-0.5 * (torch.log1p(variance / s**2) + offset2 / (variance + s**2)).sum(-1))


def _uniform_terms(x: Tensor, prior: Uniform, members: Members) -> tuple[Tensor, Tensor]:
    """E_y u(x_i, y) [B, N] and E u(y, y') [] for a uniform box, float64: products over the dimensions."""
    low, high = prior.bounds(x.device)
    width, z = high - low, x.to(F64)

    def cross(s: float | Tensor) -> Tensor:
        c = 1 / (math.sqrt(2) * s)
        factor = math.sqrt(math.pi) / 2 / c * (torch.erf((high - z) * c) - torch.erf((low - z) * c)) / width
        return factor.prod(-1) - 1

    def pairs(s: float | Tensor) -> Tensor:
        t = s / width
        t = math.sqrt(2 * math.pi) * t * torch.erf(1 / (math.sqrt(2) * t)) + 2 * t**2 * torch.expm1(-0.5 / t**2)
        return t.prod(-1) - 1

    return _weighted((w, cross(s)) for s, w in members), _weighted((w, pairs(s)) for s, w in members)


def _weighted(terms: Iterable[tuple[float | Tensor, Tensor]]) -> Tensor:
    return reduce(add, (weight * term for weight, term in terms))
