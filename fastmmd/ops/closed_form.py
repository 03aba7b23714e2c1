"""MMD between a sample and a prior in closed form: no prior samples, no sampling noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

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
from .registration import needs_grad, operators

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
    self_term = operators.mmd2(
        xb, None, weights, None, s, w, s_floats, w_floats, "gaussian", 1.0, unbiased, needs, None, None, current()
    )[0]
    if s is None and w is None:
        terms = _kept_terms(prior, tuple(s_floats), tuple(w_floats)).get(x.device)
    else:
        scales = x.new_tensor(s_floats, dtype=F64) if s is None else s.to(F64)
        shares = x.new_tensor(w_floats, dtype=F64) if w is None else w.to(F64)
        terms = _prior_terms(prior, scales, shares, x.device)
    u = terms.cross(xb.flatten(0, 1).to(F64)).view(-1, n)  # in float64, which autocast leaves alone
    mean = u.mean(-1) if weights is None else (u * normalized(weights.to(F64))).sum(-1)
    mmd = torch.add(self_term + terms.own, mean, alpha=-2)
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


@dataclass(frozen=True)
class _MixtureTerms:
    """A Gaussian mixture and S kernels, ready for points: the exponents are base + offset^2 @ rate."""

    means: Tensor  # [K, 1, D]
    eigenvectors: Tensor | None  # [K, D, D]
    base: Tensor  # [K, 1, S]
    rate: Tensor  # [K, D, S]
    weights: Tensor  # [K]
    shares: Tensor  # [S]
    own: Tensor  # [], E u(y, y')

    def cross(self, x: Tensor) -> Tensor:
        """E_y u(x_i, y): [N, D] -> [N]."""
        offset = x - self.means
        if self.eigenvectors is not None:
            offset = offset @ self.eigenvectors
        return self.weights @ (torch.expm1(torch.baddbmm(self.base, offset.square(), self.rate)) @ self.shares)


def _mixture_terms(prior: MixturePrior, s: Tensor, w: Tensor, device: torch.device) -> _MixtureTerms:
    def exponents(variance: Tensor) -> tuple[Tensor, Tensor]:
        """E exp(-|a|^2 / (2 s^2)) = exp(base + offset^2 @ rate) for a ~ N(offset, diag(variance)); variance [K, D]."""
        wide = variance[:, :, None]  # [K, D, S]
        return -0.5 * torch.log1p(wide / s**2).sum(1, keepdim=True), -0.5 / (wide + s**2)

    components, pairs = prior.components(device), prior.differences(device)
    base, rate = exponents(pairs.eigenvalues)
    own = pairs.weights @ (torch.expm1(torch.baddbmm(base, pairs.means.square()[:, None], rate)) @ w)
    base, rate = exponents(components.eigenvalues)
    return _MixtureTerms(
        components.means[:, None], components.eigenvectors, base, rate, components.weights, w, own.sum()
    )


@dataclass(frozen=True)
class _UniformTerms:
    """A uniform box and S kernels, ready for points: products over the dimensions."""

    low: Tensor  # [D]
    high: Tensor  # [D]
    scales: Tensor  # [S]
    shares: Tensor  # [S]
    own: Tensor  # [], E u(y, y')

    def cross(self, x: Tensor) -> Tensor:
        """E_y u(x_i, y): [N, D] -> [N]."""
        c = 1 / (math.sqrt(2) * self.scales)
        upper, lower = (self.high - x)[..., None] * c, (self.low - x)[..., None] * c  # [N, D, S]
        mass = math.sqrt(math.pi) / 2 / (c * (self.high - self.low)[:, None])
        return (((torch.erf(upper) - torch.erf(lower)) * mass).prod(-2) - 1) @ self.shares


def _uniform_terms(prior: Uniform, s: Tensor, w: Tensor, device: torch.device) -> _UniformTerms:
    low, high = prior.bounds(device)
    t = s / (high - low)[:, None]  # [D, S]
    t = math.sqrt(2 * math.pi) * t * torch.erf(1 / (math.sqrt(2) * t)) + 2 * t**2 * torch.expm1(-0.5 / t**2)
    return _UniformTerms(low, high, s, w, (t.prod(0) - 1) @ w)


Terms = _MixtureTerms | _UniformTerms


def _prior_terms(prior: MixturePrior | Uniform, s: Tensor, w: Tensor, device: torch.device) -> Terms:
    if isinstance(prior, Uniform):
        return _uniform_terms(prior, s, w, device)
    return _mixture_terms(prior, s, w, device)


def _number_terms(prior: MixturePrior | Uniform, s: Sequence[float], w: Sequence[float], device: torch.device) -> Terms:
    scales, shares = (torch.tensor(values, dtype=F64, device=device) for values in (s, w))
    return _prior_terms(prior, scales, shares, device)


def _kept_terms(prior: MixturePrior | Uniform, s: tuple[float, ...], w: tuple[float, ...]) -> DeviceCache[Terms]:
    """For bandwidths and weights that are numbers: made once, and kept with the prior."""
    make = partial(_number_terms, prior, s, w)
    if torch.compiler.is_compiling():
        return DeviceCache(make)
    if len(prior.kept_terms) > 64:  # bandwidths on a schedule
        prior.kept_terms.clear()
    kept: DeviceCache[Terms] = prior.kept_terms.setdefault((s, w), DeviceCache(make))
    return kept
