"""The kernels of mmd2 and witness on one tile of squared distances, and the plan of a sum of them.

As csrc/cpu/kernels.hpp: the bandwidth ladder, and for each rung whether it adds u or kappa, the slope as it is or minus
its value at r = 0, whichever keeps more digits. That depends on the data, so it is decided on the device, in a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..assembly import F64
from ..specs import KernelSpec
from .tiles import constant, exponentials, log1p, square_root

RATE, WEIGHT, STEEPNESS, SHIFTED, FAR, ALPHA = (tl.constexpr(row) for row in range(6))  # of the table
ROWS_OF_TABLE = tl.constexpr(6)
SQUARINGS = {"gaussian": 2, "laplacian": 1}  # from one rung to the next


@triton.jit
def evaluate(
    r,  # [BLOCK_I, BLOCK_J]
    w,  # [BLOCK_J]
    row_weight,  # [BLOCK_I] float64; unread without PER_RUNG
    by_slope,  # [S_SLOTS] float64: sums of r slope, to which those of this tile are added with PER_RUNG
    by_u,  # [S_SLOTS] float64: of u
    table,  # [6, S]
    S: tl.constexpr,
    S_SLOTS: tl.constexpr,
    FOLLOWS: tl.constexpr,  # bit s: rung s comes from rung s - 1 by squaring
    KERNEL: tl.constexpr,
    SQUARED: tl.constexpr,
    PER_RUNG: tl.constexpr,
):
    """u, or kappa where that is far, and the slope: [BLOCK_I, BLOCK_J] each, and the sums per rung."""
    rung_slot = tl.arange(0, S_SLOTS)
    total, slope = tl.zeros_like(r), tl.zeros_like(r)
    argument, inverse = r, r
    if KERNEL == "laplacian" or KERNEL == "energy":
        argument = square_root(r)
        inverse = tl.where(argument > 0, 1 / argument, 0.0)
    if KERNEL == "imq" or KERNEL == "rational_quadratic":
        largest: tl.constexpr = 1e300 if r.dtype == tl.float64 else 1e30
        argument = tl.where(r > largest, largest, r)
    u, kappa = tl.zeros_like(r), tl.zeros_like(r)
    for s in tl.static_range(S):
        rate, weight = tl.load(table + RATE * S + s), tl.load(table + WEIGHT * S + s)
        steepness = tl.load(table + STEEPNESS * S + s)
        if KERNEL == "energy":
            u, kappa, plain, shifted = -argument, -argument, inverse, inverse
        elif KERNEL == "imq":
            reciprocal = 1 / (argument + rate)
            u, kappa = -argument * reciprocal, rate * reciprocal
            plain, shifted = kappa * kappa, u * (kappa + 1)
        elif KERNEL == "rational_quadratic":
            scaled = argument * rate
            scaled = tl.where(scaled > largest, largest, scaled)
            u, kappa = exponentials(-tl.load(table + ALPHA * S + s) * log1p(scaled))
            reciprocal = 1 / (scaled + 1)
            plain, shifted = kappa * reciprocal, (u - scaled) * reciprocal
        else:
            if (FOLLOWS >> s) & 1:
                for _ in tl.static_range(SQUARED):
                    kappa = kappa * kappa  # loses relative accuracy near 1, as 1 + u does near 0
                    u = u * u + (u + u)
                kappa = tl.where(u > -0.5, u + 1, kappa)
            else:
                u, kappa = exponentials(argument * rate)
            plain, shifted = kappa, u
            if KERNEL == "laplacian":
                plain = kappa * inverse
                shifted = plain
        total += weight * tl.where(tl.load(table + FAR * S + s) > 0, kappa, u)
        slope += steepness * tl.where(tl.load(table + SHIFTED * S + s) > 0, shifted, plain)
        if PER_RUNG:
            finite = tl.where(r > 1e30, 1e30, r)  # inf * 0 at far pairs is 0
            sum_of_slopes = tl.sum(tl.sum(w[None, :] * (finite * plain), axis=1).to(tl.float64) * row_weight, axis=0)
            sum_of_u = tl.sum(tl.sum(w[None, :] * u, axis=1).to(tl.float64) * row_weight, axis=0)
            by_slope += tl.where(rung_slot == s, sum_of_slopes, 0.0)
            by_u += tl.where(rung_slot == s, sum_of_u, 0.0)
    return total, slope, by_slope, by_u


class Plan(NamedTuple):
    """What the kernel reads of the bandwidths, and what its sums leave out."""

    table: Tensor  # [B, 6, S], rungs in the ladder's order
    follows: int
    places: Tensor  # [S]: bandwidth -> rung
    typical_slope: Tensor  # [B]: what products take off all slopes, which are much alike in many dimensions
    shift: Tensor  # [B, 1, 1] float64: that, and the sum of the shifted rungs' slopes at r = 0
    offset: Tensor  # [B, 1] float64: sum of the far rungs' weights
    by_bandwidth: Tensor  # [S] float64: derivative in the bandwidth over r slope
    mass: Tensor  # [B, 1] float64: sum_j mass_j
    centre: Tensor  # [B, 1, D] float64, of the columns
    moment: Tensor  # [B, 1, D] float64: sum_j mass_j (q_j - centre)


def plan(kernel: KernelSpec, p: Tensor, q: Tensor, mass: Tensor | None, per_rung: bool, offset: bool) -> Plan:
    order, follows = _ladder(kernel)
    s, w = (_on_device(values, order, p.device) for values in (kernel.bandwidths, kernel.weights))
    s = torch.where(s > 0, s, torch.nan)
    farthest, typical = _distances(p, q)
    steepness, rate = _steepness(kernel, s)
    by_bandwidth = torch.zeros_like(s) if kernel.name == "energy" else -2 / s * steepness * w
    largest, steepest = torch.finfo(p.dtype).max, torch.finfo(p.dtype).max * 2.0**-20  # times 0 is 0; room for masses
    shifted = _relative_slope(kernel, s, farthest) > 0.5
    far = (_value_at(kernel, s, typical) < 0.5) & (not per_rung)
    rows = (
        rate.clamp(-largest, largest), w, (steepness * w).clamp(-steepest, steepest), shifted, far,
        torch.full_like(s, kernel.alpha),
    )  # fmt: skip
    table = torch.stack([row.to(F64).expand(len(p), len(s)) for row in rows], 1).to(p.dtype)
    rounded = table.to(F64)
    at_typical = steepness * w * (_relative_slope(kernel, s, typical) - shifted.to(F64))
    typical_slope = at_typical.sum(-1).to(p.dtype) if offset else p.new_zeros(len(p))
    shift = (rounded[:, 2] * rounded[:, 3]).sum(-1) + typical_slope.to(F64)
    centre = q.mean(1, keepdim=True, dtype=F64)
    v = q.new_ones(q.shape[:2], dtype=F64) if mass is None else mass.to(F64)
    return Plan(
        table, follows, constant(tuple(map(order.index, range(len(order)))), p.device, torch.int64), typical_slope,
        shift[:, None, None], (rounded[:, 1] * rounded[:, 4]).sum(-1)[:, None],
        by_bandwidth, v.sum(-1, keepdim=True), centre, torch.einsum("bj,bjd->bd", v, q - centre)[:, None],
    )  # fmt: skip


def _ladder(kernel: KernelSpec) -> tuple[list[int], int]:
    """The rungs' bandwidths, and bit s where rung s halves the bandwidth of rung s - 1."""
    if isinstance(kernel.bandwidths, Tensor) or isinstance(kernel.weights, Tensor) or kernel.name not in SQUARINGS:
        return list(range(len(kernel.bandwidths))), 0
    rest = sorted(range(len(kernel.bandwidths)), key=lambda index: -kernel.bandwidths[index])
    order: list[int] = []
    follows = 0
    while rest:
        found = next((i for i in rest if order and kernel.bandwidths[i] == 0.5 * kernel.bandwidths[order[-1]]), None)
        if found is not None:
            follows |= 1 << len(order)
        order.append(rest.pop(0 if found is None else rest.index(found)))
    return order, follows


def _on_device(values: Sequence[float] | Tensor, order: Sequence[int], device: torch.device) -> Tensor:
    """The values in the ladder's order, which is their own for a tensor's: [S] float64."""
    return values.to(F64) if isinstance(values, Tensor) else constant(tuple(values[i] for i in order), device, F64)


def _distances(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """[B, 1] float64: a bound of all squared distances, and a typical one."""
    spread, reach, centres = [], [], []
    for points in (p, q):
        centre = points.mean(1, keepdim=True, dtype=F64)
        squares = (points - centre.to(points.dtype)).square().sum(-1).to(F64)
        spread.append(squares.mean(1, keepdim=True))
        reach.append(squares.amax(1, keepdim=True).sqrt())
        centres.append(centre[:, 0])
    apart = (centres[0] - centres[1]).square().sum(-1, keepdim=True)
    return (reach[0] + reach[1] + apart.sqrt()).square(), spread[0] + spread[1] + apart


def _steepness(kernel: KernelSpec, s: Tensor) -> tuple[Tensor, Tensor]:
    """Units of the slopes and rates of the kernels: [S] each."""
    if kernel.name == "gaussian":
        return -0.5 / s**2, -0.5 / s**2
    if kernel.name == "laplacian":
        return -0.5 / s, -1 / s
    if kernel.name == "imq":
        return -1 / s**2, (s**2).clamp(min=1e-37)
    if kernel.name == "rational_quadratic":
        return -0.5 / s**2, 0.5 / (kernel.alpha * s**2)
    return torch.full_like(s, -0.5), torch.zeros_like(s)


def _relative_slope(kernel: KernelSpec, s: Tensor, r: Tensor) -> Tensor:
    """kappa'(r) / kappa'(0) of a smooth kernel; 0 for the others, whose slopes are never shifted: [B, S]."""
    t = r / s**2
    if kernel.name == "gaussian":
        return torch.exp(-0.5 * t)
    if kernel.name == "imq":
        return (1 + t) ** -2
    if kernel.name == "rational_quadratic":
        return (1 + 0.5 * t / kernel.alpha) ** (-kernel.alpha - 1)
    return torch.zeros_like(t)


def _value_at(kernel: KernelSpec, s: Tensor, r: Tensor) -> Tensor:
    """kappa(r) of a bounded kernel; 1 for the other one: [B, S]."""
    t = r / s**2
    if kernel.name == "gaussian":
        return torch.exp(-0.5 * t)
    if kernel.name == "laplacian":
        return torch.exp(-t.sqrt())
    if kernel.name == "imq":
        return 1 / (1 + t)
    if kernel.name == "rational_quadratic":
        return (1 + 0.5 * t / kernel.alpha) ** -kernel.alpha
    return torch.ones_like(t)
