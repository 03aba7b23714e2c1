"""The last step of a sum for mmd2 and witness: all splits together, in their units, with what tiles left out."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ....device_cache import constant
from ...common.mmd import F64, RowSums, Sums
from .. import interpreted
from ..launch import FUSED
from ..math import checked
from .plan import Plan
from .plan_kernel import TERMS
from .segments import block_of_rows, offsets_of, row_blocks, segment
from .statistics import Cloud


@triton.jit(do_not_specialize=["n", "parts", "factor_stride", "members"])
def finish_kernel(
    p,  # [B, n, dim]
    value,  # [splits, B, n] float64
    gradient,  # [splits, B, n, dim] float64; unread without GRADIENT
    offsets,  # [B + 1], of the rows; unread unless RAGGED
    center,  # [B, dim] float64, of the columns
    moment,  # [B, dim] float64: sum_j mass_j (q_j - center)
    terms,  # [B, 7] float64
    factor,  # [1] or [B] float64
    all_values,  # [B, n] float64
    all_gradients,  # [B, n, dim] float64; unread without GRADIENT
    n,
    parts,  # splits
    factor_stride,
    dim,
    members,  # B
    RAGGED: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The sums over all splits in their units, with what the tiles left out. Infinite points give NaN."""
    block, b = block_of_rows(offsets, n, members, BLOCK_I, RAGGED)
    all_rows = tl.cast(n, tl.int64) * (1 if RAGGED else members)
    first_row, n = segment(offsets, b, n, RAGGED)
    i = block * BLOCK_I + tl.arange(0, BLOCK_I)
    terms += b * TERMS
    shift, offset, mass, poison = tl.load(terms + 1), tl.load(terms + 2), tl.load(terms + 3), tl.load(terms + 4)
    unit = tl.load(factor + b * factor_stride)
    row = first_row + i
    values = tl.zeros([BLOCK_I], tl.float64) + poison
    for split in range(parts):
        values += tl.load(value + split * all_rows + row, mask=i < n, other=0.0)
    for first in range(0, dim, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        there = (i < n)[:, None] & (d < dim)[None, :]
        at = row[:, None] * dim + d[None, :]
        points = checked(tl.load(p + at, mask=there, other=0.0).to(tl.float64))
        values += tl.sum(points - points, axis=1)
        if GRADIENT:
            middle = tl.load(center + b * dim + d, mask=d < dim, other=0.0)
            left_out = mass * (points - middle[None, :])
            left_out -= tl.load(moment + b * dim + d, mask=d < dim, other=0.0)[None, :]
            g = shift * left_out
            for split in range(parts):
                g += tl.load(gradient + split * all_rows * dim + at, mask=there, other=0.0)
            tl.store(all_gradients + at, unit * g, mask=there)
    tl.store(all_values + row, unit * (values - offset * mass), mask=i < n)


def units_of(factor: Tensor | float, device: torch.device) -> tuple[Tensor, int]:
    """The factor [1] or [B] of a launch, and elements from one member's to the next."""
    return (factor.contiguous(), 1) if isinstance(factor, Tensor) else (constant((factor,), device, F64), 0)


def finish(plan: Plan, call: RowSums[Cloud], value: Tensor, slopes: Tensor) -> Sums:
    """The rows' sums of those of the splits, value [splits, B, N] and slopes [..., D], without the sums per kernel."""
    rows, factor, gradient = call.rows, call.factor, call.needs_gradient
    p, parts = rows.points, value.shape[0]
    n, dim = p.shape[1:]
    empty = value.new_empty(0)
    ragged = rows.offsets is not None
    made = value.new_zeros if ragged else value.new_empty  # some points may be of no member
    values = made(p.shape[:2])
    gradients = made(p.shape) if gradient else empty
    units, stride = units_of(factor, p.device)
    block_i, block_d = (128, 32) if interpreted() else (max(4, 128 // triton.next_power_of_2(dim)), 32)
    blocks, batch = row_blocks(rows, block_i)
    finish_kernel[(blocks * batch,)](
        p, value, slopes, offsets_of(rows), call.columns.statistics.center, plan.moment, plan.terms, units,
        values, gradients, n, parts, stride, dim, rows.batch, RAGGED=ragged,
        GRADIENT=gradient, BLOCK_I=block_i, BLOCK_D=min(block_d, triton.next_power_of_2(dim)), num_warps=4, **FUSED,
    )  # fmt: skip
    return Sums(values, gradients, empty, empty)
