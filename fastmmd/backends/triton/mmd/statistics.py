"""Statistics of a sample for mmd2 and witness: where its points are, how far they reach, what its masses sum to."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ...calls import Sample
from ...common.mmd import F64, Measure
from ..launch import FUSED, splits
from ..points import coordinates, place_and_member
from .segments import offsets_of, segment
from .weights import normalized

MOST_DIMS = 1024  # of a tile of statistics; the reach of more is bounded by the sum of its parts
LEADERS = 64  # points whose mean is the center: near enough to all points' for a tight bound


@triton.jit(do_not_specialize=["n", "split_tiles", "splits"])
def statistics_kernel(
    points,  # [B, n, dim]
    mass,  # [B, n]; unread without HAS_MASS
    center,  # [B, dim] float64: mean of the first points
    reach,  # [B, splits, chunks] float64: maximum of |p - center|^2 over the dimensions of a chunk
    sums,  # [B, splits, 2, dim] float64: of p - center, of mass (p - center)
    masses,  # [B, splits] float64: of mass
    offsets,  # [B + 1]; unread unless RAGGED
    n,
    split_tiles,  # tiles of points in a split; unread if RAGGED
    splits,
    dim,
    most_leaders,  # points whose mean is the center
    RAGGED: tl.constexpr,
    HAS_MASS: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    split, b = place_and_member(splits)
    chunk = tl.program_id(1)
    d = chunk * BLOCK_D + tl.arange(0, BLOCK_D)
    before, n = segment(offsets, b, n, RAGGED)
    points += before * dim
    leaders = tl.minimum(n, most_leaders)
    share = 1.0 / tl.maximum(leaders, 1).to(tl.float64)  # here, as a division takes registers of what is alive
    middle = tl.zeros([BLOCK_D], tl.float64)
    for first in range(0, leaders, BLOCK_I):
        i = first + tl.arange(0, BLOCK_I)
        leader = coordinates(points, i, leaders, dim, d).to(tl.float64)
        # What is not finite counts as 0: all points are measured from here, and only that one shall be NaN.
        middle += tl.sum(tl.where(tl.abs(leader) < float("inf"), leader, 0.0), axis=0)
    middle *= share
    total = tl.zeros([BLOCK_D], tl.float64)
    moment = tl.zeros([BLOCK_D], tl.float64)
    all_mass = tl.zeros([BLOCK_I], tl.float64)
    farthest = tl.zeros([BLOCK_I], tl.float64)
    tiles = tl.cdiv(n, BLOCK_I)
    if RAGGED:
        split_tiles = tl.cdiv(tiles, splits)
    for tile in range(split * split_tiles, tl.minimum((split + 1) * split_tiles, tiles)):
        i = tile * BLOCK_I + tl.arange(0, BLOCK_I)
        there = (i < n)[:, None] & (d < dim)[None, :]
        difference = tl.where(there, coordinates(points, i, n, dim, d).to(tl.float64) - middle[None, :], 0.0)
        if HAS_MASS:
            w = tl.load(mass + before + i, mask=i < n, other=0.0).to(tl.float64)
        else:
            w = (i < n).to(tl.float64)
        farthest = tl.maximum(farthest, tl.sum(difference * difference, axis=1))
        all_mass += w
        total += tl.sum(difference, axis=0)
        moment += tl.sum(w[:, None] * difference, axis=0)
    part = b * splits + split
    tl.store(reach + part * tl.num_programs(1) + chunk, tl.max(farthest))
    tl.store(sums + part * 2 * dim + d, total, mask=d < dim)
    tl.store(sums + (part * 2 + 1) * dim + d, moment, mask=d < dim)
    if split == 0:
        tl.store(center + b * dim + d, middle, mask=d < dim)
    if chunk == 0:
        tl.store(masses + part, tl.sum(all_mass))


class Statistics(NamedTuple):
    """What `statistics_kernel` computes."""

    center: Tensor
    reach: Tensor
    sums: Tensor
    masses: Tensor


class Cloud(Measure):
    """A sample, with what sums over it need and is the same for all of them."""

    @classmethod
    def _weighted(cls, sample: Sample, opposite: Sample | None, unbiased: bool) -> Cloud:
        return cls(sample.points, sample.weights, *normalized(sample, opposite, unbiased), sample.offsets)

    @cached_property
    def transposed(self) -> Tensor:
        """The points, coordinate by coordinate: [D, B, N]."""
        return self.points.permute(2, 0, 1).contiguous()

    @cached_property
    def statistics(self) -> Statistics:
        """Of the points and masses."""
        points, mass, batch = self.points, self.mass, self.batch
        (n, dim), ragged = points.shape[1:], self.offsets is not None
        block_d = min(MOST_DIMS, triton.next_power_of_2(dim))
        block_i = max(1, 1024 // block_d)
        chunks, (parts, per_split) = triton.cdiv(dim, block_d), splits(batch if ragged else 1, triton.cdiv(n, block_i))
        shapes = (batch, dim), (batch, parts, chunks), (batch, parts, 2, dim), (batch, parts)
        result = Statistics(*(points.new_empty(shape, dtype=F64) for shape in shapes))
        statistics_kernel[(parts * batch, chunks)](
            points, points if mass is None else mass, *result, offsets_of(self), n, per_split, parts, dim, LEADERS,
            RAGGED=ragged, HAS_MASS=mass is not None, BLOCK_I=block_i, BLOCK_D=block_d, num_warps=8, **FUSED,
        )  # fmt: skip
        return result
