"""The kernels of mmd2 and witness: families of radial functions, and sums of them over several bandwidths.

A family is a function kappa(r; s) of the squared distance r and a bandwidth s, kappa = kappa(r / s^2) up to a power of
s. `FAMILIES` is the table that everything in Python reads; csrc/common/families.hpp is the same for the compiled code,
and tests/test_kernels.py compares the two. To add a family:

    fastmmd/kernels.py                          facts and formulas in torch: checks, "reference", diagnostics
    csrc/common/families.hpp                    facts and formulas, from which CPU and CUDA kernels are generated
    fastmmd/backends/triton/mmd/families.py     the same for Triton
    fastmmd/ops/mmd/discrepancy.py              the docstring, the names that `kernel` takes

An exponential of r or sqrt(r) also takes part in the ladder and the folding of bandwidths where it sets `squarings`. A
kernel that is no function of the distance (polynomial, sigmoid) is no such family: it has no r for the shared distance
loops, u = k - k(0) does not cancel rounding, and its gradient is not along x_i - y_j.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Kernel:
    """A sum of S kernels of one family: sum_s weights[s] * kappa(r; bandwidths[s]), r the squared distance.

    bandwidths, weights: S floats, or [S] tensors in the compute dtype. A family without bandwidths has (1.0,).
    """

    family: str  # of FAMILIES
    bandwidths: tuple[float, ...] | Tensor
    weights: tuple[float, ...] | Tensor
    alpha: float = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a dtype that keep every kernel finite; csrc/common/families.hpp derives them."""

    rate: float  # of what multiplies r or its root
    steepness: float  # of slopes
    argument: float  # of r, where a kernel is a quotient
    divisor: float  # of imq's c = s^2, which is at least its reciprocal


LIMITS = {
    torch.float32: Limits(float.fromhex("0x1.fffffep127"), float.fromhex("0x1.fffffep107"), 1e30, 2.0**125),
    torch.float64: Limits(
        float.fromhex("0x1.fffffffffffffp1023"), float.fromhex("0x1.fffffffffffffp1003"), 1e300, 2.0**1021
    ),
}


class Kappa(NamedTuple):
    """A kernel on squared distances; None where not asked for."""

    u: Tensor  # kappa(r) - kappa(0)
    slope: Tensor | None  # kappa'(r); not finite at r = 0 where the kernel is not smooth
    bandwidth: Tensor | None  # d kappa / d bandwidth


class Family(ABC):
    """A family of kernels."""

    name: ClassVar[str]
    bounded: ClassVar[bool] = True  # kappa(0) = 1, and kappa vanishes far away; else kappa(0) = 0
    smooth: ClassVar[bool] = True  # kappa'(0) is finite
    takes_root: ClassVar[bool] = False  # computed from sqrt(r), not from r
    has_bandwidths: ClassVar[bool] = True
    has_alpha: ClassVar[bool] = False
    squarings: ClassVar[int] = 0  # of an exponential: how often kappa(r; s) is squared to get kappa(r; s / 2); else 0

    @abstractmethod
    def kappa(
        self, r: Tensor, s: float | Tensor, alpha: float = 1.0, *, slope: bool = False, bandwidth: bool = False
    ) -> Kappa:
        """kappa(r; s) - kappa(0; s) and the derivatives that are asked for, at the squared distances r."""


class Gaussian(Family):
    """exp(-r / (2 s^2))."""

    name = "gaussian"
    squarings = 2

    def kappa(
        self, r: Tensor, s: float | Tensor, alpha: float = 1.0, *, slope: bool = False, bandwidth: bool = False
    ) -> Kappa:
        t = 0.5 / _squared(s)
        k = torch.exp(-t * r) if slope or bandwidth else r
        ds = _vanishing(r, k) * (2 * t) / s if bandwidth else None
        return Kappa(torch.expm1(-t * r), -t * k if slope else None, ds)


class Laplacian(Family):
    """exp(-sqrt(r) / s)."""

    name = "laplacian"
    smooth = False
    takes_root = True
    squarings = 1

    def kappa(
        self, r: Tensor, s: float | Tensor, alpha: float = 1.0, *, slope: bool = False, bandwidth: bool = False
    ) -> Kappa:
        distance = r.sqrt()
        k = torch.exp(-distance / s)
        steep = -k / (2 * s * distance) if slope else None
        return Kappa(torch.expm1(-distance / s), steep, _vanishing(distance, k) / s**2 if bandwidth else None)


class InverseMultiquadric(Family):
    """c / (c + r), c = s^2."""

    name = "imq"

    def kappa(
        self, r: Tensor, s: float | Tensor, alpha: float = 1.0, *, slope: bool = False, bandwidth: bool = False
    ) -> Kappa:
        c: float | Tensor
        if isinstance(s, Tensor):
            most = LIMITS[s.dtype].divisor
            c = (s**2).clamp(1 / most, most)
        else:
            most = LIMITS[r.dtype].divisor
            c = min(max(s * s, 1 / most), most)
        r = r.clamp(max=LIMITS[r.dtype].argument)
        k = c / (c + r)
        u = -(r / (c + r))
        return Kappa(u, -k / (c + r) if slope else None, -2 * u * k / s if bandwidth else None)


class RationalQuadratic(Family):
    """(1 + r / (2 alpha s^2))^-alpha."""

    name = "rational_quadratic"
    has_alpha = True

    def kappa(
        self, r: Tensor, s: float | Tensor, alpha: float = 1.0, *, slope: bool = False, bandwidth: bool = False
    ) -> Kappa:
        t = 0.5 / (alpha * _squared(s))
        log = torch.log1p(t * r)
        u = torch.expm1(-alpha * log)
        steep = -alpha * t * torch.exp(-(alpha + 1) * log) if slope else None
        ds = (2 * alpha / s) * _vanishing(t * r, torch.exp(-(alpha + 1) * log)) if bandwidth else None
        return Kappa(u, steep, ds)


class Energy(Family):
    """-sqrt(r)."""

    name = "energy"
    bounded = False
    smooth = False
    takes_root = True
    has_bandwidths = False

    def kappa(
        self, r: Tensor, s: float | Tensor, alpha: float = 1.0, *, slope: bool = False, bandwidth: bool = False
    ) -> Kappa:
        distance = r.sqrt()
        steep = -0.5 / distance if slope else None
        return Kappa(-distance, steep, torch.zeros_like(r) if bandwidth else None)


FAMILIES: dict[str, Family] = {
    family.name: family for family in (Gaussian(), Laplacian(), InverseMultiquadric(), RationalQuadratic(), Energy())
}


def _squared(s: float | Tensor) -> float | Tensor:
    # Of numbers, which Python would not square, one that is neither 0 nor infinite.
    return s**2 if isinstance(s, Tensor) else min(max(s, 2.0**-500), 2.0**500) ** 2


def _vanishing(growing: Tensor, decaying: Tensor) -> Tensor:
    # inf * 0 at far pairs is 0 here; NaN stays NaN.
    return torch.where(decaying == 0, 0.0, growing * decaying)
