"""Sums over columns for mmd2 and witness:

    value_i    = sum_j mass_j u(r_ij)                      u = kappa(r) - kappa(0)
    gradient_i = sum_j mass_j slope(r_ij) (p_i - q_j)

A plan, from statistics of the samples; the sums over the tiles; what they left out and the splits' results together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ....kernels import FAMILIES
from ...common.mmd import F64, RowSums, Sums
from .. import interpreted
from ..launch import splits, stages, tuned
from .centered import centered
from .finish import finish
from .plan import SERIES_TERMS, Plan, plan
from .rungs import per_kernel
from .segments import offsets_of, row_blocks
from .statistics import Cloud
from .sum_kernels import large_kernel, small_kernel

SMALL_DIMS = 16  # all coordinates in registers
DIRECT_DIMS = 48  # up to here distances by differences, beyond by products where the kernel is smooth


class Tile(NamedTuple):
    """Rows, columns and dimensions of a tile, warps of a program."""

    rows: int
    columns: int
    dims: int
    warps: int


class Partial(NamedTuple):
    """Sums of the tiles, float64; the last two unread where not needed."""

    value: Tensor  # [splits, B, N]
    slopes: Tensor  # [splits, B, N, D]: of the gradient
    rungs: Tensor  # [B, programs, 2, S]


def sum_rows(call: RowSums[Cloud]) -> Sums:
    """See `common.mmd.RowSums`."""
    rows, kernel, dim = call.rows, call.kernel, call.rows.points.shape[2]
    family, dtype = FAMILIES[kernel.family], rows.points.dtype
    # Products cancel for near pairs, which kernels that are not smooth show; and they take points centered for each
    # member.
    products = dim > DIRECT_DIMS and family.smooth and rows.offsets is None
    # Wide bandwidths fold into a series where that is exact enough: not in float64, nor for a sample alone, whose value
    # meets one of another origin.
    foldable = family.squarings > 0 and not family.takes_root and len(kernel.bandwidths) > 1
    per_rung = call.row_weights is not None
    fold = foldable and dtype == torch.float32 and call.may_fold and not per_rung
    planned = plan(kernel, call.columns, call.typical, products, fold, per_rung)
    tile = _tile(call)
    blocks, batch = row_blocks(rows, tile.rows)
    parts, per_split = splits(blocks * batch, triton.cdiv(call.columns.points.shape[1], tile.columns))
    partial = _partial(call, blocks, parts, batch)
    options = dict(
        dim=dim, S=len(kernel.bandwidths), S_SLOTS=triton.next_power_of_2(len(kernel.bandwidths)),
        FOLLOWS=planned.follows, FAMILY=kernel.family, SQUARINGS=family.squarings,
        HAS_MASS=call.columns.mass is not None, GRADIENT=call.needs_gradient, PER_RUNG=per_rung,
        SERIES=SERIES_TERMS if fold else 0, HALF=call.half, RAGGED=rows.offsets is not None, BLOCK_J=tile.columns,
    )  # fmt: skip
    if dim <= SMALL_DIMS:
        _sum_small(call, planned, partial, tile, per_split, options)
    else:
        _sum_large(call, planned, partial, tile, per_split, options | dict(DIRECT=not products))
    sums = finish(planned, call, partial.value, partial.slopes)
    if call.row_weights is not None:
        sums.bandwidths, sums.kernel_weights = per_kernel(
            planned, call, call.row_weights, partial.rungs, parts, tile.rows
        )
    return sums


def _sum_small(
    call: RowSums[Cloud], planned: Plan, partial: Partial, tile: Tile, per_split: int, options: dict[str, Any]
) -> None:
    """Launches `small_kernel`."""
    rows, parts, batch = call.rows, *partial.value.shape[:2]
    # sums per rung go by program
    sizes = (tile.rows,) if call.row_weights is not None or tile.rows == 1 else (tile.rows, tile.rows // 2)
    choices = [dict(BLOCK_I=size, num_warps=tile.warps) for size in sizes]
    kernel, choice = tuned(small_kernel, _pairs(call), *choices)
    kernel[lambda meta: (row_blocks(rows, meta["BLOCK_I"])[0] * batch, parts)](
        rows.points, call.columns.transposed, *_arguments(call, planned, partial, per_split), **options, **choice
    )


def _sum_large(
    call: RowSums[Cloud], planned: Plan, partial: Partial, tile: Tile, per_split: int, options: dict[str, Any]
) -> None:
    """Launches `large_kernel`."""
    rows, columns = call.rows, call.columns
    parts, batch = partial.value.shape[:2]
    norms = p, q = rows.points, columns.points
    if not options["DIRECT"]:
        # |p|^2 + |q|^2 - 2 p . q loses digits by as much as the norms exceed the distance: from the middle they do not.
        centers = rows.statistics.center, columns.statistics.center
        p, p_norms = centered(p, *centers)
        q, q_norms = (p, p_norms) if rows is columns else centered(q, *centers)
        norms = p_norms, q_norms
    kernel, choice = tuned(large_kernel, _pairs(call), *stages(tile.warps, not options["DIRECT"]))
    kernel[(row_blocks(rows, tile.rows)[0] * batch, parts)](
        p, q, *norms, *_arguments(call, planned, partial, per_split), SELF=rows is columns, BLOCK_I=tile.rows,
        BLOCK_D=tile.dims, **options, **choice,
    )  # fmt: skip


def _arguments(call: RowSums[Cloud], planned: Plan, partial: Partial, per_split: int) -> tuple[Any, ...]:
    """What both kernels take, from the masses on."""
    rows, columns, row_weights = call.rows, call.columns, call.row_weights
    return (
        rows.points if columns.mass is None else columns.mass,
        partial.value if row_weights is None else row_weights,
        planned.table, planned.series, planned.terms, offsets_of(rows), offsets_of(columns), *partial,
        rows.points.shape[1], columns.points.shape[1], per_split, rows.batch,
    )  # fmt: skip


def _pairs(call: RowSums[Cloud]) -> int:
    """Pairs of the call; with offsets as if all members were of one size."""
    rows, n, m = call.rows, call.rows.points.shape[1], call.columns.points.shape[1]
    return n * m * rows.batch if rows.offsets is None else n * m // rows.batch


def _partial(call: RowSums[Cloud], blocks: int, parts: int, batch: int) -> Partial:
    p, count = call.rows.points, len(call.kernel.bandwidths)
    n, dim = p.shape[1:]
    value = p.new_empty((parts, batch, n), dtype=F64)
    slopes = rungs = value
    if call.needs_gradient:  # splits of a small member may be without tiles
        made = p.new_empty if call.rows.offsets is None else p.new_zeros
        slopes = made((parts, batch, n, dim), dtype=F64)
    if call.row_weights is not None:
        rungs = p.new_empty((batch, parts * blocks, 2, count), dtype=F64)
    return Partial(value, slopes, rungs)


def _tile(call: RowSums[Cloud]) -> Tile:
    """The interpreter's time is its number of operations; a GPU's, of registers and of programs."""
    (_, n, dim), m = call.rows.points.shape, call.columns.points.shape[1]
    gradient, per_rung, words = call.needs_gradient, call.row_weights is not None, call.rows.points.dtype.itemsize // 4
    if interpreted():
        rows, columns, dims = (
            max(16, min(most, triton.next_power_of_2(size)))
            for size, most in ((n, 64 if dim <= SMALL_DIMS else 128), (m, 1024), (dim, 1024))
        )
        return Tile(rows, columns, dims, 1)
    if dim <= SMALL_DIMS:  # a thread has one column; all coordinates and sums of its pairs are in registers
        rows = (8 if dim <= 8 else 4 if dim <= 12 else 2) if gradient else 16
        return Tile(max(1, rows // (2 if per_rung else 1) // words), 128, 16, 4)
    if per_rung:  # so many sums take registers
        return Tile(16, 64, 16, 8)
    return Tile(32, 64, 32, 8) if dim <= DIRECT_DIMS else Tile(64, 64, 16 if gradient else 32, 8)
