"""Kernel sums of MMD and witness in plain torch.

`common.mmd` makes them of sums over columns, sum_j v_j u(p_i, q_j), and their gradients in p_i, with u = k - k(0).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels import FAMILIES, Kernel
from ..calls import Mmd2, Mmd2Inputs, Witness, WitnessBackward, WitnessInputs
from ..common import mmd as common
from ..common.mmd import Measure, RowSums, Sums
from .tiles import row_tiles

F64 = torch.float64


def mmd2(call: Mmd2) -> tuple[Tensor, Mmd2Inputs[Tensor]]:
    """Value [B] in float64 and six gradients; see `calls.MmdBackend.mmd2`."""
    return common.mmd2(sum_rows, Measure, call)


def witness(call: Witness) -> Tensor:
    """sum_j weights_j u(points_i, samples_j): [P]."""
    return common.witness(sum_rows, Measure, call)


def witness_backward(call: WitnessBackward) -> WitnessInputs[Tensor]:
    """The five gradients of grad . witness; see `calls.MmdBackend.witness_backward`."""
    return common.witness_backward(sum_rows, Measure, call)


def sum_rows(call: RowSums[Measure]) -> Sums:
    """See `common.mmd.RowSums`; in float64, every pair from both sides, and pairs of different members too."""
    rows, columns, kernel, row_weights = call.rows, call.columns, call.kernel, call.row_weights
    factor, gradient = call.factor, call.needs_gradient
    p, q, mass = rows.points, columns.points, columns.mass
    v = p.new_ones(q.shape[:2], dtype=F64) if mass is None else mass.to(F64)
    v = v * (columns.spread(factor) if isinstance(factor, Tensor) else factor)
    family, per_kernel = FAMILIES[kernel.family], row_weights is not None
    (batch, n, dim), members = p.shape, _members(kernel)
    p, q = p.to(F64), q.to(F64)
    value = p.new_zeros((batch, n))
    gradients = p.new_zeros((batch, n, dim) if gradient else (batch, 0, dim))
    by_row = p.new_zeros((2, batch, n, len(members) if per_kernel else 0))
    for b, i in row_tiles(batch, n, q.shape[1]):
        r = _squared_distances(p[b, i], q[b])
        if rows.offsets is not None:  # u, its derivative and the gradient are 0 at r = 0
            r = r.where(rows.member[i, None] == columns.member, 0.0)
        total = torch.zeros_like(r)
        steep = torch.zeros_like(r)
        for index, (s, w) in enumerate(members):
            part = family.kappa(r, s, kernel.alpha, slope=gradient, bandwidth=per_kernel)
            total += w * part.u
            if part.slope is not None:
                steep += w * part.slope
            if part.bandwidth is not None and row_weights is not None:
                by_row[0, b, i, index] = w * row_weights[b, i] * _over_columns(part.bandwidth, v[b])
                by_row[1, b, i, index] = row_weights[b, i] * _over_columns(part.u, v[b])
        value[b, i] = _over_columns(total, v[b])
        if gradient:
            # A point has no slope towards itself, whose rounding may be larger than all other terms.
            c = torch.where(r == 0, 0.0, steep * v[b, None])
            gradients[b, i] = p[b, i] * c.sum(-1, keepdim=True) - c @ q[b]
    return Sums(value, gradients, rows.total(by_row[0]), rows.total(by_row[1]))


def _members(kernel: Kernel) -> list[tuple[float | Tensor, float | Tensor]]:
    s = kernel.bandwidths
    if isinstance(s, Tensor):  # most kernels take the square, which would make a negative one valid
        s = s.where(s > 0, torch.nan)
    return list(zip(s, kernel.weights, strict=True))


def _squared_distances(p: Tensor, q: Tensor) -> Tensor:
    # By differences: the matrix-product form cancels for near pairs. NaN for infinite points, which would disappear.
    p, q = p + (p - p), q + (q - q)
    return torch.cdist(p, q, compute_mode="donot_use_mm_for_euclid_dist").square_()


def _over_columns(tile: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bij,bj->bi", tile, v)
