"""The plan of a sum for mmd2 and witness, made on the device of what the data are.

The plan is the ladder of bandwidths, for each rung whether it adds u or kappa and its slope as it is or minus its value
at r = 0, a series in place of wide rungs; and what follows from these for all pairs alike, which tiles leave out and
`finish` adds.

Masses of mmd2 sum to zero over both samples, so that any constant may be taken off a kernel, or off its slope as long
as the linear term that this drops is added exactly. Rounding is relative to what remains. A rung is far where kappa is
small at most pairs, and adds kappa; else near, and adds u = kappa - 1, which is small where kappa is near 1. Its slope
is shifted, minus that at r = 0, where no pair is so far away that the slope falls to half of that. Which holds depends
on the data, whose values the host must not wait for: a kernel decides it from 64 pairs and a bound of all distances.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import triton
from torch import Tensor

from ....device_cache import constant
from ....kernels import FAMILIES, Kernel
from ...common.mmd import F64
from ..launch import FUSED
from .kernels import ROWS_OF_TABLE
from .plan_kernel import TERMS, plan_kernel
from .segments import offsets_of
from .statistics import Cloud

SERIES_TERMS = 10  # leave out less than float32 rounds, at the widest reach


class Plan(NamedTuple):
    """What `plan_kernel` made, and the ladder."""

    table: Tensor
    series: Tensor
    terms: Tensor
    moment: Tensor
    per_rung: Tensor
    follows: int  # bit s: rung s halves the bandwidth of rung s - 1


def plan(
    kernel: Kernel, columns: Cloud, typical: tuple[Cloud, Cloud], products: bool, fold: bool, per_kernel: bool
) -> Plan:
    """The plan of sums over the columns; typical: see `common.mmd.RowSums`.

    products: so distances are made; fold: wide bandwidths may fold into a series; per_kernel: sums per kernel are
    needed, so that rungs are in the order of the bandwidths.
    """
    (x, y), q = typical, columns.statistics
    batch, dim, count = columns.batch, columns.points.shape[2], len(kernel.bandwidths)
    order, follows = (range(count), 0) if per_kernel else _ladder(kernel)
    s, w = (_on_device(values, order, q.center.device) for values in (kernel.bandwidths, kernel.weights))
    size = SERIES_TERMS if fold else 0
    constants = [constant(values, s.device, F64) for values in ((kernel.alpha,), *_interpolation(size))]
    table = columns.points.new_empty((batch, ROWS_OF_TABLE.value, count))
    series = columns.points.new_empty((batch, 2 * size + 1))
    shapes = (batch, TERMS.value), (batch, dim), (batch, 2, count)
    terms, moment, per_rung = (q.center.new_empty(shape) for shape in shapes)
    plan_kernel[(batch,)](
        x.points, y.points, *x.statistics[:3], *y.statistics[:3], *q[2:], s, w, *constants,
        table, series, terms, moment, per_rung, offsets_of(x), offsets_of(y),
        x.points.shape[1], y.points.shape[1], *(cloud.statistics.reach.shape[1] for cloud in (x, y, columns)), dim,
        S=count, S_SLOTS=triton.next_power_of_2(count), FAMILY=kernel.family,
        LADDER=FAMILIES[kernel.family].squarings > 0, PRODUCTS=products, SERIES=size,
        RAGGED=columns.offsets is not None, CHUNKS=q.reach.shape[2],
        BLOCK_D=min(64, triton.next_power_of_2(dim)), num_warps=8, **FUSED,
    )  # fmt: skip
    return Plan(table, series, terms, moment, per_rung, follows)


@lru_cache
def _interpolation(size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Chebyshev nodes [size], and the matrix [size, size] that makes powers' coefficients of values at them."""
    if size == 0:
        return (0.0,), (0.0,)
    angles = np.pi * (np.arange(size) + 0.5) / size
    series = np.cos(np.arange(size)[:, None] * angles) * (2 / size)
    series[0] /= 2
    powers = [np.polynomial.chebyshev.cheb2poly(row) for row in np.eye(size)]
    padded = np.array([np.pad(row, (0, size - len(row))) for row in powers])
    return tuple(np.cos(angles).tolist()), tuple((padded.T @ series).ravel().tolist())


def _ladder(kernel: Kernel) -> tuple[Sequence[int], int]:
    """The rungs' bandwidths, and which of them halve the one before."""
    bandwidths, count = kernel.bandwidths, len(kernel.bandwidths)
    if isinstance(bandwidths, Tensor) or isinstance(kernel.weights, Tensor) or not FAMILIES[kernel.family].squarings:
        return range(count), 0
    rest = sorted(range(count), key=lambda index: -bandwidths[index])
    order: list[int] = []
    follows = 0
    while rest:
        half = next((i for i in rest if order and bandwidths[i] == 0.5 * bandwidths[order[-1]]), None)
        if half is not None:
            follows |= 1 << len(order)
        order.append(rest.pop(0 if half is None else rest.index(half)))
    return order, follows


def _on_device(values: Sequence[float] | Tensor, order: Sequence[int], device: torch.device) -> Tensor:
    """The values in the ladder's order, which is their own for a tensor's: [S]."""
    return values if isinstance(values, Tensor) else constant(tuple(values[i] for i in order), device, F64)
