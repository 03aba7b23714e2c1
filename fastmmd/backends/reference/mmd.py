"""Kernel sums of MMD and witness in plain torch.

Everything is built from one pass over "rows against columns": sum_j v_j u(p_i, q_j) and its gradient in p_i, with
u = k - k(0). In a signed measure of total weight zero the constant k(0) drops out and takes the rounding with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..specs import KernelSpec
from .tiles import row_tiles

F64 = torch.float64


class Kappa(NamedTuple):
    """One kernel on a tile of squared distances; None where not asked for."""

    u: Tensor  # kappa(r) - kappa(0)
    slope: Tensor | None  # kappa'(r) - kappa'(0); kappa'(r) for the kernels that are not smooth at r = 0
    bandwidth: Tensor | None  # d kappa / d bandwidth


@dataclass
class Rows:
    """Sums over columns. value [B, N]; gradient [B, N, D]; per kernel [B, S]: sum_i,j row_i v_j (...)."""

    value: Tensor
    gradient: Tensor
    bandwidths: Tensor
    kernel_weights: Tensor

    def __add__(self, other: Rows) -> Rows:
        return Rows(
            self.value + other.value,
            self.gradient + other.gradient,
            self.bandwidths + other.bandwidths,
            self.kernel_weights + other.kernel_weights,
        )


def kappa(r: Tensor, name: str, s: float | Tensor, alpha: float, slope: bool, bandwidth: bool) -> Kappa:
    """kappa(r; s) - kappa(0; s) and its derivatives at the squared distances r (DESIGN: the kernels of mmd2)."""
    if name == "gaussian":
        t = 0.5 / s**2
        u = torch.expm1(-t * r)
        ds = _vanishing(r, torch.exp(-t * r)) / s**3 if bandwidth else None
        return Kappa(u, -t * u if slope else None, ds)
    if name == "imq":
        c = s**2
        k = c / (c + r)
        u = -(r / (c + r))
        return Kappa(u, -u * (1 + k) / c if slope else None, -2 * u * k / s if bandwidth else None)
    if name == "rational_quadratic":
        t = 0.5 / (alpha * s**2)
        log = torch.log1p(t * r)
        u = torch.expm1(-alpha * log)
        steep = -alpha * t * torch.expm1(-(alpha + 1) * log) if slope else None
        ds = (2 * alpha / s) * _vanishing(t * r, torch.exp(-(alpha + 1) * log)) if bandwidth else None
        return Kappa(u, steep, ds)
    distance = r.sqrt()
    if name == "laplacian":
        k = torch.exp(-distance / s)
        steep = _zero_at_origin(-k / (2 * s * distance), r) if slope else None
        return Kappa(torch.expm1(-distance / s), steep, _vanishing(distance, k) / s**2 if bandwidth else None)
    steep = _zero_at_origin(-0.5 / distance, r) if slope else None  # energy
    return Kappa(-distance, steep, torch.zeros_like(r) if bandwidth else None)


def slope_at_origin(kernel: KernelSpec) -> float | Tensor:
    """sum_s w_s kappa_s'(0): the part of the slope that `kappa` leaves out."""
    if kernel.name in ("laplacian", "energy"):
        return 0.0
    scale = -1.0 if kernel.name == "imq" else -0.5
    return sum((scale * w / s**2 for s, w in _members(kernel)), start=0.0)


def mmd2(
    x: Tensor,
    y: Tensor | None,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    kernel: KernelSpec,
    unbiased: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Value [B] in float64 and six gradients; see `specs.Backend.mmd2`."""
    spec = needs[4] or needs[5]
    sx = _measure(x, x_weights, unbiased)
    xx = rows(x, x, sx.factor * sx.weights, kernel, needs[0], spec, sx.weights)
    samples, parts, others = [sx], [xx], [x.new_empty(0), x.new_empty(0)]
    if y is not None:
        sy = _measure(y, y_weights, unbiased)
        yy = rows(y, y, sy.factor * sy.weights, kernel, needs[1], spec, sy.weights)
        samples = [sx, sy]
        parts = [
            xx + rows(x, y, -sy.weights, kernel, needs[0], spec, sx.weights),
            yy + rows(y, x, -sx.weights, kernel, needs[1], spec, sy.weights),
        ]
        others = _gradients(sy, parts[1], yy, unbiased, needs[1], needs[3])
    totals = [(sample.weights * part.value).sum(-1) for sample, part in zip(samples, parts, strict=True)]
    own = _gradients(sx, parts[0], xx, unbiased, needs[0], needs[2])
    per_kernel = [
        sum(getattr(part, name) for part in parts) if need else x.new_empty(0)
        for name, need in (("bandwidths", needs[4]), ("kernel_weights", needs[5]))
    ]
    gradients = (own[0], others[0], own[1], others[1], *per_kernel)
    return (torch.stack(totals).sum(0), *[gradient.to(x.dtype) for gradient in gradients])


def witness(points: Tensor, samples: Tensor, weights: Tensor, kernel: KernelSpec) -> Tensor:
    """sum_j weights_j u(points_i, samples_j): [P]."""
    found = rows(points[None], samples[None], weights[None].to(F64), kernel, False, False, None)
    return found.value[0].to(points.dtype)


def witness_backward(
    grad: Tensor,
    points: Tensor,
    samples: Tensor,
    weights: Tensor,
    kernel: KernelSpec,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients of grad . witness in points [P, D], samples [N, D], weights [N], bandwidths [S], kernel weights [S]."""
    g, v = grad[None].to(F64), weights[None].to(F64)
    out = [points.new_empty(0) for _ in range(5)]
    if needs[0] or needs[3] or needs[4]:
        found = rows(points[None], samples[None], v, kernel, needs[0], needs[3] or needs[4], g)
        out[0] = (2 * g[..., None] * found.gradient)[0] if needs[0] else out[0]
        out[3] = found.bandwidths[0] if needs[3] else out[3]
        out[4] = found.kernel_weights[0] if needs[4] else out[4]
    if needs[1] or needs[2]:
        found = rows(samples[None], points[None], g, kernel, needs[1], False, None)
        out[1] = (2 * v[..., None] * found.gradient)[0] if needs[1] else out[1]
        out[2] = found.value[0] if needs[2] else out[2]
    return tuple(gradient.to(points.dtype) for gradient in out)


def rows(
    p: Tensor,
    q: Tensor,
    v: Tensor,
    kernel: KernelSpec,
    gradient: bool,
    per_kernel: bool,
    row_weights: Tensor | None,
) -> Rows:
    """sum_j v_j u(p_i, q_j) and sum_j v_j k'(r_ij) (p_i - q_j), in float64.

    p [B, N, D]; q [B, M, D]; v [B, M] and row_weights [B, N] float64 (the latter for the sums per kernel).
    """
    (batch, n, dim), members = p.shape, _members(kernel)
    p, q = p.to(F64), q.to(F64)
    out = Rows(
        p.new_zeros((batch, n)),
        p.new_zeros((batch, n, dim) if gradient else (batch, 0, dim)),
        p.new_zeros((batch, len(members))),
        p.new_zeros((batch, len(members))),
    )
    for b, i in row_tiles(batch, n, q.shape[1]):
        r = _squared_distances(p[b, i], q[b])
        total = torch.zeros_like(r)
        steep = torch.zeros_like(r)
        for index, (s, w) in enumerate(members):
            part = kappa(r, kernel.name, s, kernel.alpha, gradient, per_kernel)
            total += w * part.u
            if part.slope is not None:
                steep += w * part.slope
            if part.bandwidth is not None and row_weights is not None:
                out.bandwidths[b, index] += w * _bilinear(row_weights[b, i], part.bandwidth, v[b])
                out.kernel_weights[b, index] += _bilinear(row_weights[b, i], part.u, v[b])
        out.value[b, i] = torch.einsum("bij,bj->bi", total, v[b])
        if gradient:
            c = steep * v[b, None]
            out.gradient[b, i] = p[b, i] * c.sum(-1, keepdim=True) - c @ q[b]
    if gradient:
        mass, moment = v.sum(-1)[:, None, None], torch.einsum("bj,bjd->bd", v, q)[:, None]
        out.gradient += slope_at_origin(kernel) * (mass * p - moment)
    return out


class Sample(NamedTuple):
    """One sample: points [B, N, D], normalised weights [B, N], their sum before [B, 1], factor of the self-term."""

    points: Tensor
    weights: Tensor
    total: Tensor
    factor: Tensor  # [B, 1]: 1, or 1 / (1 - sum w^2) if unbiased


def _measure(x: Tensor, weights: Tensor | None, unbiased: bool) -> Sample:
    w = x.new_ones(x.shape[:2], dtype=F64) if weights is None else weights.to(F64)
    total = w.sum(-1, keepdim=True)
    w = w / total
    factor = 1 / (1 - w.square().sum(-1, keepdim=True)) if unbiased else torch.ones_like(total)
    return Sample(x, w, total, factor)


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
        out[1] = (g - (w * g).sum(-1, keepdim=True)) / sample.total  # through the normalisation
    return out


def _members(kernel: KernelSpec) -> list[tuple[float | Tensor, float | Tensor]]:
    return list(zip(kernel.bandwidths, kernel.weights, strict=True))


def _squared_distances(p: Tensor, q: Tensor) -> Tensor:
    # By differences: the matrix-product form cancels for near pairs.
    return torch.cdist(p, q, compute_mode="donot_use_mm_for_euclid_dist").square_()


def _bilinear(left: Tensor, tile: Tensor, right: Tensor) -> Tensor:
    return torch.einsum("bi,bij,bj->b", left, tile, right)


def _vanishing(growing: Tensor, decaying: Tensor) -> Tensor:
    # inf * 0 at far pairs is 0 here; NaN stays NaN.
    return torch.where(decaying == 0, 0.0, growing * decaying)


def _zero_at_origin(slope: Tensor, r: Tensor) -> Tensor:
    return torch.where(r == 0, 0.0, slope)
