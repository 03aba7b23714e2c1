"""mmd2 and witness from sums over columns: what the backends that have nothing but such sums share.

    value_i    = sum_j v_j u(p_i, q_j)
    gradient_i = sum_j v_j k'(r_ij) (p_i - q_j)

with u = k - k(0). In a signed measure of total weight zero k(0) drops out and takes the rounding with it. The weights
come as given, v_j = factor * mass_j, since normalised ones would round each on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .specs import KernelSpec

F64 = torch.float64


@dataclass
class Rows:
    """Sums over columns, float64. value [B, N]; gradient [B, N, D]; per kernel [B, S]: sum_i,j row_i v_j (...)."""

    value: Tensor
    gradient: Tensor
    bandwidths: Tensor
    kernel_weights: Tensor

    def plus(self, other: Rows, times: float = 1.0) -> Rows:
        """The sums with those over other columns; times: how often their values and sums per kernel count."""
        return Rows(
            self.value + times * other.value,
            self.gradient + other.gradient,
            self.bandwidths + times * other.bandwidths,
            self.kernel_weights + times * other.kernel_weights,
        )


class SumRows(Protocol):
    """What a backend provides."""

    def __call__(
        self,
        p: Tensor,  # [B, N, D]
        q: Tensor,  # [B, M, D]
        mass: Tensor | None,  # [B, M], signed; None: ones
        factor: Tensor,  # [B, 1] float64
        kernel: KernelSpec,
        gradient: bool,
        row_weights: Tensor | None,  # [B, N] float64; None: no sums per kernel
    ) -> Rows:
        """The sums; those that are not asked for are empty."""
        ...


class Sample(NamedTuple):
    """One sample: points [B, N, D], weights as given, their normalised form [B, N], 1 / their sum [B, 1]."""

    points: Tensor
    mass: Tensor | None
    weights: Tensor
    scale: Tensor
    factor: Tensor  # [B, 1], of the self-term: 1, or 1 / (1 - sum w^2) if unbiased


def measure(x: Tensor, weights: Tensor | None, unbiased: bool) -> Sample:
    """The sample with what its weights, normalised in float64, give."""
    w = x.new_ones(x.shape[:2], dtype=F64) if weights is None else weights.to(F64)
    scale = 1 / w.sum(-1, keepdim=True)
    w = w * scale
    factor = 1 / (1 - w.square().sum(-1, keepdim=True)) if unbiased else torch.ones_like(scale)
    return Sample(x, weights, w, scale, factor)


def mmd2(
    sum_rows: SumRows,
    x: Tensor,
    y: Tensor | None,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    kernel: KernelSpec,
    unbiased: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Value [B] in float64 and six gradients; see `specs.Backend.mmd2`."""

    def sums(rows: Sample, columns: Sample, factor: Tensor, gradient: bool) -> Rows:
        row_weights = rows.weights if needs[4] or needs[5] else None
        return sum_rows(
            rows.points, columns.points, columns.mass, factor * columns.scale, kernel, gradient, row_weights
        )

    sx = measure(x, x_weights, unbiased)
    xx = sums(sx, sx, sx.factor, needs[0])
    of_x, others = xx, [x.new_empty(0), x.new_empty(0)]
    value: Tensor | float = 0.0
    if y is not None:
        sy = measure(y, y_weights, unbiased)
        both = needs[1] or needs[3]  # else x and y need meet from one side only
        yy = sums(sy, sy, sy.factor, needs[1])
        of_x = xx.plus(sums(sx, sy, -torch.ones_like(sx.factor), needs[0]), 1.0 if both or needs[2] else 2.0)
        of_y = yy
        if both or needs[2]:
            of_y = yy.plus(sums(sy, sx, -torch.ones_like(sx.factor), needs[1]))
        others = _gradients(sy, of_y, yy, unbiased, needs[1], needs[3])
        value = (sy.weights * of_y.value).sum(-1)
        per_kernel = [of_x.bandwidths + of_y.bandwidths, of_x.kernel_weights + of_y.kernel_weights]
    else:
        per_kernel = [of_x.bandwidths, of_x.kernel_weights]
    own = _gradients(sx, of_x, xx, unbiased, needs[0], needs[2])
    per_kernel = [sums if need else x.new_empty(0) for sums, need in zip(per_kernel, needs[4:], strict=True)]
    gradients = (own[0], others[0], own[1], others[1], *per_kernel)
    return ((sx.weights * of_x.value).sum(-1) + value, *[gradient.to(x.dtype) for gradient in gradients])


def _gradients(
    sample: Sample, all_rows: Rows, self_rows: Rows, unbiased: bool, points: bool, weights: bool
) -> list[Tensor]:
    """The gradients of mmd2 in one sample's points [B, N, D] and weights [B, N]; empty where not needed."""
    w, a = sample.weights, sample.factor
    out = [w.new_empty(0), w.new_empty(0)]
    if points:
        out[0] = 4 * w[..., None] * all_rows.gradient
    if weights:
        g = 2 * all_rows.value
        if unbiased:  # the factor depends on the weights; self_rows already holds it once
            g = g + 2 * w * a * (w * self_rows.value).sum(-1, keepdim=True)
        out[1] = (g - (w * g).sum(-1, keepdim=True)) * sample.scale  # through the normalisation
    return out


def witness(sum_rows: SumRows, points: Tensor, samples: Tensor, weights: Tensor, kernel: KernelSpec) -> Tensor:
    """sum_j weights_j u(points_i, samples_j): [P]."""
    one = points.new_ones((1, 1), dtype=F64)
    return sum_rows(points[None], samples[None], weights[None], one, kernel, False, None).value[0].to(points.dtype)


def witness_backward(
    sum_rows: SumRows,
    grad: Tensor,
    points: Tensor,
    samples: Tensor,
    weights: Tensor,
    kernel: KernelSpec,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients of grad . witness in points [P, D], samples [N, D], weights [N], bandwidths [S], kernel weights [S]."""
    one, g, v = points.new_ones((1, 1), dtype=F64), grad[None], weights[None]
    out = [points.new_empty(0) for _ in range(5)]
    if needs[0] or needs[3] or needs[4]:
        row_weights = g.to(F64) if needs[3] or needs[4] else None
        found = sum_rows(points[None], samples[None], v, one, kernel, needs[0], row_weights)
        out[0] = (2 * g[..., None] * found.gradient)[0] if needs[0] else out[0]
        out[3] = found.bandwidths[0] if needs[3] else out[3]
        out[4] = found.kernel_weights[0] if needs[4] else out[4]
    if needs[1] or needs[2]:
        found = sum_rows(samples[None], points[None], g, one, kernel, needs[1], None)
        out[1] = (2 * v[..., None] * found.gradient)[0] if needs[1] else out[1]
        out[2] = found.value[0] if needs[2] else out[2]
    return tuple(gradient.to(points.dtype) for gradient in out)
