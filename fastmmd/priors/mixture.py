"""Gaussian priors and mixtures of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.arguments import check_int
from ..ops.closed_form import KernelMeans
from ..ops.device_cache import DeviceCache
from .base import F64, Vector, positive, vector
from .closed_form import ClosedFormPrior


@dataclass(frozen=True)
class Components:
    """A Gaussian mixture as eigen-decompositions, in float64: what the closed form of the kernel means needs.

    weights [K] (sum 1), means [K, D], eigenvalues [K, D], eigenvectors [K, D, D] (columns) or None for axis-aligned.
    """

    weights: Tensor
    means: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor | None

    def to(self, device: torch.device) -> Components:
        """The same on another device."""
        parts = (self.weights, self.means, self.eigenvalues, self.eigenvectors)
        return Components(*(None if part is None else part.to(device) for part in parts))  # type: ignore[arg-type]

    def first(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviations [D] of the first component, the latter in its own axes."""
        return self.means[0].to(device), self.eigenvalues[0].sqrt().to(device)

    def differences(self) -> Components:
        """The difference of two independent draws: a mixture of K^2, its means given in the components' own axes."""
        count, dim = self.means.shape
        vectors = torch.eye(dim, dtype=F64).expand(count, dim, dim) if self.eigenvectors is None else self.eigenvectors
        covariance = vectors * self.eigenvalues[:, None] @ vectors.mT
        values, rotation = torch.linalg.eigh(covariance[:, None] + covariance)
        offset = torch.einsum("kld,klde->kle", self.means[:, None] - self.means, rotation)
        return Components(
            (self.weights[:, None] * self.weights).flatten(), offset.flatten(0, 1), values.flatten(0, 1), None
        )


class MixturePrior(ClosedFormPrior):
    """What Gaussian and GaussianMixture share: components, per device, and sampling from them."""

    def __init__(self, components: Components) -> None:
        super().__init__(components.means.shape[1])
        differences = components.differences()
        self._components = DeviceCache(components.to)
        self._differences = DeviceCache(differences.to)
        self._first = DeviceCache(components.first)

    def components(self, device: torch.device | None = None) -> Components:
        """The components in float64, on the CPU by default."""
        return self._components.get(torch.device("cpu") if device is None else device)

    def differences(self, device: torch.device | None = None) -> Components:
        """`Components.differences` of the prior, on the CPU by default."""
        return self._differences.get(torch.device("cpu") if device is None else device)

    def _kernel_means(self, bandwidths: Tensor, kernel_weights: Tensor, device: torch.device) -> KernelMeans:
        def exponents(variance: Tensor) -> tuple[Tensor, Tensor]:
            """E exp(-|a|^2 / (2 s^2)) = exp(base + offset^2 @ rate) for a ~ N(offset, diag(variance)), [K, D] both."""
            wide = variance[:, :, None]  # [K, D, S]
            return -0.5 * torch.log1p(wide / bandwidths**2).sum(1, keepdim=True), -0.5 / (wide + bandwidths**2)

        components, pairs = self.components(device), self.differences(device)
        base, rate = exponents(pairs.eigenvalues)
        u = torch.expm1(torch.baddbmm(base, pairs.means.square()[:, None], rate))
        own = pairs.weights @ (u @ kernel_weights)
        base, rate = exponents(components.eigenvalues)
        return _MixtureMeans(
            components.means[:, None],
            components.eigenvectors,
            base,
            rate,
            components.weights,
            kernel_weights,
            own.sum(),
        )

    def sample(
        self,
        count: int,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Independent draws: [count, dim]; see `Prior.sample`."""
        z = torch.randn(count, self.dim, generator=generator, device=device, dtype=dtype)
        if labels is not None:
            z = self._known(z, labels)
        components = self.components(z.device)
        means, vectors = components.means, components.eigenvectors
        if len(means) == 1:
            mean, scale = self._first.get(z.device)
            if vectors is None:
                return torch.addcmul(mean.to(z), z, scale.to(z))
            return mean.to(z) + (z * scale.to(z)) @ vectors[0].T.to(z)
        scales = components.eigenvalues.sqrt()
        u = torch.rand(count, generator=generator, device=device, dtype=dtype)
        chosen = torch.searchsorted(components.weights.cumsum(0).to(z), u, right=True).clamp_(max=len(means) - 1)
        if labels is not None:
            chosen = torch.where(labels < 0, chosen, labels.clamp(max=len(means) - 1))
        z = z * scales.to(z)[chosen]
        return means.to(z)[chosen] + (z if vectors is None else torch.einsum("nij,nj->ni", vectors.to(z)[chosen], z))


@dataclass(frozen=True)
class _MixtureMeans:
    """A Gaussian mixture and S kernels, ready for points: the exponents are base + offset^2 @ rate."""

    means: Tensor  # [K, 1, D]
    eigenvectors: Tensor | None  # [K, D, D]
    base: Tensor  # [K, 1, S]
    rate: Tensor  # [K, D, S]
    weights: Tensor  # [K]
    kernel_weights: Tensor  # [S]
    own: Tensor  # [], E u(y, y')

    def cross(self, x: Tensor) -> Tensor:
        """E_y u(x_i, y): [N, D] -> [N]."""
        offset = x - self.means
        if self.eigenvectors is not None:
            offset = offset @ self.eigenvectors
        log = torch.baddbmm(self.base, offset.square(), self.rate)
        # The derivative of expm1 is computed as 1 + expm1, which rounds where the kernel is small.
        u = torch.where(log < -1, log.exp() - 1, log.clamp(min=-1).expm1())
        return self.weights @ (u @ self.kernel_weights)


class Gaussian(MixturePrior):
    """N(mean, covariance) with a scalar or per-dimension std, or a full covariance.

    Args:
        dim: dimension D.
        std: standard deviation, a positive number or [D]; 1 by default.
        mean: [D], zero by default.
        covariance: [D, D] symmetric positive definite, in place of std.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    def __init__(
        self,
        dim: int,
        std: float | Vector | None = None,
        mean: Vector | None = None,
        covariance: Sequence[Sequence[float]] | Tensor | None = None,
    ) -> None:
        check_int("dim", dim)
        self.mean = vector("mean", 0.0 if mean is None else mean, dim)
        if covariance is None:
            self.std = positive("std", vector("std", 1.0 if std is None else std, dim))
            variances, vectors = self.std.square()[None], None
        elif std is not None:
            raise ValueError("std: give std or covariance, not both")
        else:
            values, axes = _eigen("covariance", covariance, dim)
            self.std = torch.as_tensor(covariance, dtype=F64).diagonal().sqrt()
            variances, vectors = values[None], axes[None]
        super().__init__(Components(torch.ones(1, dtype=F64), self.mean[None], variances, vectors))


class GaussianMixture(MixturePrior):
    """A mixture of K Gaussians, by default of ten elongated ones on a ring in the plane (AAE paper, figure 3).

    Component i belongs to class i: `num_classes` is K.

    Args:
        weights: [K] positive, normalized here; uniform by default.
        means: [K, D].
        covariances: [K, D, D], symmetric positive definite.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    def __init__(
        self,
        weights: Vector | None = None,
        means: Sequence[Sequence[float]] | Tensor | None = None,
        covariances: Sequence[Sequence[Sequence[float]]] | Tensor | None = None,
    ) -> None:
        if (means is None) != (covariances is None):
            raise ValueError("means: give means and covariances together, or neither for the ring of ten")
        if means is None or covariances is None:
            means, covariances = _ring(10)
        mu, covariance = torch.as_tensor(means, dtype=F64), torch.as_tensor(covariances, dtype=F64)
        if mu.ndim != 2 or mu.numel() == 0:
            raise ValueError(f"means: got shape {list(mu.shape)}, expected [K, D]")
        if not bool(mu.isfinite().all()):
            raise ValueError(f"means: got {mu.tolist()}, expected finite numbers")
        count, dim = mu.shape
        if covariance.shape != (count, dim, dim):
            raise ValueError(f"covariances: got shape {list(covariance.shape)}, expected {[count, dim, dim]}")
        share = positive("weights", vector("weights", 1.0 if weights is None else weights, count))
        values, vectors = zip(*[_eigen("covariances", part, dim) for part in covariance], strict=True)
        super().__init__(Components(share / share.sum(), mu, torch.stack(values), torch.stack(vectors)))
        self.num_classes = count


def _ring(count: int) -> tuple[Tensor, Tensor]:
    """Components on a ring of radius 4, elongated along the radius: std 1 outward, 0.2 across."""
    angle = torch.arange(count, dtype=F64) * (2 * math.pi / count)
    outward = torch.stack([angle.cos(), angle.sin()], 1)
    across = torch.stack([-angle.sin(), angle.cos()], 1)
    covariances = 1.0**2 * outward[:, :, None] * outward[:, None] + 0.2**2 * across[:, :, None] * across[:, None]
    return 4 * outward, covariances


def _eigen(name: str, covariance: Sequence[Sequence[float]] | Tensor, dim: int) -> tuple[Tensor, Tensor]:
    matrix = torch.as_tensor(covariance, dtype=F64, device="cpu").detach()
    if matrix.shape != (dim, dim):
        raise ValueError(f"{name}: got shape {list(matrix.shape)}, expected {[dim, dim]}")
    if not bool(matrix.isfinite().all()) or not torch.allclose(matrix, matrix.T):
        raise ValueError(f"{name}: got {matrix.tolist()}, expected a finite symmetric matrix")
    values, vectors = torch.linalg.eigh(matrix)
    if not bool((values > 0).all()):
        raise ValueError(f"{name}: got eigenvalues {values.tolist()}, expected a positive definite matrix")
    return values, vectors
