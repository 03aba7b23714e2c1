"""Parzen-window log-likelihood (Breuleux et al. 2011; Goodfellow et al. 2014, section 5), streaming, in log space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..backends import current, select
from ..backends.calls import Parzen, ParzenBackward
from .arguments import check_points, compute_dtype, numbers_in, positive_floats
from .dispatch import define
from .shards import Group, Shards, shards_of

F64 = torch.float64
Sigmas = float | Sequence[float] | Tensor

# A unit of length changes a density by a known factor, so calls are made in one in which the sigmas are about 1.
PLAIN = 2.0**10  # sigmas from 1 / PLAIN to PLAIN are taken as they are
MOST = 2.0**40  # float32 holds units from 1 / MOST to MOST, and sigmas of a ratio up to MOST; others take float64
MOST_F64 = 2.0**500  # the same of float64, where sigmas beyond that count as the nearest within it


def parzen_log_likelihood(points: Tensor, samples: Tensor, sigma: Sigmas) -> Tensor:
    """Log-density of each point under a Gaussian Parzen window on the samples, in nats.

    log p(x_i) = logsumexp_j(-|x_i - s_j|^2 / (2 sigma^2)) - log N - D / 2 log(2 pi sigma^2), for all sigmas in one
    pass over the distances, in log space throughout (a point far from every sample gets its true value).

    Args:
        points: [M, D], where the density is evaluated. samples: [N, D]. Half types compute in float32.
        sigma: a positive number, or a sequence or a floating tensor [S] of them, from 1e-300 to 1e300 and in
            a ratio of at most 1e300. The values of a tensor are read, which waits for its device, and have no gradient;
            a 0-d tensor is a number.

    Returns:
        [M] for a number, [S, M] for several; differentiable once in points and samples. The error of float32 data
        in [0, 1] at D = 784 and sigma from 0.1 to 1 is at most 0.005 nats per point. In general the
        squared distance r to the nearest sample is accurate to about 1e-7 r, so the error is about 1e-7 r / (2 sigma^2)
        nats. A log-density below the range of the dtype is -inf. Sigmas below 1e-12, above 1e12 or in a ratio of more
        than 1e12 make a float32 call compute in float64.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    sigmas, single = _sigmas("sigma", sigma)
    check_points(2, points=points, samples=samples)
    dtype = compute_dtype(points)
    x, y = points.to(dtype), samples.to(dtype)
    center = _center(x)
    densities, _, _ = log_likelihoods(x - center, y - center, sigmas, current())
    return densities[0] if single else densities


class ParzenEstimator:
    """Streaming `parzen_log_likelihood`: any number of samples, in batches, without keeping them.

    Partition and order of the samples change a point by at most 0.005 nats. The state is one squared distance per
    point and one float64 sum per point and sigma. Not differentiable; use `parzen_log_likelihood` for gradients.

    Args:
        points: [M, D], where the density is evaluated. sigmas: as sigma of `parzen_log_likelihood`.

    Example:
        >>> estimator = ParzenEstimator(test_images, sigmas=(0.1, 0.2))     # [10000, 784]
        >>> for _ in range(1000):
        ...     estimator.update(model.sample(10_000))                      # [10000, 784]
        >>> estimator.log_likelihood().mean(1)                              # [2]
    """

    def __init__(self, points: Tensor, sigmas: Sigmas) -> None:
        self.sigmas, self._single = _sigmas("sigmas", sigmas)
        check_points(2, points=points)
        self.count = 0
        points = points.detach().to(compute_dtype(points))
        self._center = _center(points)
        self._points = points - self._center
        self._minimum, self._sums = _no_samples(points, self.sigmas)

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
            TypeError: it is no estimator.
            ValueError: the points or sigmas differ.
        """
        if not isinstance(other, ParzenEstimator):
            raise TypeError(f"other: got {type(other).__name__}, expected a ParzenEstimator")
        same = other.sigmas == self.sigmas and other._points.shape == self._points.shape
        if not same or not torch.equal(other._points, self._points) or not torch.equal(other._center, self._center):
            raise ValueError("other: its points or sigmas differ; merge estimators made from the same arguments")
        if other.count:
            nearest = torch.minimum(self._minimum, other._minimum)
            t = 0.5 / self._sums.new_tensor(_scale(self.sigmas)[1]).square()[:, None]
            parts = [part._sums * torch.exp(-t * (part._minimum - nearest)) for part in (self, other) if part.count]
            self._minimum, self._sums = nearest, torch.stack(parts).sum(0)
            self.count += other.count
        return self

    def _of_all(self, shards: Shards) -> tuple[Tensor, Tensor, int]:
        """The state that one estimator with the samples of all processes would have."""
        norm = self._points.to(F64).norm().item()
        settings = f"ParzenEstimator, points {list(self._points.shape)} of norm {norm:.6g}, sigmas {self.sigmas}"
        (counts,) = shards.agree(settings, [self.count], self._points.device)
        nearest = shards.least(self._minimum)
        t = 0.5 / self._sums.new_tensor(_scale(self.sigmas)[1]).square()[:, None]
        own = self._sums * torch.exp(-t * (self._minimum - nearest)) if self.count else self._sums
        return nearest, shards.total(own), sum(counts)

    def state_dict(self) -> dict[str, Any]:
        """What the samples have left at the points, to be saved; not the points themselves.

        Returns:
            count; sigmas; minimum [M] and sums [S, M], float64; norms [M], float64: of the points, by which
            `load_state_dict` recognizes them.
        """
        return {
            "count": self.count,
            "sigmas": list(self.sigmas),
            "norms": (self._points.to(F64) + self._center).norm(dim=1),
            "minimum": self._minimum.clone(),
            "sums": self._sums.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the state by one that `state_dict` gave for the same points and sigmas, on any device.

        Raises:
            ValueError: it is no such state, or its points or sigmas differ.
        """
        own = self.state_dict()
        tensors = [name for name, value in own.items() if isinstance(value, Tensor)]
        same = state.get("sigmas") == own["sigmas"] and isinstance(state.get("count"), int)
        same = same and all(getattr(state.get(name), "shape", None) == own[name].shape for name in tensors)
        if same:
            norms = state["norms"].to(own["norms"])
            # Up to rounding: points are kept as differences from their mean, which devices round differently.
            tolerance = 1e-6 * own["norms"].nan_to_num(0, 0, 0).norm().item()
            same = torch.allclose(norms, own["norms"], rtol=1e-5, atol=tolerance, equal_nan=True)
        if not same:
            raise ValueError("state: its points or sigmas differ, or it is incomplete; load it into an estimator of "
                             "the same arguments")  # fmt: skip
        self.count = state["count"]
        self._minimum, self._sums = (state[name].to(own[name], copy=True) for name in ("minimum", "sums"))

    @torch.no_grad()
    def log_likelihood(self, group: Group = None) -> Tensor:
        """Log-density in nats: [M] if sigmas was one number, else [S, M].

        Args:
            group: processes of which each has added some of the samples, or none, to an estimator of the same points
                and sigmas: a ProcessGroup of `torch.distributed` or `fastmmd.Shards`. All get the density under the
                samples of all; the estimators stay as they are.

        Raises:
            ValueError: no sample has been added; the processes' points or sigmas differ.
        """
        shards = shards_of(group)
        minimum, sums, count = (self._minimum, self._sums, self.count) if shards is None else self._of_all(shards)
        if not count:
            raise ValueError("log_likelihood: no samples yet; call update(samples) first")
        out = _log_likelihood(minimum, sums, self.sigmas, count, self._points)
        return out[0] if self._single else out


def _sigmas(name: str, value: Sigmas) -> tuple[tuple[float, ...], bool]:
    """All sigmas, and whether they were given as one number."""
    numbers = numbers_in(name, value, breaks_graph=True)
    return positive_floats(name, numbers), isinstance(numbers, Real)


def _center(points: Tensor) -> Tensor:
    """Where distances are computed from, [D]: the mean, which keeps them small, of points that are no outliers."""
    some = points.detach()[:64]
    middle = some.nanmedian(0).values if some.device.type == "cpu" else medians(some)
    r = (some - middle).square().sum(1)
    near = r <= 9 * r.nanmedian()  # False for NaN
    return torch.where(near[:, None], some, 0.0).sum(0) / near.sum().clamp(min=1)


def medians(points: Tensor) -> Tensor:
    """points.nanmedian(0).values, which has no deterministic kernel for CUDA; on the CPU it is three times as fast."""
    count = points.isnan().logical_not().sum(0, keepdim=True)
    return points.sort(0).values.gather(0, (count - 1).clamp(min=0) // 2)[0]  # NaN lie behind all numbers


def _scale(sigmas: Sequence[float]) -> tuple[float, tuple[float, ...], bool]:
    """The unit of length of a call, a power of 2, the sigmas in it, and whether the call takes float64."""
    least, greatest = min(sigmas), max(sigmas)
    exponent = round((math.log2(least) + math.log2(greatest)) / 2)
    unit = 2.0 ** max(-500, min(exponent, 500)) if least < 1 / PLAIN or greatest > PLAIN else 1.0
    wide = not 1 / MOST <= unit <= MOST or greatest / least > MOST
    return unit, tuple(max(1 / MOST_F64, min(sigma / unit, MOST_F64)) for sigma in sigmas), wide


def _no_samples(points: Tensor, sigmas: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The state of points before the first sample."""
    m = points.shape[0]
    return points.new_full((m,), math.inf, dtype=F64), points.new_zeros((len(sigmas), m), dtype=F64)


def _log_likelihood(minimum: Tensor, sums: Tensor, sigmas: Sequence[float], count: int, points: Tensor) -> Tensor:
    """log sum_j exp(-r_ij / (2 sigma_s^2)) - log N - D/2 log(2 pi sigma_s^2): [S, M] in the dtype of the points."""
    logs, dim = sums.log(), points.shape[1]
    # Kernels count distances beyond the largest number of their dtype as that number.
    beyond = (minimum == torch.finfo(points.dtype).max) | (minimum == torch.finfo(F64).max)
    nearest = minimum.masked_fill(beyond, math.inf)
    for row, sigma, scaled in zip(logs, sigmas, _scale(sigmas)[1], strict=True):
        row.sub_(nearest, alpha=0.5 / scaled**2)
        row.sub_(math.log(count) + dim * (math.log(2 * math.pi) / 2 + math.log(sigma)))
    return logs.to(points.dtype)


# --- the operators ---


def _parzen_log_likelihood(
    points: Tensor, samples: Tensor, sigmas: Sequence[float], backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The result [S, M], and the state that it is made of, for the backward pass."""
    minimum, sums = _no_samples(points, sigmas)
    call, _ = _call(points, samples, sigmas, minimum, sums)
    select(backend, "parzen", points.device).parzen_update(replace(call, empty=True))
    return _log_likelihood(minimum, sums, sigmas, samples.shape[0], points), minimum, sums


def _parzen_update(
    points: Tensor, samples: Tensor, minimum: Tensor, sums: Tensor, sigmas: Sequence[float], backend: str
) -> tuple[Tensor, Tensor]:
    minimum, sums = (state.clone(memory_format=torch.contiguous_format) for state in (minimum, sums))
    call, _ = _call(points, samples, sigmas, minimum, sums)
    select(backend, "parzen", points.device).parzen_update(call)
    return minimum, sums


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
    forward, unit = _call(points, samples, sigmas, minimum, sums)
    call = ParzenBackward(forward, grad.to(forward.points.dtype).contiguous(), *needs)
    of_points, of_samples = select(backend, "parzen", points.device).parzen_backward(call)
    if unit != 1:
        of_points, of_samples = of_points / unit, of_samples / unit
    return of_points.to(points.dtype), of_samples.to(points.dtype)


def _call(
    points: Tensor, samples: Tensor, sigmas: Sequence[float], minimum: Tensor, sums: Tensor
) -> tuple[Parzen, float]:
    """The call in a unit of length that suits the sigmas, and this unit."""
    unit, scaled, wide = _scale(sigmas)
    if wide:
        points, samples = points.double(), samples.double()
    if unit != 1:
        points, samples = points / unit, samples / unit
    return Parzen(points.contiguous(), samples.contiguous(), scaled, minimum, sums), unit


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    points, samples, ctx.sigmas, ctx.backend = inputs
    ctx.save_for_backward(points, samples, *output[1:])


def _gradient(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    points, samples, minimum, sums = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:2])
    gradients = parzen_backward(grad, points, samples, minimum, sums, ctx.sigmas, needs, ctx.backend)
    return [gradient if need else None for gradient, need in zip(gradients, needs, strict=True)]


log_likelihoods = define(
    _parzen_log_likelihood,
    lambda points, samples, sigmas, backend: (
        points.new_empty((len(sigmas), points.shape[0])),
        *_no_samples(points, sigmas),
    ),
    _setup,
    _gradient,
)
updated = define(_parzen_update, lambda points, samples, minimum, sums, sigmas, backend: _no_samples(points, sigmas))
parzen_backward = define(
    _parzen_backward,
    lambda grad, points, samples, minimum, sums, sigmas, needs, backend: tuple(
        points.new_empty(t.shape if need else (0,)) for t, need in zip((points, samples), needs, strict=True)
    ),
)
