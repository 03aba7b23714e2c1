"""Gaussian priors and mixtures of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..device_cache import DeviceCache
from ..ops.arguments import check_int
from ..ops.closed_form import KernelMeans
from .base import F64, Vector, array, check_draws, positive, vector
from .closed_form import ClosedFormPrior

TILE = 2**22  # numbers in a temporary array of matrices


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

    def cumulative(self, device: torch.device) -> Tensor:
        """Cumulative weights [K], added up where the weights are: CUDA's sums are not deterministic."""
        return self.weights.cumsum(0).to(device)

    def differences(self, rows: slice = slice(None), columns: slice = slice(None)) -> Components:
        """The difference of two independent draws, one of `rows`, one of `columns`: a mixture of all pairs, its means
        given in the pairs' own axes."""
        dim = self.means.shape[1]
        a, b = self._covariances(rows), self._covariances(columns)
        values, rotation = torch.linalg.eigh(a[:, None] + b)
        offset = torch.einsum("kld,klde->kle", self.means[rows][:, None] - self.means[columns], rotation)
        weights = self.weights[rows][:, None] * self.weights[columns]
        return Components(weights.flatten(), offset.reshape(-1, dim), values.reshape(-1, dim), None)

    def tiles(self) -> list[tuple[slice, slice]]:
        """Rows and columns that cover each pair of components once in one order or the other, in bounded memory."""
        count, dim = self.means.shape
        size = max(1, math.isqrt(TILE) // dim)
        slices = [slice(start, min(start + size, count)) for start in range(0, count, size)]
        return [(rows, columns) for i, rows in enumerate(slices) for columns in slices[i:]]

    def _covariances(self, part: slice) -> Tensor:
        """Those of some of the components: [k, D, D]."""
        if self.eigenvectors is None:
            return torch.diag_embed(self.eigenvalues[part])
        vectors = self.eigenvectors[part]
        return vectors * self.eigenvalues[part][:, None] @ vectors.mT


class MixturePrior(ClosedFormPrior):
    """What Gaussian and GaussianMixture share: components, per device, and sampling from them."""

    def __init__(self, components: Components) -> None:
        super().__init__(components.means.shape[1])
        self._components = DeviceCache(components.to)
        self._first, self._cumulative = DeviceCache(components.first), DeviceCache(components.cumulative)
        self._tiles = components.tiles()
        # Of few components all pairs are kept. Those of many are decomposed when they are needed, tile by tile.
        self._pairs = DeviceCache(components.differences().to) if len(self._tiles) == 1 else None

    def components(self, device: torch.device | None = None) -> Components:
        """The components in float64, on the CPU by default."""
        return self._components.get(torch.device("cpu") if device is None else device)

    def _kernel_means(self, bandwidths: Tensor, kernel_weights: Tensor, device: torch.device) -> KernelMeans:
        if self._pairs is not None:
            own = _own(self._pairs.get(device), bandwidths, kernel_weights)
        else:
            own = torch.zeros((), dtype=F64, device=device)
            of_tile = self._own_of
            if bandwidths.requires_grad or kernel_weights.requires_grad:
                # Decomposed anew in the backward pass: what it saves would be quadratic in the number of components.
                of_tile = partial(checkpoint, self._own_of, use_reentrant=False)
            for rows, columns in self._tiles:
                tile = of_tile(rows, columns, bandwidths, kernel_weights)
                own = own + (1 if rows == columns else 2) * tile
        components = self.components(device)
        base, rate = _exponents(components.eigenvalues, bandwidths)
        means, vectors, weights = components.means[:, None], components.eigenvectors, components.weights
        return _MixtureMeans(means, vectors, base, rate, weights, kernel_weights, own)

    def _own_of(self, rows: slice, columns: slice, bandwidths: Tensor, kernel_weights: Tensor) -> Tensor:
        pairs = self.components().differences(rows, columns).to(bandwidths.device)
        return _own(pairs, bandwidths, kernel_weights)

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
        check_draws(count, generator, device, dtype)
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
        chosen = torch.searchsorted(self._cumulative.get(z.device).to(z), u, right=True).clamp_(max=len(means) - 1)
        if labels is not None:
            chosen = torch.where(labels < 0, chosen, labels.clamp(max=len(means) - 1))
        z = z * scales.to(z)[chosen]
        if vectors is not None:  # in parts: the axes of every draw take [N, D, D]
            axes, size = vectors.to(z), max(1, TILE // self.dim**2)
            parts = zip(chosen.split(size), z.split(size), strict=True)
            z = torch.cat([torch.einsum("nij,nj->ni", axes[some], part) for some, part in parts])
        return means.to(z)[chosen] + z


def _exponents(variance: Tensor, bandwidths: Tensor) -> tuple[Tensor, Tensor]:
    """E exp(-|a|^2 / (2 s^2)) = exp(base + offset^2 @ rate) for a ~ N(offset, diag(variance)), [K, D] both."""
    wide = variance[:, :, None]  # [K, D, S]
    return -0.5 * torch.log1p(wide / bandwidths**2).sum(1, keepdim=True), -0.5 / (wide + bandwidths**2)


def _own(pairs: Components, bandwidths: Tensor, kernel_weights: Tensor) -> Tensor:
    """The sum of E u(y, y') over pairs of components, with their weights: 0-d."""
    base, rate = _exponents(pairs.eigenvalues, bandwidths)
    u = torch.expm1(torch.baddbmm(base, pairs.means.square()[:, None], rate))
    return (pairs.weights @ (u @ kernel_weights)).sum()


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
            self.std = array("covariance", covariance).diagonal().sqrt()
            variances, vectors = values[None], axes[None]
        super().__init__(Components(torch.ones(1, dtype=F64), self.mean[None], variances, vectors))


class GaussianMixture(MixturePrior):
    """A mixture of K Gaussians, by default of ten elongated ones on a ring in the plane (AAE paper, figure 3).

    Component i belongs to class i: `num_classes` is K. Sampling takes memory linear in K. So does the closed form of a
    kernel mean, which decomposes all pairs of components once for each set of bandwidths that are numbers (K = 300,
    D = 64: seconds), at every call for bandwidths in tensors.

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
        mu, covariance = array("means", means), array("covariances", covariances)
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
    matrix = array(name, covariance)
    if matrix.shape != (dim, dim):
        raise ValueError(f"{name}: got shape {list(matrix.shape)}, expected {[dim, dim]}")
    if not bool(matrix.isfinite().all()) or not torch.allclose(matrix, matrix.T):
        raise ValueError(f"{name}: got {matrix.tolist()}, expected a finite symmetric matrix")
    values, vectors = torch.linalg.eigh(matrix)
    if not bool((values > 0).all()):
        raise ValueError(f"{name}: got eigenvalues {values.tolist()}, expected a positive definite matrix")
    return values, vectors
