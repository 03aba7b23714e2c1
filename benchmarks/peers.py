"""What a user could pick instead of fastmmd: the textbook formulas in PyTorch, KeOps, GeomLoss, scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from settings import DEVICE, QUICK, SIZES  # isort: skip  before torch: it sets the number of threads

import torch
from torch import Tensor

import fastmmd

Floats = Sequence[float]


def ours() -> list[str]:
    """The backends of fastmmd that run on this device."""
    return [name for name, devices in fastmmd.available_backends().items() if devices[DEVICE].available]


COMPILES = ("torch.compile", "KeOps", "GeomLoss")  # on the first call, for seconds


def names_of(table: dict[str, Callable[..., Tensor]], main: bool = True) -> list[str]:
    """The peers that run here; a quick run leaves those that compile to the main groups."""
    here = [name for name in table if DEVICE == "cpu" or name != "scikit-learn"]
    return [name for name in here if main or not QUICK or name not in COMPILES]


def candidates(table: dict[str, Callable[..., Tensor]], main: bool = True) -> list[str]:
    """The same after our backends."""
    return [*ours(), *names_of(table, main)]


@contextmanager
def chosen(implementation: str, function: Callable[..., Tensor], table: dict[str, Callable[..., Tensor]]) -> Iterator:
    """`function` of fastmmd on the backend of that name, or the peer of that name."""
    if implementation in table:
        yield compiled(table["eager"]) if implementation == "torch.compile" else table[implementation]
    else:
        with fastmmd.backend("auto" if implementation == "fastmmd" else implementation):
            yield function


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same through torch.compile, forgetting other shapes: past some number of them it would stay eager."""
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """[N, D], [M, D] -> [N, M] by a matrix product."""
    return a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T


def mmd2(x: Tensor, y: Tensor, bandwidths: Floats) -> Tensor:
    """Biased multi-bandwidth MMD^2 by three dense kernel matrices."""

    def mean(a: Tensor, b: Tensor) -> Tensor:
        r = squared_distances(a, b)
        return torch.stack([torch.exp(-r / (2 * s**2)).mean() for s in bandwidths]).sum()

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def keops_mmd2(x: Tensor, y: Tensor, bandwidths: Floats) -> Tensor:
    """The same by symbolic matrices: linear memory, one reduction for each of the three means."""
    from pykeops.torch import LazyTensor

    def mean(a: Tensor, b: Tensor) -> Tensor:
        r = LazyTensor(a[:, None, :]).sqdist(LazyTensor(b[None, :, :]))
        kernels = [(-r / (2 * s**2)).exp() for s in bandwidths]
        return sum(kernels[1:], kernels[0]).sum(1).mean() / len(b)

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def geomloss_mmd2(x: Tensor, y: Tensor, bandwidths: Floats, backend: str = "auto") -> Tensor:
    """The same by its kernel norms, which are half of MMD^2 and take one bandwidth at a time.

    "auto": dense matrices up to 5000 x 5000, KeOps beyond.
    """
    from geomloss import SamplesLoss

    return 2 * torch.stack([SamplesLoss("gaussian", blur=s, backend=backend)(x, y) for s in bandwidths]).sum()


def sklearn_mmd2(x: Tensor, y: Tensor, bandwidths: Floats) -> Tensor:
    """The value alone, by dense kernel matrices."""
    from sklearn.metrics.pairwise import rbf_kernel

    def mean(a: Tensor, b: Tensor) -> float:
        return sum(float(rbf_kernel(a.numpy(), b.numpy(), gamma=0.5 / s**2).mean()) for s in bandwidths)

    return torch.tensor(mean(x, x) + mean(y, y) - 2 * mean(x, y))


def fourier_features(x: Tensor, frequencies: Tensor) -> Tensor:
    """[N, D], [count, D] -> [N, 2 * count]."""
    angle = x @ frequencies.T
    return torch.cat([angle.cos(), angle.sin()], 1) / math.sqrt(len(frequencies))


def fourier_mean(x: Tensor, frequencies: Tensor) -> Tensor:
    """Mean of the feature vectors by an [N, count] matrix."""
    return fourier_features(x, frequencies).mean(0)


def keops_fourier_mean(x: Tensor, frequencies: Tensor) -> Tensor:
    """The same by a symbolic matrix."""
    from pykeops.torch import LazyTensor

    angle = (LazyTensor(x[:, None, :]) * LazyTensor(frequencies[None, :, :])).sum(-1)
    sums = [part.sum(0)[:, 0] for part in (angle.cos(), angle.sin())]
    return torch.cat(sums) / (len(x) * math.sqrt(len(frequencies)))


def fourier_function(x: Tensor, coefficients: Tensor, frequencies: Tensor) -> Tensor:
    """A random function by an [N, 2 * count] matrix."""
    return fourier_features(x, frequencies) @ coefficients


def parzen_log_likelihood(points: Tensor, samples: Tensor, sigmas: Floats) -> Tensor:
    """Log-sum-exp over a dense distance matrix that all sigmas share."""
    r = squared_distances(points, samples)
    return torch.stack([torch.logsumexp(-r / (2 * s**2), 1) - _log_normalization(samples, s) for s in sigmas])


def keops_parzen(points: Tensor, samples: Tensor, sigmas: Floats) -> Tensor:
    """One log-sum-exp reduction for each sigma."""
    from pykeops.torch import LazyTensor

    r = LazyTensor(points[:, None, :]).sqdist(LazyTensor(samples[None, :, :]))
    return torch.stack([(-r / (2 * s**2)).logsumexp(1)[:, 0] - _log_normalization(samples, s) for s in sigmas])


def sklearn_parzen(points: Tensor, samples: Tensor, sigmas: Floats) -> Tensor:
    """KernelDensity. Its default tree is off by hundreds of nats at D = 784; one leaf for all samples is exact."""
    from sklearn.neighbors import KernelDensity

    def score(sigma: float) -> Tensor:
        density = KernelDensity(bandwidth=sigma, leaf_size=len(samples) + 1).fit(samples.numpy())
        return torch.from_numpy(density.score_samples(points.numpy()))

    return torch.stack([score(s) for s in sigmas])


def _log_normalization(samples: Tensor, sigma: float) -> float:
    n, dim = samples.shape
    return math.log(n) + dim / 2 * math.log(2 * math.pi * sigma**2)


MMD2: dict[str, Callable[..., Tensor]] = {
    "eager": mmd2,
    "torch.compile": mmd2,
    "KeOps": keops_mmd2,
    "GeomLoss": geomloss_mmd2,
}
MMD2_VALUE = MMD2 | {"scikit-learn": sklearn_mmd2}
FOURIER_MEAN: dict[str, Callable[..., Tensor]] = {
    "eager": fourier_mean,
    "torch.compile": fourier_mean,
    "KeOps": keops_fourier_mean,
}
FOURIER_FUNCTION: dict[str, Callable[..., Tensor]] = {"eager": fourier_function, "torch.compile": fourier_function}
PARZEN: dict[str, Callable[..., Tensor]] = {"eager": parzen_log_likelihood, "torch.compile": parzen_log_likelihood}
DENSITY = PARZEN | {"KeOps": keops_parzen, "scikit-learn": sklearn_parzen}


@cache
def two_samples(n: int, m: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """[n, dim] standard normal points, and [m, dim] of standard deviation 1.1: the same for every implementation."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, dim, generator=generator), 1.1 * torch.randn(m, dim, generator=generator)
    return x.to(DEVICE), y.to(DEVICE)


def value_and_gradient(mmd2: Callable[..., Tensor], x: Tensor, y: Tensor, bandwidths: Floats) -> tuple[Tensor, Tensor]:
    """Of mmd2 in x, a leaf that requires a gradient."""
    value = mmd2(x, y, bandwidths)
    return value.detach(), *torch.autograd.grad(value, x)


def warm_up(implementation: str, mmd2: Callable[..., Tensor], dim: int, bandwidths: Floats) -> bool:
    """Load, compile and start threads on a few tiles; False for torch.compile, which compiles for each shape."""
    if implementation == "torch.compile":
        return False
    x, y = (points.clone().requires_grad_() for points in two_samples(512, 512, dim))
    value_and_gradient(mmd2, x, y.detach(), bandwidths)
    if implementation == "GeomLoss" and max(SIZES.against_n) > 5000:
        geomloss_mmd2(x, y, bandwidths, backend="online").backward()
    return True


def exact_value(x: Tensor, y: Tensor, bandwidths: Floats) -> float:
    """The textbook formula in float64, row by row."""

    def mean(a: Tensor, b: Tensor) -> float:
        sums = [
            torch.exp(-r / (2 * s**2)).sum().item()
            for rows in a.split(512)
            for r in [squared_distances(rows, b)]
            for s in bandwidths
        ]
        return math.fsum(sums) / (len(a) * len(b))

    x, y = x.detach().double(), y.double()
    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def exact_gradient(x: Tensor, y: Tensor, bandwidths: Floats, rows: slice) -> Tensor:
    """d mmd2 / d x[rows] in float64, analytically: each row meets all points."""
    x, y = x.detach().double(), y.double()
    some = x[rows]

    def attraction(b: Tensor) -> Tensor:
        r = squared_distances(some, b)
        k = sum(torch.exp(-r / (2 * s**2)) / s**2 for s in bandwidths)
        return (k @ b - k.sum(1, keepdim=True) * some) / len(b)  # type: ignore[union-attr,operator]

    return 2 * (attraction(x) - attraction(y)) / len(x)


def check_mmd2(
    result: tuple[Tensor, Tensor], x: Tensor, y: Tensor, bandwidths: Floats, implementation: str, seed: int = 0
) -> dict[str, Any]:
    """Assert value and gradient of two_samples(..., seed) against float64 and return the errors: ours to the contract,
    peers to 1%.

    On a CPU the value of the largest samples is left out: float64 takes minutes there.
    """
    value, gradient = (tensor.double() for tensor in result)
    rows = slice(None, None, max(1, len(x) // 64))
    exact_rows = exact_gradient(x, y, bandwidths, rows)
    largest = max(gradient.norm(dim=1).max().item(), exact_rows.norm(dim=1).max().item())
    gradient_error = (gradient[rows] - exact_rows).norm(dim=1).max().item()
    peer = implementation in MMD2
    assert gradient_error <= (1e-2 if peer else 2e-6) * largest, (implementation, gradient_error / largest)
    if DEVICE == "cpu" and len(x) * len(y) > 8192**2:
        return {"gradient_error": gradient_error / largest}
    exact = _exact_value_of(len(x), len(y), x.shape[1], tuple(bandwidths), seed)
    error = abs(value.item() - exact)
    tolerance = 1e-2 * exact if peer else 1e-6 * exact + 2e-7 * len(bandwidths) / min(len(x), len(y))
    assert error <= tolerance, (implementation, value.item(), exact)
    return {"value_error": error / exact, "gradient_error": gradient_error / largest}


@cache
def _exact_value_of(n: int, m: int, dim: int, bandwidths: tuple[float, ...], seed: int) -> float:
    return exact_value(*two_samples(n, m, dim, seed), bandwidths)
