"""Sums per kernel, for gradients in bandwidths and kernel weights: those of all programs together."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ...common.mmd import RowSums
from .. import interpreted
from ..launch import FUSED
from .finish import units_of
from .plan import Plan
from .segments import offsets_of, segment
from .statistics import Cloud


@triton.jit(do_not_specialize=["n", "programs", "parts", "rows_of_program", "factor_stride"])
def rungs_kernel(
    rungs,  # [B, parts, programs, 2, S] float64, RAGGED [parts, programs, 2, S]: by slope and by value
    row_weights,  # [B, n] float64
    per_rung,  # [B, 2, S] float64: derivative in the bandwidth, value left out
    factor,  # [1] or [B] float64
    offsets,  # [B + 1], of the rows; unread unless RAGGED
    bandwidths,  # [B, S] float64
    kernel_weights,  # [B, S] float64
    n,
    programs,
    parts,
    rows_of_program,
    factor_stride,
    S: tl.constexpr,
    S_SLOTS: tl.constexpr,
    RAGGED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of the member of each program."""
    b = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, S_SLOTS)
    there = (s < S)[None, :]
    before, n = segment(offsets, b, n, RAGGED)
    every, first_program = programs, b * parts * programs
    if RAGGED:  # as `block_of_rows`
        first_program = before // rows_of_program + b
        programs = ((before + n) // rows_of_program + b + 1 - first_program).to(tl.int32)
    by_slope = tl.zeros([BLOCK, S_SLOTS], tl.float64)
    by_value = tl.zeros([BLOCK, S_SLOTS], tl.float64)
    for part in range(parts):
        start = rungs + (first_program + tl.cast(part, tl.int64) * every) * 2 * S
        for first in range(0, programs, BLOCK):
            program = first + tl.arange(0, BLOCK)
            mask = (program < programs)[:, None] & there
            at = start + program[:, None] * 2 * S + s[None, :]
            by_slope += tl.load(at, mask=mask, other=0.0)
            by_value += tl.load(at + S, mask=mask, other=0.0)
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, n, BLOCK):
        i = first + tl.arange(0, BLOCK)
        total += tl.load(row_weights + before + i, mask=i < n, other=0.0)
    unit = tl.load(factor + b * factor_stride)
    derivative = tl.load(per_rung + b * 2 * S + s, mask=s < S, other=0.0)
    left_out = tl.load(per_rung + (b * 2 + 1) * S + s, mask=s < S, other=0.0)
    place = b * S + s
    tl.store(bandwidths + place, unit * derivative * tl.sum(by_slope, axis=0), mask=s < S)
    tl.store(kernel_weights + place, unit * (tl.sum(by_value, axis=0) - left_out * tl.sum(total)), mask=s < S)


def per_kernel(
    plan: Plan, call: RowSums[Cloud], row_weights: Tensor, rungs: Tensor, parts: int, block_i: int
) -> tuple[Tensor, Tensor]:
    """Sums for bandwidths and kernel weights [B, S] of those of the programs, each of `block_i` rows."""
    rows, factor, count = call.rows, call.factor, len(call.kernel.bandwidths)
    units, stride = units_of(factor, row_weights.device)
    bandwidths, kernel_weights = (rungs.new_empty((rows.batch, count)) for _ in range(2))
    block = max(16, 512 // triton.next_power_of_2(count))
    rungs_kernel[(rows.batch,)](
        rungs, row_weights, plan.per_rung, units, offsets_of(rows),
        bandwidths, kernel_weights, rows.points.shape[1], rungs.shape[1] // parts, parts, block_i,
        stride, S=count, S_SLOTS=triton.next_power_of_2(count),
        RAGGED=rows.offsets is not None, BLOCK=1024 if interpreted() else block, num_warps=4, **FUSED,
    )  # fmt: skip
    return bandwidths, kernel_weights
