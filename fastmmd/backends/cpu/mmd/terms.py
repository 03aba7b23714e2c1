"""Terms of mmd2, double sums over pairs, tile by tile: products by BLAS, the compiled step on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ....kernels import Kernel
from ...common.native import address, is_double
from ..library import kernel_fields, load, threads
from ..onednn import multiply
from .samples import F64, Side, Sums, TileSide

ALIKE = 1.0  # slopes at the outer deciles of the distances, apart by less than so much of the median's

Turn = tuple[float, float, int, int, int]  # of a tile, as two fractions of all points, and its term, row and column


@dataclass
class Tile:
    """Products p_i . q_j of a block of rows and one of columns."""

    products: Tensor  # [rows, columns of a block]
    dim: int
    rows: TileSide
    columns: TileSide
    diagonal: bool = False  # the same points on both sides
    offset: float = 0.0  # subtracted from the slopes
    times: float = 1.0  # how often the values count


@dataclass
class Term:
    """Rows against columns, or a sample against itself, then only the upper half of the tiles if `half`."""

    rows: Side
    columns: Side
    half: bool
    rung_factor: float
    rung_sums: Tensor | None  # [2, S] float64: gradients in bandwidths and kernel weights
    row_sums: Sums | None
    column_sums: Sums | None
    value: Tensor = field(init=False)  # [N] float64: sum_j m_j u
    tile_sides: list[list[TileSide]] = field(init=False)  # every block of rows, of columns
    offset: float = 0.0
    shift: float = 0.0  # all that the slopes leave out

    def __post_init__(self) -> None:
        self.value = torch.zeros(len(self.rows.sample.points), dtype=F64)
        self.tile_sides = [
            [side.tile_side(block, sums) for block in range(side.blocks)]
            for side, sums in ((self.rows, self.row_sums), (self.columns, self.column_sums))
        ]

    def choose_offset(self, kernel: TileKernel) -> None:
        """The slope at the median of some distances, where most slopes are much alike."""
        p, q = self.rows.some(0.6180339887), self.columns.some(0.4142135624)
        norms = [torch.linalg.vector_norm(points, dim=1).square() for points in (p, q)]
        r = norms[0][:, None] + norms[1] - 2 * (p @ q.T)
        at = r.flatten().quantile(r.new_tensor([0.1, 0.5, 0.9])).clamp_(min=0)
        self.shift, (low, median, high) = kernel.slopes(at.to(self.rows.norms.dtype))
        alike = abs(low - high) <= ALIKE * abs(median)
        if alike and not any(len(block) for side in (self.rows, self.columns) for block in side.outliers):
            self.offset = median
            self.shift += median

    def tiles(self, number: int, below: bool) -> Iterator[Turn]:
        """Tiles on and above the diagonal, or below it, each after all those of the points before its own."""
        outer, inner = (self.rows, self.columns) if below else (self.columns, self.rows)
        for late in range(outer.blocks):
            turn = (late + 1) / outer.blocks
            for early in range(inner.blocks):
                start = (early + 1) / inner.blocks
                if start > turn or (below and start == turn):
                    break
                yield (turn, start, number, late, early) if below else (turn, start, number, early, late)

    def add(self, i: int, j: int, p: Tensor, q: Tensor, kernel: TileKernel) -> None:
        """One tile, of the blocks p and q."""
        rows, columns = self.rows, self.columns
        diagonal = rows is columns and i == j
        side = columns.tile_side(j, None) if diagonal else self.tile_sides[1][j]
        times = 2.0 if self.half and not diagonal else 1.0
        tile = Tile(multiply(p, q), rows.dim, self.tile_sides[0][i], side, diagonal, self.offset, times)
        value = self.value.data_ptr() + i * rows.size * self.value.itemsize
        kernel.apply(tile, value, self.rung_factor, self.rung_sums)
        if self.row_sums is not None:
            self.row_sums.add(rows.rows[i], tile.products, columns, j, q)
        if self.column_sums is not None and not diagonal:
            self.column_sums.add(columns.rows[j], tile.products.T, rows, i, p)


class TileKernel:
    """The kernel for points no two of which are farther apart than the root of `farthest_r`, most of `typical_r`."""

    def __init__(self, kernel: Kernel, farthest_r: float, typical_r: float, may_fold: bool) -> None:
        self.fields = kernel_fields(kernel)
        self.farthest_r, self.typical_r, self.may_fold = farthest_r, typical_r, may_fold

    def slopes(self, r: Tensor) -> tuple[float, list[float]]:
        """What all slopes leave out, and the slopes at up to 16 squared distances."""
        norms, mass, zeros, unused = r.new_zeros(16), r.new_ones(16), r.new_zeros((1, 16)), r.new_zeros(1, dtype=F64)
        norms[: len(r)] = r
        side: TileSide = {"points": 0, "mass": mass.data_ptr(), "grad": 0, "scale": 0.0}
        rows = side | {"count": 1, "norms": zeros.data_ptr(), "slopes": unused.data_ptr()}
        columns = side | {"count": len(r), "norms": norms.data_ptr(), "slopes": 0}
        shift = self.apply(Tile(zeros, 1, rows, columns), unused.data_ptr())
        return shift, zeros[0, : len(r)].tolist()

    def apply(self, tile: Tile, value: int, rung_factor: float = 0.0, rung_sums: Tensor | None = None) -> float:
        """Replaces products by slopes, adds sum_j m_j u to the float64 numbers at `value`; what slopes leave out."""
        shift: float = load().mmd_tile(
            is_double=is_double(tile.products),
            threads=threads(),
            dim=tile.dim,
            stride=tile.products.shape[1],
            products=tile.products.data_ptr(),
            rows=tile.rows,
            columns=tile.columns,
            diagonal=tile.diagonal,
            kernel=self.fields,
            farthest_r=self.farthest_r,
            typical_r=self.typical_r,
            may_fold=self.may_fold,
            offset=tile.offset,
            times=tile.times,
            value=value,
            rung_factor=rung_factor,
            bandwidths=0 if rung_sums is None else address(rung_sums[0]),
            kernel_weights=0 if rung_sums is None else address(rung_sums[1]),
        )
        return shift
