"""mmd2 in many dimensions: distances and gradients by matrix products, tile by tile, the compiled step between them.

A term is a double sum over pairs of two samples, or of one with itself. Its points are taken about a center; of a tile
of products p_i . q_j the compiled step makes |p_i|^2 + |q_j|^2 - 2 p_i . q_j, the kernel's values, which it adds up,
and the slopes c_ij, which it leaves in the tile for

    sum_j m_j c_ij (p_i - q_j) = p_i sum_j m_j c_ij - sum_j c_ij (m_j q_j)

and the same of the columns. Pairs for which these differences cancel it does itself, one by one.

From an `offset`, the slope at a typical distance, the slopes are subtracted: what it contributes is linear in the
points and added in closed form. In many dimensions distances are nearly equal, and so products sum small numbers.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ....kernels import Kernel
from ...calls import Mmd2, Mmd2Inputs
from ..library import address, is_double, load, numbers, threads
from ..products import even_tile_size, full_precision, multiply

F64 = torch.float64
TILE = 256  # rows and columns: large enough for BLAS; sums of so many products in float32 are accurate enough
KEPT_BLOCKS = 4  # copies of points about a center
CHUNK = 16  # rows at a time in float64
PRODUCT = 64  # rows at a time of products with points, which take memory
NEAR = 0.1  # of the samples' mean squared distance from their means: centers as near to these serve as well
OUTLIER = 16.0  # squared distance from the center over its median; farther points would drown others in float32 sums
TRIMS = 2  # times that the mean is taken again without outliers
SOME = 32  # points whose distances tell the typical one
ALIKE = 1.0  # slopes at the outer deciles of the distances, apart by less than so much of the median's

_Described = tuple[int, int, int, int, int, int, float]  # count, points, norms, mass, slopes, gradient, scale
_Turn = tuple[float, float, int, int, int]  # of a tile, as two fractions of all points, and its term, row and column


class _Sample:
    """Points [N, D] and their weights, which are normalized by `scale`, in float64."""

    def __init__(self, points: Tensor, weights: Tensor | None, unbiased: bool) -> None:
        self.points, self.given = points, weights
        self.weights = points.new_ones(len(points), dtype=F64) if weights is None else weights.to(F64)
        self.scale = float(1 / self.weights.sum())
        self.weights = self.weights * self.scale
        self.factor = float(1 / (1 - self.weights.square().sum())) if unbiased else 1.0
        self.unit = self.factor * self.scale  # of the sums over the sample's own pairs
        self.wide = points.new_empty((CHUNK, points.shape[1]), dtype=F64)  # kept: new ones would fragment the heap
        self.measure(None)

    def chunk(self, rows: slice, center: Tensor | None = None) -> Tensor:
        """Some of the points, about a center as the tiles have them, in float64; valid until the next call."""
        points = self.points[rows] if center is None else self.points[rows] - center
        return self.wide[: len(points)].copy_(points)

    def measure(self, without: Tensor | None) -> None:
        """The mean [D] and the mean squared distance from it, without some of the points."""
        points, count = self.points, len(self.points) - (0 if without is None else int(without.sum()))
        total, squares = points.new_zeros(points.shape[1], dtype=F64), 0.0
        for rows in _chunks(len(points)):
            chunk = self.chunk(rows)
            if without is not None:
                chunk.masked_fill_(without[rows, None], 0)
            total += chunk.sum(0)
            squares += float(torch.linalg.vector_norm(chunk)) ** 2
        self.mean = total / count
        self.spread = max(0.0, squares / count - float(self.mean.square().sum()))


class _Side:
    """A sample about a center [D] or the origin, in blocks of `size` points, the last one filled up with zeros."""

    def __init__(self, sample: _Sample, center: Tensor | None) -> None:
        points, (count, self.dim) = sample.points, sample.points.shape
        self.sample, self.center = sample, center
        self.size = even_tile_size(count, TILE)
        self.rows = [slice(first, min(first + self.size, count)) for first in range(0, count, self.size)]
        self.blocks = len(self.rows)
        self.norms, self.mass = points.new_zeros((2, self.blocks * self.size))
        self.mass[:count] = 1 if sample.given is None else sample.given
        self.moment = points.new_zeros(self.dim, dtype=F64)  # sum_j w_j (x_j - center)
        for rows in _chunks(count):
            chunk = sample.chunk(rows, center)
            self.norms[rows] = torch.linalg.vector_norm(chunk, dim=1).square()
            self.moment += sample.weights[rows] @ chunk
        self.farthest = float(self.norms.max())
        self.far = self.norms > OUTLIER * self.norms[:count].median()
        self.outliers = [block.nonzero()[:, 0] for block in self.far.split(self.size)]

    def some(self, step: float) -> Tensor:
        """Points from everywhere, at multiples of an irrational fraction of their number: no order defeats it."""
        count = len(self.sample.points)
        at = torch.tensor([int(k * step % 1 * count) for k in range(SOME)])
        points = self.sample.points[at]
        return (points if self.center is None else points - self.center).to(F64)

    def is_view(self, block: int) -> bool:
        """Whether a block is the points as they are."""
        return self.center is None and self.rows[block].stop == (block + 1) * self.size

    def copy(self, block: int, out: Tensor | None) -> Tensor:
        """The points of a block, in the memory of `out`, another copy, where that is of their size."""
        points = self.sample.points[self.rows[block]]
        if out is None or len(out) != self.size:
            out = points.new_empty((self.size, self.dim))
        torch.sub(points, 0.0 if self.center is None else self.center, out=out[: len(points)])
        out[len(points) :].zero_()
        return out

    def described(self, block: int, sums: _Sums | None) -> _Described:
        """As the compiled step takes it."""
        rows = self.rows[block]
        slopes, grad, scale = (None, None, 0.0) if sums is None else (sums.slopes, sums.grad, sums.scale)
        arrays = (self.sample.points, self.norms, self.mass, slopes, grad)
        points, norms, mass, *added = (0 if array is None else array[rows].data_ptr() for array in arrays)
        return rows.stop - rows.start, points, norms, mass, added[0], added[1], scale


@dataclass
class _Sums:
    """What a term adds up for the points of one side, in units that `scale` turns into those of `grad`."""

    slopes: Tensor  # [N] float64: sum_j m_j c_ij
    grad: Tensor  # [N, D], shared by the terms of a sample: what their products contribute
    scale: float

    def add(self, rows: slice, c: Tensor, other: _Side, block: int, points: Tensor) -> None:
        """Subtract c @ (masses * points), a block of the other side."""
        count, outliers = rows.stop - rows.start, other.outliers[block]
        if other.sample.given is not None:
            points = points * other.mass[block * other.size :][: other.size, None]
        if len(outliers):
            wide, points = points[outliers].to(F64), points.index_fill(0, outliers, 0)
            self.grad[rows].sub_((c[:count, outliers].to(F64) @ wide).mul_(self.scale))
        for some in _chunks(count, PRODUCT):
            self.grad[rows][some].add_(multiply(c[some], points.T), alpha=-self.scale)


@dataclass
class _Term:
    """Rows against columns, or a sample against itself, then only the upper half of the tiles if `half`."""

    rows: _Side
    columns: _Side
    half: bool
    rung_factor: float
    rung_sums: Tensor | None  # [2, S] float64: gradients in bandwidths and kernel weights
    row_sums: _Sums | None
    column_sums: _Sums | None
    value: Tensor = field(init=False)  # [N] float64: sum_j m_j u
    described: list[list[_Described]] = field(init=False)  # every block of rows, of columns
    offset: float = 0.0
    shift: float = 0.0  # all that the slopes leave out

    def __post_init__(self) -> None:
        self.value = torch.zeros(len(self.rows.sample.points), dtype=F64)
        self.described = [
            [side.described(block, sums) for block in range(side.blocks)]
            for side, sums in ((self.rows, self.row_sums), (self.columns, self.column_sums))
        ]

    def choose_offset(self, kernel: _Kernel) -> None:
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

    def tiles(self, number: int, below: bool) -> Iterator[_Turn]:
        """Tiles on and above the diagonal, or below it, each after all those of the points before its own."""
        outer, inner = (self.rows, self.columns) if below else (self.columns, self.rows)
        for late in range(outer.blocks):
            turn = (late + 1) / outer.blocks
            for early in range(inner.blocks):
                start = (early + 1) / inner.blocks
                if start > turn or (below and start == turn):
                    break
                yield (turn, start, number, late, early) if below else (turn, start, number, early, late)

    def add(self, i: int, j: int, p: Tensor, q: Tensor, kernel: _Kernel) -> None:
        """One tile, of the blocks p and q."""
        rows, columns = self.rows, self.columns
        diagonal = rows is columns and i == j
        described = columns.described(j, None) if diagonal else self.described[1][j]
        tile = multiply(p, q)
        kernel.apply(
            tile, rows.dim, self.described[0][i], described, diagonal, self.offset,
            2.0 if self.half and not diagonal else 1.0, self.value.data_ptr() + i * rows.size * self.value.itemsize,
            self.rung_factor, self.rung_sums,
        )  # fmt: skip
        if self.row_sums is not None:
            self.row_sums.add(rows.rows[i], tile, columns, j, q)
        if self.column_sums is not None and not diagonal:
            self.column_sums.add(columns.rows[j], tile.T, rows, i, p)


class _Kernel:
    """The kernel for points no two of which are farther apart than the root of `farthest_r`, most of `typical_r`."""

    def __init__(self, kernel: Kernel, farthest_r: float, typical_r: float, may_fold: bool) -> None:
        self.description = (
            kernel.family, numbers(kernel.bandwidths), numbers(kernel.weights), kernel.alpha,
            farthest_r, typical_r, may_fold,
        )  # fmt: skip

    def slopes(self, r: Tensor) -> tuple[float, list[float]]:
        """What all slopes leave out, and the slopes at up to 16 squared distances."""
        norms, mass, zeros, unused = r.new_zeros(16), r.new_ones(16), r.new_zeros((1, 16)), r.new_zeros(1, dtype=F64)
        norms[: len(r)] = r
        rows: _Described = (1, 0, zeros.data_ptr(), mass.data_ptr(), unused.data_ptr(), 0, 0.0)
        columns: _Described = (len(r), 0, norms.data_ptr(), mass.data_ptr(), 0, 0, 0.0)
        shift = self.apply(zeros, 1, rows, columns, False, 0.0, 1.0, unused.data_ptr(), 0.0, None)
        return shift, zeros[0, : len(r)].tolist()

    def apply(
        self,
        tile: Tensor,
        dim: int,
        rows: _Described,
        columns: _Described,
        diagonal: bool,
        offset: float,
        times: float,
        value: int,
        rung_factor: float,
        rung_sums: Tensor | None,
    ) -> float:
        rungs = (0, 0) if rung_sums is None else (address(rung_sums[0]), address(rung_sums[1]))
        shift: float = load().mmd_tile(
            is_double(tile), threads(), dim, tile.shape[1], tile.data_ptr(), rows, columns, diagonal,
            *self.description, offset, times, value, rung_factor, *rungs,
        )  # fmt: skip
        return shift


def mmd2(call: Mmd2) -> tuple[Tensor, Mmd2Inputs[Tensor]]:
    """Value [B] in float64 and six gradients; see `calls.MmdBackend.mmd2`. Points must be finite, and their norms."""
    x, x_weights, kernel, needs = call.x.points, call.x.weights, call.kernel, call.needs
    y, y_weights = (None, None) if call.y is None else (call.y.points, call.y.weights)
    batch, count = len(x), len(kernel.bandwidths)
    value = x.new_empty(batch, dtype=F64)
    both = (x, y, x_weights, y_weights)
    grads = [
        torch.zeros_like(of) if need and of is not None else x.new_empty(0)
        for of, need in zip((x, y, x[..., 0], None if y is None else y[..., 0]), needs, strict=False)
    ]
    rungs = [x.new_empty((batch, count) if need else 0) for need in needs[4:]]
    with full_precision():
        for b in range(batch):
            inputs = [None if tensor is None else tensor[b] for tensor in both]
            found = [grad[b] if grad.numel() else grad for grad in (*grads, *rungs)]
            value[b] = _member(inputs, kernel, call.unbiased, needs, found)
    return value, Mmd2Inputs(*grads, *rungs)


def _member(
    inputs: Sequence[Tensor | None], kernel: Kernel, unbiased: bool, needs: Sequence[bool], grads: Sequence[Tensor]
) -> float:
    """One member of the batch; fills its gradients."""
    samples = [_Sample(p, w, unbiased) for p, w in zip(inputs[:2], inputs[2:], strict=True) if p is not None]
    rung_sums = samples[0].points.new_zeros((2, len(kernel.bandwidths)), dtype=F64) if any(needs[4:]) else None
    terms = _terms(samples, rung_sums, needs, grads)
    farthest = 4 * max(side.farthest for term in terms for side in (term.rows, term.columns))
    first, last = samples[0], samples[-1]
    typical = first.spread + last.spread + float((first.mean - last.mean).square().sum())
    # What folding rounds cancels between terms, but not against a closed form outside.
    described = _Kernel(kernel, farthest, typical, len(samples) == 2)
    for term in terms:
        term.choose_offset(described)
    _add_up(terms, described)
    value = 0.0
    for side, sample in enumerate(samples):
        own = [term for term in terms if term.rows.sample is sample]
        self_term, cross = own[0], own[1] if len(own) > 1 else None
        self_value = sample.scale * self_term.value
        self_mean = float(sample.weights @ self_value)
        value += sample.factor * self_mean
        if side == 0 and cross is not None:
            value -= 2 * samples[1].scale * float(sample.weights @ cross.value)
        if needs[2 + side]:
            g = 2 * sample.factor * self_value
            if cross is not None:
                g -= 2 * samples[1 - side].scale * cross.value
            if unbiased:
                g += 2 * sample.factor**2 * self_mean * sample.weights
            grads[2 + side].copy_((g - sample.weights @ g) * sample.scale)
        if needs[side]:
            _finish(grads[side], sample, self_term, terms[2] if len(samples) == 2 else None)
    for sums, grad in zip(() if rung_sums is None else rung_sums, grads[4:], strict=False):
        if grad.numel():
            grad.copy_(sums)
    return value


def _sides(samples: Sequence[_Sample]) -> tuple[list[_Side], list[_Side]]:
    """The samples as they meet themselves, about their means, and as they meet each other, about the middle of these.

    About the origin, if it is near, which takes no copies, or else about the middle alike, if that is near.
    """
    middle = torch.stack([sample.mean for sample in samples]).mean(0)
    near = NEAR * min(sample.spread for sample in samples)

    def distance(center: Tensor | float) -> float:
        return max(float((sample.mean - center).square().sum()) for sample in samples)

    dtype = samples[0].points.dtype
    shared = [_Side(sample, None if distance(0.0) <= near else middle.to(dtype)) for sample in samples]
    if min(distance(0.0), distance(middle)) <= near:
        return shared, shared
    return [_Side(sample, sample.mean.to(dtype)) for sample in samples], shared


def _terms(
    samples: Sequence[_Sample], rung_sums: Tensor | None, needs: Sequence[bool], grads: Sequence[Tensor]
) -> list[_Term]:
    """x with itself, y with itself, x with y and, for the gradient of y's weights, y with x."""
    for _ in range(TRIMS + 1):
        sides, shared = _sides(samples)
        if not any(side.far.any() for side in sides):
            break
        for sample, side in zip(samples, sides, strict=True):
            sample.measure(side.far[: len(sample.points)])

    def sums(side: int, scale: float) -> _Sums | None:
        if not needs[side]:
            return None
        sample = samples[side]
        return _Sums(torch.zeros(len(sample.points), dtype=F64), grads[side], _ratio(scale, sample.unit))

    terms = []
    for number, (sample, side) in enumerate(zip(samples, sides, strict=True)):
        half, own = not needs[2 + number], sums(number, sample.unit)  # a weight's gradient takes all of its pairs
        terms.append(_Term(side, side, half, sample.unit * sample.scale, rung_sums, own, own if half else None))
    if len(samples) == 2:
        x, y = samples
        factor = -2 * x.scale * y.scale
        terms.append(_Term(shared[0], shared[1], False, factor, rung_sums, sums(0, -y.scale), sums(1, -x.scale)))
        if needs[3]:
            terms.append(_Term(shared[1], shared[0], False, 0.0, None, None, None))
    return terms


def _add_up(terms: Sequence[_Term], kernel: _Kernel) -> None:
    """All tiles of all terms.

    Those of the terms that meet in one gradient take turns: what they add to it cancels early, and sums of float32
    stay as small as their result.
    """
    streams = [
        term.tiles(number, below)
        for number, term in enumerate(terms)
        for below in ((False,) if term.half else (False, True))
    ]
    copies: OrderedDict[tuple[_Side, int], Tensor] = OrderedDict()

    def block(side: _Side, number: int) -> Tensor:
        if side.is_view(number):
            return side.sample.points[side.rows[number]]
        points = copies.pop((side, number), None)
        if points is None:
            points = side.copy(number, copies.popitem(last=False)[1] if len(copies) >= KEPT_BLOCKS else None)
        copies[side, number] = points
        return points

    for _, _, number, i, j in heapq.merge(*streams):
        term = terms[number]
        term.add(i, j, block(term.rows, i), block(term.columns, j), kernel)


def _finish(grad: Tensor, sample: _Sample, self_term: _Term, cross: _Term | None) -> None:
    """4 w_i times what the products have, what they leave to the slopes' sums, and what the slopes leave out."""
    parts = [(self_term.rows, self_term.rows, self_term.row_sums, sample.unit, self_term.shift * sample.factor)]
    if cross is not None:
        sides = (cross.rows, cross.columns, cross.row_sums)
        if cross.rows.sample is not sample:
            sides = (cross.columns, cross.rows, cross.column_sums)
        parts.append((*sides, -sides[1].sample.scale, -cross.shift))
    wide = torch.empty_like(sample.wide)
    for rows in _chunks(len(grad)):
        total = wide[: rows.stop - rows.start].copy_(grad[rows]).mul_(sample.unit)
        for own, other, sums, scale, shift in parts:
            assert sums is not None
            slopes = scale * sums.slopes[rows] + shift
            total.addcmul_(sample.chunk(rows, own.center), slopes[:, None]).sub_(shift * other.moment)
        grad[rows] = total.mul_(4 * sample.weights[rows, None])


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan


def _chunks(count: int, size: int = CHUNK) -> Iterator[slice]:
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))
