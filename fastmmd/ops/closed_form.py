"""MMD between a sample and a prior in closed form: no prior samples, no sampling noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

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
from .device_cache import DeviceCache
from .mmd import check_estimator
from .registration import needs_grad

F64 = torch.float64


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
    if xb.dtype == torch.float32:
        s_floats, w_floats = _as_float32(s_floats, w_floats)
    needs = needs_grad(xb, None, weights, None, s, w)
    self_term = torch.ops.fastmmd.mmd2(
        xb, None, weights, None, s, w, s_floats, w_floats, "gaussian", 1.0, unbiased, needs, current()
    )[0]
    scales = _constants(tuple(s_floats)).get(x.device) if s is None else s.to(F64)
    shares = _constants(tuple(w_floats)).get(x.device) if w is None else w.to(F64)
    # All in float64, which autocast leaves alone.
    if isinstance(prior, Uniform):
        cross, prior_term = _uniform_terms(xb.to(F64), prior, scales, shares)
    else:
        cross, prior_term = _mixture_terms(xb.to(F64), prior, scales, shares)
    mean = cross.mean(-1) if weights is None else (cross * normalized(weights.to(F64))).sum(-1)
    mmd: Tensor = self_term - 2 * mean + prior_term
    return mmd.to(xb.dtype).reshape(batch)


def _as_float32(s: Sequence[float], w: Sequence[float]) -> tuple[list[float], list[float]]:
    """The nearest bandwidths whose -1 / (2 s^2), and the nearest weights, are float32 numbers.

    Kernels compute with such numbers. Rounded in the term of x alone, they would not cancel against the other terms:
    MMD^2 would be off by 2^-25 of a kernel mean, which is many times itself near convergence. Rounded in every term,
    it is off by 2^-23 of itself.
    """
    return [(0.5 / _round(0.5 / width**2)) ** 0.5 for width in s], [_round(weight) for weight in w]


def _round(value: float) -> float:
    """To 24 bits (Veltkamp 1968)."""
    multiple = (2.0**29 + 1) * value
    rounded = multiple - (multiple - value)
    return rounded if math.isfinite(rounded) and rounded != 0 else value


@lru_cache(maxsize=64)
def _constants(values: tuple[float, ...]) -> DeviceCache[Tensor]:
    return DeviceCache(lambda device: torch.tensor(values, dtype=F64, device=device))


def _mixture_terms(x: Tensor, prior: MixturePrior, s: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """E_y u(x_i, y) [B, N] and E u(y, y') [] for a Gaussian mixture; x [B, N, D] in float64."""
    components, pairs = prior.components(x.device), prior.differences(x.device)
    offset = x.flatten(0, 1) - components.means[:, None]  # [K, B N, D]
    if components.eigenvectors is not None:
        offset = offset @ components.eigenvectors
    cross = _expected_u(offset.square(), components.eigenvalues, components.weights, s, w)
    return cross.view(x.shape[:2]), _expected_u(pairs.means.square()[:, None], pairs.eigenvalues, pairs.weights, s, w)[
        0
    ]


def _expected_u(offset2: Tensor, variance: Tensor, weights: Tensor, s: Tensor, w: Tensor) -> Tensor:
    """sum_ks weights_k w_s (E exp(-|a|^2 / (2 s^2)) - 1) for a ~ N(offset_k, diag(variance_k)).

    [K, N, D], [K, D], [K], [S], [S] -> [N], in as few operations on [K, N, S] as there can be.
    """
    s2 = s.square()
    volume = torch.log1p(variance[:, :, None] / s2).sum(1, keepdim=True)  # [K, 1, S]
    exponent = torch.baddbmm(-0.5 * volume, offset2, -0.5 / (variance[:, :, None] + s2))
    return weights @ (torch.expm1(exponent) @ w)


def _uniform_terms(x: Tensor, prior: Uniform, s: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """E_y u(x_i, y) [B, N] and E u(y, y') [] for a uniform box: products over the dimensions; x in float64."""
    low, high = prior.bounds(x.device)
    width = (high - low)[:, None]  # [D, 1]
    c = 1 / (math.sqrt(2) * s)  # [S]
    upper, lower = (high - x)[..., None] * c, (low - x)[..., None] * c  # [B, N, D, S]
    factors = math.sqrt(math.pi) / 2 / c * (torch.erf(upper) - torch.erf(lower)) / width
    cross = (factors.prod(-2) - 1) @ w
    t = s / width  # [D, S]
    t = math.sqrt(2 * math.pi) * t * torch.erf(1 / (math.sqrt(2) * t)) + 2 * t**2 * torch.expm1(-0.5 / t**2)
    return cross, (t.prod(0) - 1) @ w
