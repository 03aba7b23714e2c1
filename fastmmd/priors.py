"""Prior distributions of the code: what a generative autoencoder samples from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .ops.arguments import check_int, check_number
from .ops.device_cache import DeviceCache
from .ops.labels import check_labels, unknown_labels

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


class Prior:
    """A distribution over codes of dimension `dim`; subclasses sample, and some have closed-form kernel means.

    `num_classes` is the number of parts that labels choose from, 0 where a prior has no parts.
    """

    num_classes: int = 0

    def __init__(self, dim: int) -> None:
        self.dim = check_int("dim", dim)
        self.kept_terms: dict[Any, Any] = {}  # what `mmd2_to_prior` prepares for a list of bandwidths

    def sample(
        self,
        count: int,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Independent draws: [count, dim], float32 by default, from the given or the default generator.

        Args:
            labels: [count] int64 on the draws' device, a class for each draw: it comes from that part of the prior,
                where it is -1 from the whole. Without labels all come from the whole, by the same random numbers.
                A label that is no class raises on the CPU; elsewhere, where reading it would wait for the device,
                its draw is NaN.

        Raises:
            ValueError, TypeError: labels for a prior without classes, or of another shape, dtype or device.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement sample()")

    def _known(self, z: Tensor, labels: Tensor) -> Tensor:
        """Checks the labels; z [N, D], NaN where one is no class and the device is not the CPU, where that raises."""
        if not self.num_classes:
            raise ValueError(
                f"labels: got some, but {type(self).__name__} has no classes; GaussianMixture and SwissRoll have"
            )
        check_labels(labels, z.shape[0], self.num_classes, z.device)
        return z.masked_fill(unknown_labels(labels, self.num_classes)[:, None], math.nan)


class MixturePrior(Prior):
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
        self.mean = _vector("mean", 0.0 if mean is None else mean, dim)
        if covariance is None:
            self.std = _positive("std", _vector("std", 1.0 if std is None else std, dim))
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
        share = _positive("weights", _vector("weights", 1.0 if weights is None else weights, count))
        values, vectors = zip(*[_eigen("covariances", part, dim) for part in covariance], strict=True)
        super().__init__(Components(share / share.sum(), mu, torch.stack(values), torch.stack(vectors)))
        self.num_classes = count


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
        self._bounds = DeviceCache(self._make_bounds)

    def _make_bounds(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return self.low.to(device), self.high.to(device)

    def bounds(self, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """low and high, [D] each in float64, on the CPU by default."""
        return self._bounds.get(torch.device("cpu") if device is None else device)

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
        z = torch.rand(count, self.dim, generator=generator, device=device, dtype=dtype)
        if labels is not None:
            z = self._known(z, labels)
        low, high = self.bounds(z.device)
        return low.to(z) + (high - low).to(z) * z


class SwissRoll(Prior):
    """A two-dimensional swiss roll, uniform in arc parameter with Gaussian noise (AAE paper, figure 3).

    A point is t * (cos t, sin t) * radius / t_max + noise, t = t_max * sqrt(u), u uniform; t_max = 2 pi * turns. The
    square root makes the density along the roll even. Class i is the i-th of `num_classes` parts of equal mass, from
    the inner end on: u in [i, i + 1) / num_classes.

    Args:
        turns: full turns. radius: of the outer end. std: of the noise.
        num_classes: parts that labels choose from; ten as in the paper.
    """

    def __init__(self, turns: float = 1.5, radius: float = 3.0, std: float = 0.1, num_classes: int = 10) -> None:
        super().__init__(2)
        self.turns, self.radius = check_number("turns", turns), check_number("radius", radius)
        self.std = check_number("std", std)
        self.num_classes = check_int("num_classes", num_classes)

    def sample(
        self,
        count: int,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Independent draws: [count, 2]; see `Prior.sample`."""
        u = torch.rand(count, generator=generator, device=device, dtype=dtype)
        noise = torch.randn(count, 2, generator=generator, device=device, dtype=dtype)
        if labels is not None:
            noise = self._known(noise, labels)
            u = torch.where(labels < 0, u, (labels + u) / self.num_classes)
        root = u.sqrt()
        angle = 2 * math.pi * self.turns * root
        return self.radius * root[:, None] * torch.stack([angle.cos(), angle.sin()], 1) + self.std * noise


def _ring(count: int) -> tuple[Tensor, Tensor]:
    """Components on a ring of radius 4, elongated along the radius: std 1 outward, 0.2 across."""
    angle = torch.arange(count, dtype=F64) * (2 * math.pi / count)
    outward = torch.stack([angle.cos(), angle.sin()], 1)
    across = torch.stack([-angle.sin(), angle.cos()], 1)
    covariances = 1.0**2 * outward[:, :, None] * outward[:, None] + 0.2**2 * across[:, :, None] * across[:, None]
    return 4 * outward, covariances


def _vector(name: str, value: float | Vector, dim: int) -> Tensor:
    try:
        vector = torch.as_tensor(value, dtype=F64, device="cpu").detach()
    except (TypeError, ValueError):
        raise TypeError(f"{name}: got {value!r}, expected a number or a sequence of them") from None
    if vector.ndim > 1 or (vector.ndim == 1 and vector.shape[0] != dim) or not bool(vector.isfinite().all()):
        raise ValueError(f"{name}: got {value!r}, expected a finite number or {dim} of them")
    return vector.expand(dim).clone()


def _positive(name: str, vector: Tensor) -> Tensor:
    if not bool((vector > 0).all()):
        raise ValueError(f"{name}: got {vector.tolist()}, expected positive numbers")
    return vector


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
