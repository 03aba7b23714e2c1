"""The uniform distribution on a box."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..device_cache import DeviceCache
from ..ops.closed_form import KernelMeans
from .base import Vector, check_draws, vector
from .closed_form import ClosedFormPrior


class Uniform(ClosedFormPrior):
    """The uniform distribution on the box [low, high]^D.

    The closed form of a kernel t times as wide as the box has relative error t^2 2^-52, which t < 1e4 leaves below that
    of float32.

    Args:
        dim: dimension D.
        low, high: numbers or [D]; low < high.
    """

    def __init__(self, dim: int, low: float | Vector = -1.0, high: float | Vector = 1.0) -> None:
        super().__init__(dim)
        self.low, self.high = vector("low", low, dim), vector("high", high, dim)
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
        check_draws(count, generator, device, dtype)
        z = torch.rand(count, self.dim, generator=generator, device=device, dtype=dtype)
        if labels is not None:
            z = self._known(z, labels)
        low, high = self.bounds(z.device)
        return low.to(z) + (high - low).to(z) * z

    def _kernel_means(self, bandwidths: Tensor, kernel_weights: Tensor, device: torch.device) -> KernelMeans:
        low, high = self.bounds(device)
        t = bandwidths / (high - low)[:, None]  # [D, S]
        t = math.sqrt(2 * math.pi) * t * torch.erf(1 / (math.sqrt(2) * t)) + 2 * t**2 * torch.expm1(-0.5 / t**2)
        return _BoxMeans(low, high, bandwidths, kernel_weights, (t.prod(0) - 1) @ kernel_weights)


@dataclass(frozen=True)
class _BoxMeans:
    """A uniform box and S kernels, ready for points: products over the dimensions."""

    low: Tensor  # [D]
    high: Tensor  # [D]
    bandwidths: Tensor  # [S]
    kernel_weights: Tensor  # [S]
    own: Tensor  # [], E u(y, y')

    def cross(self, x: Tensor) -> Tensor:
        """E_y u(x_i, y): [N, D] -> [N]."""
        c = 1 / (math.sqrt(2) * self.bandwidths)
        upper, lower = (self.high - x)[..., None] * c, (self.low - x)[..., None] * c  # [N, D, S]
        mass = math.sqrt(math.pi) / 2 / (c * (self.high - self.low)[:, None])
        return (((torch.erf(upper) - torch.erf(lower)) * mass).prod(-2) - 1) @ self.kernel_weights
