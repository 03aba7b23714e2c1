"""Parzen-window log-likelihood (Breuleux et al. 2011; Goodfellow et al. 2014, section 5), streaming, in log space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..backends import current, select
from ..backends.calls import Parzen, ParzenBackward
from .arguments import check_points, compute_dtype, positive_floats
from .dispatch import define


def parzen_log_likelihood(points: Tensor, samples: Tensor, sigma: float | Sequence[float]) -> Tensor:
    """Log-density of each point under a Gaussian Parzen window on the samples, in nats.

    log p(x_i) = logsumexp_j(-|x_i - s_j|^2 / (2 sigma^2)) - log N - D / 2 log(2 pi sigma^2), for all sigmas in one
    pass over the distances, in log space throughout (a point far from every sample gets its true value).

    Args:
        points: [M, D], where the density is evaluated. samples: [N, D]. Half types compute in float32.
        sigma: a positive number, or a sequence of S of them.

    Returns:
        [M] for a number, [S, M] for a sequence; differentiable once in points and samples. The error of float32 data
        in [0, 1] at D = 784 and sigma from 0.1 to 1 is at most 0.005 nats per point. In general the
        squared distance r to the nearest sample is accurate to about 1e-7 r, so the error is about 1e-7 r / (2 sigma^2)
        nats.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    sigmas = positive_floats("sigma", sigma)
    check_points(2, points=points, samples=samples)
    dtype = compute_dtype(points)
    x, y = points.to(dtype), samples.to(dtype)
    center = _center(x)
    densities, _, _ = log_likelihoods(x - center, y - center, sigmas, current())
    return densities[0] if isinstance(sigma, Real) else densities


class ParzenEstimator:
    """Streaming `parzen_log_likelihood`: any number of samples, in batches, without keeping them.

    Partition and order of the samples change a point by at most 0.005 nats. The state is one squared distance per
    point and one float64 sum per point and sigma. Not differentiable; use `parzen_log_likelihood` for gradients.

    Args:
        points: [M, D], where the density is evaluated. sigmas: a positive number, or a sequence of S of them.

    Example:
        >>> estimator = ParzenEstimator(test_images, sigmas=(0.1, 0.2))     # [10000, 784]
        >>> for _ in range(1000):
        ...     estimator.update(model.sample(10_000))                      # [10000, 784]
        >>> estimator.log_likelihood().mean(1)                              # [2]
    """

    def __init__(self, points: Tensor, sigmas: float | Sequence[float]) -> None:
        self.sigmas = positive_floats("sigmas", sigmas)
        check_points(2, points=points)
        self.count = 0
        self._scalar = isinstance(sigmas, Real)
        points = points.detach().to(compute_dtype(points))
        self._center = _center(points)
        self._points = points - self._center
        self._minimum = points.new_full((len(points),), math.inf)
        self._sums = points.new_zeros((len(self.sigmas), len(points)), dtype=torch.float64)

    @torch.no_grad()
    def update(self, samples: Tensor) -> ParzenEstimator:
        """Add samples [N, D]; returns self."""
        check_points(2, points=self._points, samples=samples)
        shifted = samples.to(self._points.dtype) - self._center
        self._minimum, self._sums = updated(self._points, shifted, self._minimum, self._sums, self.sigmas, current())
        self.count += len(samples)
        return self

    @torch.no_grad()
    def merge(self, other: ParzenEstimator) -> ParzenEstimator:
        """Add the samples that another estimator of the same points and sigmas has seen; returns self.

        Raises:
            ValueError: the points or sigmas differ.
        """
        same = other.sigmas == self.sigmas and other._points.shape == self._points.shape
        if not same or not torch.equal(other._points, self._points) or not torch.equal(other._center, self._center):
            raise ValueError("other: its points or sigmas differ; merge estimators made from the same arguments")
        if other.count:
            nearest = torch.minimum(self._minimum, other._minimum)
            t = 0.5 / self._sums.new_tensor(self.sigmas).square()[:, None]
            parts = [part._sums * torch.exp(-t * (part._minimum - nearest)) for part in (self, other) if part.count]
            self._minimum, self._sums = nearest, torch.stack(parts).sum(0)
            self.count += other.count
        return self

    def log_likelihood(self) -> Tensor:
        """Log-density in nats: [M] if sigmas was a number, else [S, M].

        Raises:
            ValueError: no sample has been added.
        """
        if not self.count:
            raise ValueError("log_likelihood: no samples yet; call update(samples) first")
        out = _log_likelihood(self._minimum, self._sums, self.sigmas, self.count, self._points.shape[1])
        return out[0] if self._scalar else out


def _center(points: Tensor) -> Tensor:
    """Where distances are computed from, [D]: the mean, which keeps them small, of points that are no outliers."""
    some = points.detach()[:1024]
    r = (some - some.nanmedian(0).values).square().sum(1)
    near = r <= 9 * r.nanmedian()  # False for NaN
    return torch.where(near[:, None], some, 0.0).sum(0) / near.sum().clamp(min=1)


def _log_likelihood(minimum: Tensor, sums: Tensor, sigmas: Sequence[float], count: int, dim: int) -> Tensor:
    """log sum_j exp(-r_ij / (2 sigma_s^2)) - log N - D/2 log(2 pi sigma_s^2): [S, M] in the dtype of minimum."""
    logs, nearest = sums.log(), minimum.double()
    for row, sigma in zip(logs, sigmas, strict=True):
        row.sub_(nearest, alpha=0.5 / sigma**2).sub_(math.log(count) + 0.5 * dim * math.log(2 * math.pi * sigma**2))
    return logs.to(minimum.dtype)


# --- the operators ---


def _parzen_log_likelihood(
    points: Tensor, samples: Tensor, sigmas: Sequence[float], backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The result [S, M], and the state that it is made of, for the backward pass."""
    minimum = points.new_full((points.shape[0],), math.inf)
    sums = points.new_zeros((len(sigmas), points.shape[0]), dtype=torch.float64)
    _update(points, samples, minimum, sums, sigmas, backend)
    return _log_likelihood(minimum, sums, sigmas, samples.shape[0], points.shape[1]), minimum, sums


def _parzen_update(
    points: Tensor, samples: Tensor, minimum: Tensor, sums: Tensor, sigmas: Sequence[float], backend: str
) -> tuple[Tensor, Tensor]:
    minimum, sums = (state.clone(memory_format=torch.contiguous_format) for state in (minimum, sums))
    _update(points, samples, minimum, sums, sigmas, backend)
    return minimum, sums


def _update(
    points: Tensor, samples: Tensor, minimum: Tensor, sums: Tensor, sigmas: Sequence[float], backend: str
) -> None:
    call = Parzen(points.contiguous(), samples.contiguous(), tuple(sigmas), minimum, sums)
    select(backend, "parzen", points.device.type).parzen_update(call)


def _parzen_backward(
    grad: Tensor,
    points: Tensor,
    samples: Tensor,
    minimum: Tensor,
    sums: Tensor,
    sigmas: Sequence[float],
    needs: Sequence[bool],
    backend: str,
) -> tuple[Tensor, Tensor]:
    forward = Parzen(points.contiguous(), samples.contiguous(), tuple(sigmas), minimum, sums)
    call = ParzenBackward(forward, grad.contiguous(), *needs)
    return select(backend, "parzen", points.device.type).parzen_backward(call)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    points, samples, ctx.sigmas, ctx.backend = inputs
    ctx.save_for_backward(points, samples, *output[1:])


def _gradient(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    points, samples, minimum, sums = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:2])
    gradients = parzen_backward(grad, points, samples, minimum, sums, ctx.sigmas, needs, ctx.backend)
    return [gradient if need else None for gradient, need in zip(gradients, needs, strict=True)]


def _fake_state(points: Tensor, sigmas: Sequence[float]) -> tuple[Tensor, Tensor]:
    m = points.shape[0]
    return points.new_empty(m), points.new_empty((len(sigmas), m), dtype=torch.float64)


log_likelihoods = define(
    _parzen_log_likelihood,
    lambda points, samples, sigmas, backend: (
        points.new_empty((len(sigmas), points.shape[0])),
        *_fake_state(points, sigmas),
    ),
    _setup,
    _gradient,
)
updated = define(_parzen_update, lambda points, samples, minimum, sums, sigmas, backend: _fake_state(points, sigmas))
parzen_backward = define(
    _parzen_backward,
    lambda grad, points, samples, minimum, sums, sigmas, needs, backend: tuple(
        points.new_empty(t.shape if need else (0,)) for t, need in zip((points, samples), needs, strict=True)
    ),
)
