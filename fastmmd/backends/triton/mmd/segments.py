"""Members of a batch with sizes of their own (RAGGED): segments of one row of points, by offsets (`calls.Sample`).

Launches know nothing of the sizes: a program looks its member up, and one that has no rows has no columns either.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ...common.mmd import Measure
from ..points import place_and_member


@triton.jit
def segment(offsets, b, n, RAGGED: tl.constexpr):
    """Where the points of member b begin, and how many they are: n where all members have as many."""
    if RAGGED:
        first = tl.load(offsets + b)
        return first, (tl.load(offsets + b + 1) - first).to(tl.int32)
    else:
        return b * n, n


@triton.jit
def block_of_rows(offsets, n, members, BLOCK_I: tl.constexpr, RAGGED: tl.constexpr):
    """A program's member of the batch, and its block of the member's rows.

    With offsets the first axis of the grid has `row_blocks` programs: member b has those from offsets[b] // BLOCK_I + b
    on, which are as many as it needs or one more.
    """
    if RAGGED:
        program = tl.program_id(0)
        b, beyond = tl.cast(0, tl.int64), tl.cast(members, tl.int64)  # the last member that begins here or before
        while b + 1 < beyond:
            middle = (b + beyond) // 2
            here = tl.load(offsets + middle) // BLOCK_I + middle <= program
            b, beyond = tl.where(here, middle, b), tl.where(here, beyond, middle)
        return (program - tl.load(offsets + b) // BLOCK_I - b).to(tl.int32), b
    else:
        return place_and_member(tl.cdiv(n, BLOCK_I))


def row_blocks(rows: Measure, size: int) -> tuple[int, int]:
    """Blocks of `size` rows of a member, and how many members have as many, on the first axis of a grid: see
    `block_of_rows`."""
    n = rows.points.shape[1]
    return (triton.cdiv(n, size), rows.batch) if rows.offsets is None else (n // size + rows.batch, 1)


def offsets_of(sample: Measure) -> Tensor:
    """The offsets of a sample; without, something to pass that nothing reads."""
    return sample.points if sample.offsets is None else sample.offsets
