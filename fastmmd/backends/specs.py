"""The interface of a backend, and the descriptions that operators hand to it beside the tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class KernelSpec:
    """A sum of S kernels: sum_s weights[s] * kappa(r; bandwidths[s]), r the squared distance.

    bandwidths, weights: S floats, or [S] tensors in the compute dtype. "energy" has bandwidths (1.0,).
    """

    name: str
    bandwidths: tuple[float, ...] | Tensor
    weights: tuple[float, ...] | Tensor
    alpha: float = 1.0


@dataclass(frozen=True)
class FeatureSpec:
    """Random Fourier features; S bandwidths share `count` in equal consecutive parts.

    key: int64 [2], seed and first feature index. Features of part s are scaled by sqrt(weights[s] / (count / S)).
    """

    key: Tensor
    count: int
    bandwidths: tuple[float, ...]
    weights: tuple[float, ...]


class Backend(Protocol):
    """What a backend module provides. The operators check, promote, normalize and differentiate around it.

    Tensors come contiguous, in one compute dtype (float32 or float64) on one device. u = k - k(0). Gradients that are
    not needed come back as empty tensors.
    """

    def mmd2(
        self,
        x: Tensor,  # [B, N, D]
        y: Tensor | None,  # [B, M, D]; None: the self-term a_x E_xx alone
        x_weights: Tensor | None,  # [B, N], to be normalized to sum 1 in float64; None: 1 / N
        y_weights: Tensor | None,  # [B, M]
        kernel: KernelSpec,
        unbiased: bool,
        needs: Sequence[bool],  # gradients in x, y, x_weights, y_weights, bandwidths, kernel_weights
        x_offsets: Tensor | None = None,  # [C + 1] int64, ascending from 0; None: as above
        y_offsets: Tensor | None = None,  # [C + 1], given with x_offsets, and y with both
    ) -> tuple[Tensor, ...]:
        """a_x E_xx + a_y E_yy - 2 E_xy [B], always float64, and its six gradients, the last two [B, S].

        E_xy = sum_ij wx_i wy_j u(x_i, y_j) with normalized weights; a_x = 1 / (1 - sum_i wx_i^2) if unbiased, else 1.
        The weights' gradients are in the weights as given, through a_x and the normalization.

        With offsets there are C members of unequal sizes: member c is the rows x_offsets[c] to x_offsets[c + 1] of
        x [1, N, D] and x_weights [1, N], and so with y. The value is [C], the last two gradients are [C, S]; in the
        others a row holds the gradient of its own member's value, and rows from offsets[C] on are zero. A member
        without points has value and gradients 0; one without points on one side only has the value NaN, and so has,
        if unbiased, one with a single point on a side. Time is sum_c N_c M_c pairs, memory O(N + M).
        """
        ...

    def witness(self, points: Tensor, samples: Tensor, weights: Tensor, kernel: KernelSpec) -> Tensor:
        """sum_j weights_j u(points_i, samples_j), weights signed: [P, D], [N, D], [N] -> [P]."""
        ...

    def witness_backward(
        self,
        grad: Tensor,  # [P]
        points: Tensor,
        samples: Tensor,
        weights: Tensor,
        kernel: KernelSpec,
        needs: Sequence[bool],  # points, samples, weights, bandwidths, kernel_weights
    ) -> tuple[Tensor, ...]:
        """The five gradients of grad . witness."""
        ...

    def fourier_sum(self, x: Tensor, weights: Tensor, features: FeatureSpec) -> Tensor:
        """sum_i w_i phi(x_i): [B, N, D], [B, N] -> [B, 2 * count], cosines first."""
        ...

    def fourier_function(
        self, x: Tensor, coefficients: Tensor, features: FeatureSpec, needs_value: bool, needs_grad: bool
    ) -> tuple[Tensor, Tensor]:
        """phi(x_i) . c and its gradient in x: [B, N, D], [B, 2 * count] -> [B, N], [B, N, D]."""
        ...

    def fourier_frequencies(self, features: FeatureSpec, dim: int, dtype: torch.dtype) -> Tensor:
        """W = G / bandwidth: [count, dim], on the device of features.key."""
        ...

    def fourier_discrepancy(
        self,
        codes: Tensor,  # [M, D]
        draws: Tensor,  # [N, D]
        alpha: Tensor,  # [count]
        features: FeatureSpec,
        needs_slopes: bool,
    ) -> tuple[Tensor, Tensor]:
        """delta = sum_k alpha_k |zeta_k|^2, 0-d, and its slopes 2 alpha zeta [2 * count], empty where not needed.

        zeta = mean phi(draws) - mean phi(codes); |zeta_k|^2 is over the cosine and the sine of a frequency.
        """
        ...

    def fourier_discrepancy_backward(
        self,
        grad: Tensor,  # 0-d
        codes: Tensor,
        draws: Tensor,
        slopes: Tensor,
        features: FeatureSpec,
        needs: Sequence[bool],  # codes, draws
    ) -> tuple[Tensor, Tensor]:
        """Gradients of grad * delta in codes and draws."""
        ...

    def fourier_ascent(
        self,
        alpha: Tensor,  # [count], float32 or float64 whatever the dtype of the others
        codes: Tensor,
        draws: Tensor,
        features: FeatureSpec,
        rate: float,
    ) -> None:
        """Moves alpha in place by `rate` of the way to |zeta_k|^2 over its mean over k."""
        ...

    def parzen_update(
        self, points: Tensor, samples: Tensor, sigmas: Sequence[float], minimum: Tensor, sums: Tensor
    ) -> None:
        """Add samples [N, D] to the state of points [M, D], in place.

        minimum [M], compute dtype: the smallest squared distance so far, at first inf.
        sums [S, M], float64: sum_j exp(-(r_ij - minimum_i) / (2 sigma_s^2)), at first 0.
        """
        ...

    def parzen_backward(
        self,
        grad: Tensor,  # [S, M]
        points: Tensor,
        samples: Tensor,
        sigmas: Sequence[float],
        minimum: Tensor,
        sums: Tensor,
        needs: Sequence[bool],  # points, samples
    ) -> tuple[Tensor, Tensor]:
        """Gradients of sum_si grad_si (log sums_si - minimum_i / (2 sigma_s^2)) in points and samples."""
        ...

    def unavailable(self, device_type: str) -> str | None:
        """Why the backend cannot run on this device type and what to do; None where it can."""
        ...

    def unsupported(self, operation: str, dtype: torch.dtype, device_type: str) -> str | None:
        """Why it cannot run this operation ("mmd", "fourier", "parzen") in this dtype; None where it can."""
        ...
