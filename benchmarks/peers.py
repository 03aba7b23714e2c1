"""What a user would write without fastmmd: the textbook formulas in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same through torch.compile."""
    return torch.compile(function, dynamic=False)


def mmd2(x: Tensor, y: Tensor, bandwidths: Sequence[float]) -> Tensor:
    """Biased multi-bandwidth MMD^2 by three dense kernel matrices."""

    def mean(a: Tensor, b: Tensor) -> Tensor:
        r = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T
        return torch.stack([torch.exp(-r / (2 * s**2)).mean() for s in bandwidths]).sum()

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def fourier_mean(x: Tensor, frequencies: Tensor) -> Tensor:
    """Mean of the feature vectors by an [N, count] matrix."""
    angle = x @ frequencies.T
    return torch.cat([angle.cos(), angle.sin()], 1).mean(0) / math.sqrt(len(frequencies))


def parzen_log_likelihood(points: Tensor, samples: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Log-sum-exp over a dense distance matrix that all sigmas share."""
    r = points.square().sum(1, keepdim=True) + samples.square().sum(1) - 2 * points @ samples.T
    n, d = samples.shape
    return torch.stack(
        [torch.logsumexp(-r / (2 * s**2), 1) - math.log(n) - d / 2 * math.log(2 * math.pi * s**2) for s in sigmas]
    )
