"""Prior distributions of the code: what a generative autoencoder samples from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Vector = Sequence[float] | Tensor
F64 = torch.float64


@dataclass(frozen=True)
class Components:
    """A Gaussian mixture as eigen-decompositions, in float64: what the closed form of the kernel means needs.

    weights [K] (sum 1), means [K, D], eigenvalues [K, D], eigenvectors [K, D, D] (columns) or None for axis-aligned.
    """

    weights: Tensor
    means: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor | None


class Prior:
    """A distribution over codes of dimension `dim`; subclasses sample, and some have closed-form kernel means."""

    def __init__(self, dim: int) -> None:
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
            raise ValueError(f"dim: got {dim!r}, expected a positive int")
        self.dim = dim

    def sample(
        self,
        count: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Independent draws: [count, dim], float32 by default, from the given or the default generator."""
        raise NotImplementedError(f"{type(self).__name__} must implement sample()")


class Gaussian(Prior):
    """N(mean, covariance) with a scalar or per-dimension std, or a full covariance.

    Args:
        dim: dimension D.
        std: standard deviation, a positive number or [D].
        mean: [D], zero by default.
        covariance: [D, D] symmetric positive definite, in place of std.

    Raises:
        ValueError: naming the argument.
    """

    def __init__(
        self, dim: int, std: float | Vector = 1.0, mean: Vector | None = None, covariance: Tensor | None = None
    ) -> None:
        super().__init__(dim)
        self.mean = _vector("mean", 0.0 if mean is None else mean, dim)
        if covariance is None:
            self.std = _positive("std", _vector("std", std, dim))
            self._components = Components(
                torch.ones(1, dtype=F64), self.mean[None], self.std.square()[None], eigenvectors=None
            )
        else:
            values, vectors = _eigen("covariance", covariance, dim)
            self.std = torch.as_tensor(covariance, dtype=F64).diagonal().sqrt()
            self._components = Components(torch.ones(1, dtype=F64), self.mean[None], values[None], vectors[None])

    def components(self) -> Components:
        """This Gaussian as a mixture of one."""
        return self._components

    def sample(
        self,
        count: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Independent draws: [count, dim]."""
        z = torch.randn(count, self.dim, generator=generator, device=device, dtype=dtype)
        return _transform(z, self._components, 0)


class GaussianMixture(Prior):
    """A mixture of K Gaussians, by default of ten elongated ones on a ring in the plane (AAE paper, figure 3).

    Args:
        weights: [K] positive, normalised here; uniform by default.
        means: [K, D].
        covariances: [K, D, D], symmetric positive definite.

    Raises:
        ValueError: naming the argument.
    """

    def __init__(
        self,
        weights: Vector | None = None,
        means: Sequence[Sequence[float]] | Tensor | None = None,
        covariances: Tensor | None = None,
    ) -> None:
        if (means is None) != (covariances is None):
            raise ValueError("means: give means and covariances together, or neither for the ring of ten")
        if means is None or covariances is None:
            means, covariances = _ring(10)
        mu = torch.as_tensor(means, dtype=F64)
        if mu.ndim != 2:
            raise ValueError(f"means: got shape {list(mu.shape)}, expected [K, D]")
        count, dim = mu.shape
        super().__init__(dim)
        if tuple(covariances.shape) != (count, dim, dim):
            raise ValueError(f"covariances: got shape {list(covariances.shape)}, expected {[count, dim, dim]}")
        share = _positive("weights", _vector("weights", 1.0 if weights is None else weights, count))
        eigen = [_eigen("covariances", covariance, dim) for covariance in covariances]
        values, vectors = (torch.stack(parts) for parts in zip(*eigen, strict=True))
        self._components = Components(share / share.sum(), mu, values, vectors)

    def components(self) -> Components:
        """The K components."""
        return self._components

    def sample(
        self,
        count: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Independent draws: [count, dim]."""
        z = torch.randn(count, self.dim, generator=generator, device=device, dtype=dtype)
        shares = self._components.weights.cumsum(0).to(z)
        chosen = torch.searchsorted(
            shares, torch.rand(count, generator=generator, device=device, dtype=dtype), right=True
        ).clamp_(max=len(shares) - 1)
        scale = self._components.eigenvalues.sqrt().to(z)[chosen]
        assert self._components.eigenvectors is not None
        rotation = self._components.eigenvectors.to(z)[chosen]
        return self._components.means.to(z)[chosen] + torch.einsum("nij,nj->ni", rotation, z * scale)


class Uniform(Prior):
    """The uniform distribution on the box [low, high]^D.

    Args:
        dim: dimension D.
        low, high: numbers or [D]; low < high.
    """

    def __init__(self, dim: int, low: float | Vector = -1.0, high: float | Vector = 1.0) -> None:
        super().__init__(dim)
        self.low, self.high = _vector("low", low, dim), _vector("high", high, dim)
        if not bool((self.low < self.high).all()):
            raise ValueError(f"low: got {self.low.tolist()}, expected less than high, {self.high.tolist()}")

    def sample(
        self,
        count: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Independent draws: [count, dim]."""
        z = torch.rand(count, self.dim, generator=generator, device=device, dtype=dtype)
        return self.low.to(z) + (self.high - self.low).to(z) * z


class SwissRoll(Prior):
    """A two-dimensional swiss roll, uniform in arc parameter with Gaussian noise (AAE paper, figure 3).

    A point is t * (cos t, sin t) * radius / t_max + noise, t = t_max * sqrt(u), u uniform; t_max = 2 pi * turns. The
    square root makes the density along the roll even.

    Args:
        turns: full turns. radius: of the outer end. std: of the noise.
    """

    def __init__(self, turns: float = 1.5, radius: float = 3.0, std: float = 0.1) -> None:
        super().__init__(2)
        for name, value in (("turns", turns), ("radius", radius), ("std", std)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}: got {value!r}, expected a positive number")
        self.turns, self.radius, self.std = turns, radius, std

    def sample(
        self,
        count: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Independent draws: [count, 2]."""
        u = torch.rand(count, generator=generator, device=device, dtype=dtype)
        noise = torch.randn(count, 2, generator=generator, device=device, dtype=dtype)
        root = u.sqrt()
        angle = 2 * math.pi * self.turns * root
        return self.radius * root[:, None] * torch.stack([angle.cos(), angle.sin()], 1) + self.std * noise


def _transform(z: Tensor, components: Components, index: int) -> Tensor:
    scaled = z * components.eigenvalues[index].sqrt().to(z)
    if components.eigenvectors is not None:
        scaled = scaled @ components.eigenvectors[index].T.to(z)
    return components.means[index].to(z) + scaled


def _ring(count: int) -> tuple[Tensor, Tensor]:
    """Components on a ring of radius 4, elongated along the radius: std 1 outward, 0.2 across."""
    angle = torch.arange(count, dtype=F64) * (2 * math.pi / count)
    outward = torch.stack([angle.cos(), angle.sin()], 1)
    across = torch.stack([-angle.sin(), angle.cos()], 1)
    covariances = 1.0**2 * outward[:, :, None] * outward[:, None] + 0.2**2 * across[:, :, None] * across[:, None]
    return 4 * outward, covariances


def _vector(name: str, value: float | Vector, dim: int) -> Tensor:
    vector = torch.as_tensor(value, dtype=F64, device="cpu").detach()
    if vector.ndim > 1 or (vector.ndim == 1 and vector.shape[0] != dim) or not bool(vector.isfinite().all()):
        raise ValueError(f"{name}: got {value!r}, expected a finite number or {dim} of them")
    return vector.expand(dim).clone()


def _positive(name: str, vector: Tensor) -> Tensor:
    if not bool((vector > 0).all()):
        raise ValueError(f"{name}: got {vector.tolist()}, expected positive numbers")
    return vector


def _eigen(name: str, covariance: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    matrix = torch.as_tensor(covariance, dtype=F64, device="cpu").detach()
    if matrix.shape != (dim, dim) or not torch.allclose(matrix, matrix.T):
        raise ValueError(f"{name}: got shape {list(matrix.shape)}, expected a symmetric matrix of shape {[dim, dim]}")
    values, vectors = torch.linalg.eigh(matrix)
    if not bool((values > 0).all()):
        raise ValueError(f"{name}: got eigenvalues {values.tolist()}, expected a positive definite matrix")
    return values, vectors
