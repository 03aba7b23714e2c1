"""What operators hand to backends: each call is one frozen value, built once in `ops` and handed down unchanged.

Tensors are contiguous, in one compute dtype (float32 or float64), on one device. u = k - k(0). Gradients that are not
needed come back as empty tensors. The operators check, promote, normalize and differentiate around the calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from ..kernels import Kernel

T = TypeVar("T")


# --- mmd ---


@dataclass(frozen=True, slots=True)
class Sample:
    """Weighted points: B members of N points each, or with offsets C members of unequal sizes.

    With offsets member c is the rows offsets[c] to offsets[c + 1] of points [1, N, D] and weights [1, N]; rows from
    offsets[C] on are of no member.
    """

    points: Tensor  # [B, N, D]
    weights: Tensor | None = None  # [B, N], to be normalized to sum 1 in float64; None: 1 / N
    offsets: Tensor | None = None  # [C + 1] int64, ascending from 0


def members_of_rows(offsets: Tensor, rows: int) -> Tensor:
    """The member that each row of a sample with offsets [C + 1] is of, C for those of none: [rows] int64."""
    return torch.searchsorted(offsets[1:], torch.arange(rows, device=offsets.device), right=True)


class Mmd2Inputs(NamedTuple, Generic[T]):
    """One value per differentiable input of `Mmd2`: whether its gradient is needed, or the gradient."""

    x: T
    y: T
    x_weights: T
    y_weights: T
    bandwidths: T
    kernel_weights: T


@dataclass(frozen=True, slots=True)
class Mmd2:
    """a_x E_xx + a_y E_yy - 2 E_xy.

    E_xy = sum_ij wx_i wy_j u(x_i, y_j) with normalized weights; a_x = 1 / (1 - sum_i wx_i^2) if unbiased, else 1.
    Without y: the self-term a_x E_xx alone. With fixed_y a_y E_yy is left out, and all gradients but those of x and its
    weights: it was computed in a call of its own, from whose kernel values these must not differ by a rounding that
    they share, as those of folded bandwidths do.
    """

    x: Sample
    y: Sample | None  # with offsets where x has them
    kernel: Kernel
    unbiased: bool
    needs: Mmd2Inputs[bool]
    fixed_y: bool = False  # only with y

    @property
    def may_fold(self) -> bool:
        """Whether what folding bandwidths rounds, in all pairs alike, cancels between the terms of the call."""
        return self.y is not None and not self.fixed_y


class WitnessInputs(NamedTuple, Generic[T]):
    """One value per differentiable input of `Witness`."""

    points: T
    samples: T
    weights: T
    bandwidths: T
    kernel_weights: T


@dataclass(frozen=True, slots=True)
class Witness:
    """sum_j weights_j u(points_i, samples_j), weights signed."""

    points: Tensor  # [P, D]
    samples: Tensor  # [N, D]
    weights: Tensor  # [N]
    kernel: Kernel


@dataclass(frozen=True, slots=True)
class WitnessBackward:
    """The gradients of grad . witness."""

    forward: Witness
    grad: Tensor  # [P]
    needs: WitnessInputs[bool]


class MmdBackend(Protocol):
    """What the module `mmd` of a backend provides."""

    def mmd2(self, call: Mmd2) -> tuple[Tensor, Mmd2Inputs[Tensor]]:
        """Value [B], always float64, and gradients in the shape of their inputs, the last two [B, S].

        The weights' gradients are in the weights as given, through a_x and the normalization.

        With offsets the value is [C] and the last two gradients are [C, S]; in the others a row holds the gradient of
        its own member's value, and rows of no member are zero. A member without points has value and gradients 0; one
        without points on one side only has the value NaN, and so has, if unbiased, one with a single point on a side.
        Time is sum_c N_c M_c pairs, memory O(N + M).
        """
        ...

    def witness(self, call: Witness) -> Tensor:
        """[P]."""
        ...

    def witness_backward(self, call: WitnessBackward) -> WitnessInputs[Tensor]:
        """Gradients in the shape of their inputs, the last two [S]."""
        ...


# --- fourier ---


@dataclass(frozen=True, slots=True)
class Features:
    """Random Fourier features; S bandwidths share `count` in equal consecutive parts.

    Features of part s are scaled by sqrt(kernel_weights[s] / (count / S)).
    """

    key: Tensor  # [2] int64: seed, index of the first feature
    count: int
    bandwidths: tuple[float, ...]
    kernel_weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class FourierSum:
    """sum_i weights_i phi(x_i)."""

    x: Tensor  # [B, N, D]
    weights: Tensor  # [B, N]
    features: Features


@dataclass(frozen=True, slots=True)
class FourierFunction:
    """phi(x_i) . coefficients, and its gradient in x."""

    x: Tensor  # [B, N, D]
    coefficients: Tensor  # [B, 2 * count], cosines first
    features: Features
    needs_value: bool
    needs_gradient: bool


@dataclass(frozen=True, slots=True)
class FourierFrequencies:
    """W = G / bandwidth, on the device of the features' key."""

    features: Features
    dim: int
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class FourierDiscrepancy:
    """delta = sum_k alpha_k |zeta_k|^2, zeta = mean phi(draws) - mean phi(codes).

    |zeta_k|^2 is over the cosine and the sine of a frequency.
    """

    codes: Tensor  # [M, D]
    draws: Tensor  # [N, D]
    alpha: Tensor  # [count]
    features: Features
    needs_slopes: bool


@dataclass(frozen=True, slots=True)
class FourierDiscrepancyBackward:
    """Gradients of grad * delta in codes and draws."""

    codes: Tensor  # [M, D]
    draws: Tensor  # [N, D]
    slopes: Tensor  # [2 * count], of the forward pass
    features: Features
    grad: Tensor  # 0-d
    needs_codes: bool
    needs_draws: bool


@dataclass(frozen=True, slots=True)
class FourierAscent:
    """Moves alpha by `rate` of the way to |zeta_k|^2 over its mean over k."""

    codes: Tensor  # [M, D]
    draws: Tensor  # [N, D]
    alpha: Tensor  # [count], moved in place; float32 or float64 whatever the dtype of the others
    features: Features
    rate: float


class FourierBackend(Protocol):
    """What the module `fourier` of a backend provides."""

    def fourier_sum(self, call: FourierSum) -> Tensor:
        """[B, 2 * count], cosines first."""
        ...

    def fourier_function(self, call: FourierFunction) -> tuple[Tensor, Tensor]:
        """Value [B, N] and gradient in x [B, N, D]."""
        ...

    def fourier_frequencies(self, call: FourierFrequencies) -> Tensor:
        """[count, D]."""
        ...

    def fourier_discrepancy(self, call: FourierDiscrepancy) -> tuple[Tensor, Tensor]:
        """delta, 0-d, and its slopes 2 alpha zeta [2 * count]."""
        ...

    def fourier_discrepancy_backward(self, call: FourierDiscrepancyBackward) -> tuple[Tensor, Tensor]:
        """Gradients in codes and draws."""
        ...

    def fourier_ascent(self, call: FourierAscent) -> None:
        """Changes alpha."""
        ...


# --- parzen ---


@dataclass(frozen=True, slots=True)
class Parzen:
    """Points, samples, and the state that the samples change."""

    points: Tensor  # [M, D]
    samples: Tensor  # [N, D]
    sigmas: tuple[float, ...]  # S, from 2^-40 to 2^40 (float64: 2^-500 to 2^500)
    minimum: Tensor  # [M] float64: the smallest squared distance so far, at first inf
    sums: Tensor  # [S, M] float64: sum_j exp(-(r_ij - minimum_i) / (2 sigma_s^2)), at first 0
    empty: bool = False  # whether these are the state before the first sample


@dataclass(frozen=True, slots=True)
class ParzenBackward:
    """Gradients of sum_si grad_si (log sums_si - minimum_i / (2 sigma_s^2)), state and all."""

    forward: Parzen
    grad: Tensor  # [S, M]
    needs_points: bool
    needs_samples: bool


class ParzenBackend(Protocol):
    """What the module `parzen` of a backend provides."""

    def parzen_update(self, call: Parzen) -> None:
        """Adds the samples to the state, in place."""
        ...

    def parzen_backward(self, call: ParzenBackward) -> tuple[Tensor, Tensor]:
        """Gradients in points and samples."""
        ...
