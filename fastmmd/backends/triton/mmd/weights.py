"""Weights of a sample, normalized in float64, and what follows from them, in one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ...calls import Sample
from ...common.mmd import F64
from .. import interpreted
from ..launch import FUSED
from .segments import segment


@triton.jit(do_not_specialize=["n"])
def weights_kernel(
    mass,  # [B, n]; unread without HAS_MASS
    offsets,  # [B + 1]; unread unless RAGGED
    opposite,  # [B + 1], of the other sample; unread without PAIRED
    weights,  # [B, n] float64
    scale,  # [B] float64: 1 / the sum of masses, 0 without points
    factor,  # [B] float64: 1, or 1 / (1 - sum w^2) if UNBIASED, 0 for a single point of RAGGED
    n,
    RAGGED: tl.constexpr,
    PAIRED: tl.constexpr,
    HAS_MASS: tl.constexpr,
    UNBIASED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of the member of each program; see `common.mmd.Measure.measured`."""
    b = tl.program_id(0).to(tl.int64)
    before, n = segment(offsets, b, n, RAGGED)
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, n, BLOCK):
        i = first + tl.arange(0, BLOCK)
        total += _mass(mass, before, i, n, HAS_MASS)
    share = 1 / tl.sum(total)
    poison = tl.cast(0.0, tl.float64)
    if RAGGED:
        share = tl.where(n == 0, 0.0, share)
    if PAIRED:
        others = tl.load(opposite + b + 1) - tl.load(opposite + b)
        wrong = (n == 0) != (others == 0)
        if UNBIASED:
            wrong = wrong | (n == 1) | (others == 1)
        poison = tl.where(wrong, float("nan"), poison)
    squares = tl.zeros([BLOCK], tl.float64)
    for first in range(0, n, BLOCK):
        i = first + tl.arange(0, BLOCK)
        w = _mass(mass, before, i, n, HAS_MASS) * share
        squares += w * w
        tl.store(weights + before + i, w + poison, mask=i < n)
    unit = tl.cast(1.0, tl.float64)
    if UNBIASED:
        unit = 1 / (1 - tl.sum(squares))
        if RAGGED:  # an infinite one times 0 would be NaN in other members too
            unit = tl.where(n == 1, 0.0, unit)
    tl.store(scale + b, share)
    tl.store(factor + b, unit)


@triton.jit
def _mass(mass, before, i, n, HAS_MASS: tl.constexpr):
    """Of the points i of a member, as given; 0 in the padding."""
    if HAS_MASS:
        return tl.load(mass + before + i, mask=i < n, other=0.0).to(tl.float64)
    else:
        return (i < n).to(tl.float64)


def normalized(sample: Sample, opposite: Sample | None, unbiased: bool) -> tuple[Tensor, Tensor, Tensor | float]:
    """Weights [B, N], scale [B] and factor of a `Measure`; see `common.mmd.Measure.measured`."""
    points, mass, offsets = sample.points, sample.weights, sample.offsets
    other = None if opposite is None or offsets is None else opposite.offsets
    batch, n = points.shape[:2]
    ragged = offsets is not None
    if offsets is not None:
        batch = offsets.shape[0] - 1
    weights = (points.new_zeros if ragged else points.new_empty)(points.shape[:2], dtype=F64)  # points of no member: 0
    scale, factor = (points.new_empty(batch, dtype=F64) for _ in range(2))
    unread = points if offsets is None else offsets
    weights_kernel[(batch,)](
        points if mass is None else mass, unread, unread if other is None else other, weights, scale, factor, n,
        RAGGED=ragged, PAIRED=other is not None, HAS_MASS=mass is not None, UNBIASED=unbiased,
        BLOCK=max(1024, triton.next_power_of_2(n)) if interpreted() else 1024, num_warps=4, **FUSED,
    )  # fmt: skip
    return weights, scale, factor if unbiased else 1.0
