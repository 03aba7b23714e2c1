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
from collections.abc import Sequence

import torch
from torch import Tensor

from ...calls import Mmd2, Mmd2Inputs
from ...common.products import full_precision
from .samples import F64, NormalizedSample, Side, Sums, chunks_of
from .terms import Term, TileKernel

KEPT_BLOCKS = 4  # copies of points about a center
NEAR = 0.1  # of the samples' mean squared distance from their means: centers as near to these serve as well
TRIMS = 2  # times that the mean is taken again without outliers


def mmd2(call: Mmd2) -> tuple[Tensor, Mmd2Inputs[Tensor]]:
    """Value [B] in float64 and six gradients; see `calls.MmdBackend.mmd2`. Points must be finite, and their norms."""
    x, y = call.x.points, None if call.y is None else call.y.points
    needs, count = call.needs, len(call.kernel.bandwidths)
    batch, n, new = len(x), x.shape[1], x.new_zeros
    value = x.new_empty(batch, dtype=F64)
    gradients = Mmd2Inputs(
        x=new(x.shape if needs.x else 0),
        y=new(y.shape if needs.y and y is not None else 0),
        x_weights=new((batch, n) if needs.x_weights else 0),
        y_weights=new((batch, y.shape[1]) if needs.y_weights and y is not None else 0),
        bandwidths=new((batch, count) if needs.bandwidths else 0),
        kernel_weights=new((batch, count) if needs.kernel_weights else 0),
    )
    with full_precision():
        for b in range(batch):
            value[b] = _member(call, b, [gradient[b] if gradient.numel() else gradient for gradient in gradients])
    return value, gradients


def _member(call: Mmd2, b: int, grads: Sequence[Tensor]) -> float:
    """One member of the batch; fills its gradients."""
    kernel, needs = call.kernel, call.needs
    samples = [
        NormalizedSample(sample.points[b], None if sample.weights is None else sample.weights[b], call.unbiased)
        for sample in (call.x, call.y)
        if sample is not None
    ]
    rung_sums = samples[0].points.new_zeros((2, len(kernel.bandwidths)), dtype=F64) if any(needs[4:]) else None
    terms = _terms(samples, rung_sums, needs, grads, call.fixed_y)
    farthest = 4 * max(side.farthest for term in terms for side in (term.rows, term.columns))
    first, last = samples[0], samples[-1]
    typical = first.spread + last.spread + float((first.mean - last.mean).square().sum())
    # What folding rounds cancels between terms, but not against a closed form outside.
    on_tiles = TileKernel(kernel, farthest, typical, call.may_fold)
    for term in terms:
        term.choose_offset(on_tiles)
    _add_up(terms, on_tiles)
    value = 0.0
    both = next((term for term in terms if term.rows is not term.columns), None)
    for side, sample in enumerate(samples[:1] if call.fixed_y else samples):
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
            if call.unbiased:
                g += 2 * sample.factor**2 * self_mean * sample.weights
            grads[2 + side].copy_((g - sample.weights @ g) * sample.scale)
        if needs[side]:
            _finish(grads[side], sample, self_term, both)
    for sums, grad in zip(() if rung_sums is None else rung_sums, grads[4:], strict=False):
        if grad.numel():
            grad.copy_(sums)
    return value


def _sides(samples: Sequence[NormalizedSample]) -> tuple[list[Side], list[Side]]:
    """The samples as they meet themselves, about their means, and as they meet each other, about the middle of these.

    About the origin, if it is near, which takes no copies, or else about the middle alike, if that is near.
    """
    middle = torch.stack([sample.mean for sample in samples]).mean(0)
    near = NEAR * min(sample.spread for sample in samples)

    def distance(center: Tensor | float) -> float:
        return max(float((sample.mean - center).square().sum()) for sample in samples)

    dtype = samples[0].points.dtype
    shared = [Side(sample, None if distance(0.0) <= near else middle.to(dtype)) for sample in samples]
    if min(distance(0.0), distance(middle)) <= near:
        return shared, shared
    return [Side(sample, sample.mean.to(dtype)) for sample in samples], shared


def _terms(
    samples: Sequence[NormalizedSample],
    rung_sums: Tensor | None,
    needs: Sequence[bool],
    grads: Sequence[Tensor],
    fixed_y: bool,
) -> list[Term]:
    """x with itself, y with itself unless it is fixed, x with y and, for the gradient of y's weights, y with x."""
    for _ in range(TRIMS + 1):
        sides, shared = _sides(samples)
        if not any(side.far.any() for side in sides):
            break
        for sample, side in zip(samples, sides, strict=True):
            sample.measure(side.far[: len(sample.points)])

    def sums(side: int, scale: float) -> Sums | None:
        if not needs[side]:
            return None
        sample = samples[side]
        return Sums(torch.zeros(len(sample.points), dtype=F64), grads[side], _ratio(scale, sample.unit))

    terms = []
    for number, (sample, side) in enumerate(zip(samples, sides, strict=True)):
        if fixed_y and number == 1:
            break
        half, own = not needs[2 + number], sums(number, sample.unit)  # a weight's gradient takes all of its pairs
        terms.append(Term(side, side, half, sample.unit * sample.scale, rung_sums, own, own if half else None))
    if len(samples) == 2:
        x, y = samples
        factor = -2 * x.scale * y.scale
        terms.append(Term(shared[0], shared[1], False, factor, rung_sums, sums(0, -y.scale), sums(1, -x.scale)))
        if needs[3]:
            terms.append(Term(shared[1], shared[0], False, 0.0, None, None, None))
    return terms


def _add_up(terms: Sequence[Term], kernel: TileKernel) -> None:
    """All tiles of all terms.

    Those of the terms that meet in one gradient take turns: what they add to it cancels early, and sums of float32
    stay as small as their result.
    """
    streams = [
        term.tiles(number, below)
        for number, term in enumerate(terms)
        for below in ((False,) if term.half else (False, True))
    ]
    copies: OrderedDict[tuple[Side, int], Tensor] = OrderedDict()

    def block(side: Side, number: int) -> Tensor:
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


def _finish(grad: Tensor, sample: NormalizedSample, self_term: Term, cross: Term | None) -> None:
    """4 w_i times what the products have, what they leave to the slopes' sums, and what the slopes leave out."""
    parts = [(self_term.rows, self_term.rows, self_term.row_sums, sample.unit, self_term.shift * sample.factor)]
    if cross is not None:
        sides = (cross.rows, cross.columns, cross.row_sums)
        if cross.rows.sample is not sample:
            sides = (cross.columns, cross.rows, cross.column_sums)
        parts.append((*sides, -sides[1].sample.scale, -cross.shift))
    wide = torch.empty_like(sample.wide)
    for rows in chunks_of(len(grad)):
        total = wide[: rows.stop - rows.start].copy_(grad[rows]).mul_(sample.unit)
        for own, other, sums, scale, shift in parts:
            assert sums is not None
            slopes = scale * sums.slopes[rows] + shift
            total.addcmul_(sample.chunk(rows, own.center), slopes[:, None]).sub_(shift * other.moment)
        grad[rows] = total.mul_(4 * sample.weights[rows, None])


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan
