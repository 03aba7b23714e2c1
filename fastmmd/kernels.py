"""The kernels of mmd2 and witness: families of radial functions, and sums of them over several bandwidths."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Kernel:
    """A sum of S kernels of one family: sum_s weights[s] * kappa(r; bandwidths[s]), r the squared distance.

    bandwidths, weights: S floats, or [S] tensors in the compute dtype. "energy" has bandwidths (1.0,).
    """

    family: str
    bandwidths: tuple[float, ...] | Tensor
    weights: tuple[float, ...] | Tensor
    alpha: float = 1.0
