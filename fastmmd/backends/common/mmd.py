"""mmd2 and witness from sums over columns: what the backends that have nothing but such sums share.

    value_i    = sum_j v_j u(p_i, q_j)
    gradient_i = sum_j v_j k'(r_ij) (p_i - q_j)

with u = k - k(0). In a signed measure of total weight zero k(0) drops out and takes the rounding with it. The weights
come as given, v_j = factor * mass_j, since normalized ones would round each on its own.

Members of a batch are [B, N] points, or segments of different sizes in one row of points: then points are [1, N, D],
offsets [B + 1], member b is the points offsets[b]:offsets[b + 1], and those behind the last offset are in none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

from ...kernels import Kernel
from ..calls import Mmd2, Mmd2Inputs, Sample, Witness, WitnessBackward, WitnessInputs, members_of_rows

F64 = torch.float64


@dataclass
class Measure:
    """A sample with its normalized weights.

    Floats stand for all points alike, and for a batch of them: unweighted samples cost no operations. A backend may
    keep what it computes of a sample in a subclass, from one sum over it to the next.
    """

    points: Tensor  # [B, N, D]; with offsets [1, N, D]
    mass: Tensor | None  # [B, N], weights as given, signed; None: ones
    weights: Tensor | float = 1.0  # [B, N] float64, normalized; with offsets 0 for the points of no member
    scale: Tensor | float = 1.0  # [B], 1 / the sum of masses
    factor: Tensor | float = 1.0  # [B], of the self-term: 1, or 1 / (1 - sum w^2) if unbiased
    offsets: Tensor | None = None  # [B + 1] int64, rising; None: all members have N points

    @property
    def batch(self) -> int:
        """B."""
        return self.points.shape[0] if self.offsets is None else self.offsets.shape[0] - 1

    @classmethod
    def measured(cls, sample: Sample, opposite: Sample | None, unbiased: bool) -> Self:
        """The sample with what its weights, normalized in float64, give.

        Where both sides have members of their own sizes, the weights of those that only one side has, or that have too
        few points for the unbiased estimator, are NaN.
        """
        if sample.weights is None and sample.offsets is None:
            n = sample.points.shape[1]
            return cls(sample.points, None, 1 / n, 1 / n, 1 / (1 - 1 / n) if unbiased else 1.0)
        return cls._weighted(sample, opposite, unbiased)

    @classmethod
    def _weighted(cls, sample: Sample, opposite: Sample | None, unbiased: bool) -> Self:
        x, weights, offsets = sample.points, sample.weights, sample.offsets
        out = cls(x, weights, offsets=offsets)
        w = x.new_ones(x.shape[:2], dtype=F64) if weights is None else weights.to(F64)
        out.scale = 1 / out.total(w)
        if offsets is not None:
            out.scale = out.scale.masked_fill(offsets.diff() == 0, 0.0)
        out.weights = w = w * out.spread(out.scale)
        if unbiased:
            out.factor = 1 / (1 - out.total(w.square()))
            if offsets is not None:  # an infinite one times 0 would be NaN in other members too
                out.factor = out.factor.masked_fill(offsets.diff() == 1, 0.0)
        if offsets is not None and opposite is not None and opposite.offsets is not None:
            out.weights = w + out.spread(_impossible(offsets.diff(), opposite.offsets.diff(), unbiased))
        return out

    @cached_property
    def member(self) -> Tensor:
        """With offsets: the member of each point, B for those of none: [N]."""
        assert self.offsets is not None
        return members_of_rows(self.offsets, self.points.shape[1])

    def total(self, values: Tensor) -> Tensor:
        """Sums over the points of each member: [B, N, ...] -> [B, ...]."""
        return values.sum(1) if self.offsets is None else segment_sums(values[0], self.offsets)

    def spread(self, numbers: Tensor) -> Tensor:
        """For each point the number of its member, or 0: [B, ...] -> [B, 1, ...], with offsets [1, N, ...]."""
        if self.offsets is None:
            return numbers[:, None]
        return torch.cat([numbers, torch.zeros_like(numbers[:1])])[self.member][None]


M = TypeVar("M", bound=Measure)


@dataclass(frozen=True)
class RowSums(Generic[M]):
    """A call of a backend: for each row its sums over the columns."""

    rows: M  # N points; their masses are not read
    columns: M  # M points
    factor: Tensor | float  # [B] float64
    kernel: Kernel
    needs_gradient: bool
    row_weights: Tensor | None  # [B, N] float64: row_i of the sums per kernel; None: these are not needed
    half: bool  # rows are columns, and only sum_i mass_i value_i matters: pairs may count on one side, twice
    typical: tuple[M, M]  # pairs of these decide how all sums of the call round, so that they round alike
    may_fold: bool = True  # see `calls.Mmd2.may_fold`


@dataclass
class Sums:
    """The sums, float64; empty where not needed.

    value [B, N]; gradient [B, N, D]; per kernel [B, S]: sum_i,j row_i v_j (...). With offsets value is [1, N], gradient
    [1, N, D], and both are 0 for the points of no member.
    """

    value: Tensor
    gradient: Tensor
    bandwidths: Tensor
    kernel_weights: Tensor

    def plus(self, other: Sums, times: float = 1.0) -> Sums:
        """The sums with those over other columns; times: how often their values and sums per kernel count."""
        return Sums(
            _plus(self.value, other.value, times),
            _plus(self.gradient, other.gradient),
            _plus(self.bandwidths, other.bandwidths, times),
            _plus(self.kernel_weights, other.kernel_weights, times),
        )


def _plus(one: Tensor, other: Tensor, times: float = 1.0) -> Tensor:
    """one + times other, without an operation where they are not needed."""
    return torch.add(one, other, alpha=times) if one.numel() else one


SumRows = Callable[[RowSums[M]], Sums]


def segment_sums(values: Tensor, offsets: Tensor) -> Tensor:
    """Sums of the rows offsets[b]:offsets[b + 1], in order: [N, ...], [B + 1] -> [B, ...]."""
    if values.shape[0] == 0:
        return values.new_zeros((offsets.shape[0] - 1, *values.shape[1:]))
    return torch.segment_reduce(values.contiguous(), "sum", offsets=offsets, axis=0)


def mmd2(sum_rows: SumRows[M], kind: type[M], call: Mmd2) -> tuple[Tensor, Mmd2Inputs[Tensor]]:
    """Value [B] in float64 and six gradients; see `calls.MmdBackend.mmd2`. kind: of the samples in `RowSums`."""
    x, unbiased, needs = call.x.points, call.unbiased, call.needs

    sx = kind.measured(call.x, call.y, unbiased)
    sy = None if call.y is None else kind.measured(call.y, call.x, unbiased)

    def sums(rows: M, columns: M, factor: Tensor | float, gradient: bool, half: bool = False) -> Sums:
        row_weights = None
        if needs.bandwidths or needs.kernel_weights:
            row_weights = _each(rows.weights, rows.points)
        factor = factor * columns.scale
        typical = (sx, sy or sx)
        return sum_rows(
            RowSums(rows, columns, factor, call.kernel, gradient, row_weights, half, typical, call.may_fold)
        )

    xx = sums(sx, sx, sx.factor, needs.x, half=not (needs.x or needs.x_weights))
    of_x, of_points, of_weights = xx, x.new_empty(0), x.new_empty(0)
    value: Tensor | float = 0.0
    per_kernel = [xx.bandwidths, xx.kernel_weights]
    if sy is not None and call.fixed_y:
        cross = sums(sx, sy, -1.0, needs.x)
        of_x, value = xx.plus(cross), sx.total(sx.weights * cross.value)
    elif sy is not None:
        of_y = yy = sums(sy, sy, sy.factor, needs.y, half=not (needs.y or needs.y_weights))
        from_both = any(needs[1:4])  # else x and y need meet from one side only
        of_x = xx.plus(sums(sx, sy, -1.0, needs.x), 1.0 if from_both else 2.0)
        if from_both:
            of_y = yy.plus(sums(sy, sx, -1.0, needs.y))
        of_points, of_weights = _gradients(sy, of_y, yy, unbiased, needs.y, needs.y_weights)
        value = sy.total(sy.weights * of_y.value)
        per_kernel = [_plus(of_x.bandwidths, of_y.bandwidths), _plus(of_x.kernel_weights, of_y.kernel_weights)]
    own = _gradients(sx, of_x, xx, unbiased, needs.x, needs.x_weights)
    per_kernel = [gradient if need else x.new_empty(0) for gradient, need in zip(per_kernel, needs[4:], strict=True)]
    gradients = (own[0], of_points, own[1], of_weights, *per_kernel)
    return sx.total(sx.weights * of_x.value) + value, Mmd2Inputs(*[gradient.to(x.dtype) for gradient in gradients])


def _impossible(x_count: Tensor, y_count: Tensor, unbiased: bool) -> Tensor:
    """NaN for members without points on one side, or with one where two are needed; 0 for the others: [B]."""
    wrong = (x_count == 0) != (y_count == 0)
    if unbiased:
        wrong |= (x_count == 1) | (y_count == 1)
    return torch.zeros_like(x_count, dtype=F64).masked_fill(wrong, torch.nan)


def _each(weights: Tensor | float, points: Tensor) -> Tensor:
    """Weights of all points: [B, N] float64."""
    return weights if isinstance(weights, Tensor) else points.new_full(points.shape[:2], weights, dtype=F64)


def _gradients(
    sample: Measure, all_rows: Sums, self_rows: Sums, unbiased: bool, points: bool, weights: bool
) -> list[Tensor]:
    """The gradients of mmd2 in one sample's points [B, N, D] and weights [B, N]; empty where not needed."""
    w, a = sample.weights, sample.factor
    out = [sample.points.new_empty(0), sample.points.new_empty(0)]
    if points:
        out[0] = (4 * w[..., None] if isinstance(w, Tensor) else 4 * w) * all_rows.gradient
    if weights:
        g = 2 * all_rows.value
        if unbiased:  # the factor depends on the weights; self_rows already holds it once
            g = g + 2 * w * sample.spread(a * sample.total(w * self_rows.value))
        g = g - sample.spread(sample.total(w * g))  # through the normalization
        out[1] = g * (sample.spread(sample.scale) if isinstance(sample.scale, Tensor) else sample.scale)
    return out


def witness(sum_rows: SumRows[M], kind: type[M], call: Witness) -> Tensor:
    """sum_j weights_j u(points_i, samples_j): [P]."""
    rows, columns = kind(call.points[None], None), kind(call.samples[None], call.weights[None])
    sums = sum_rows(RowSums(rows, columns, 1.0, call.kernel, False, None, False, (rows, columns)))
    return sums.value[0].to(call.points.dtype)


def witness_backward(sum_rows: SumRows[M], kind: type[M], call: WitnessBackward) -> WitnessInputs[Tensor]:
    """The five gradients of grad . witness; see `calls.MmdBackend.witness_backward`."""
    forward, needs = call.forward, call.needs
    g, v = call.grad[None], forward.weights[None]
    of_points, of_samples = kind(forward.points[None], g), kind(forward.samples[None], v)
    typical = (of_points, of_samples)
    out = WitnessInputs(*[g.new_empty(0) for _ in needs])
    if needs.points or needs.bandwidths or needs.kernel_weights:
        row_weights = g.to(F64) if needs.bandwidths or needs.kernel_weights else None
        sums = sum_rows(RowSums(of_points, of_samples, 1.0, forward.kernel, needs.points, row_weights, False, typical))
        out = out._replace(
            points=(2 * g[..., None] * sums.gradient)[0] if needs.points else out.points,
            bandwidths=sums.bandwidths[0] if needs.bandwidths else out.bandwidths,
            kernel_weights=sums.kernel_weights[0] if needs.kernel_weights else out.kernel_weights,
        )
    if needs.samples or needs.weights:
        sums = sum_rows(RowSums(of_samples, of_points, 1.0, forward.kernel, needs.samples, None, False, typical))
        out = out._replace(
            samples=(2 * v[..., None] * sums.gradient)[0] if needs.samples else out.samples,
            weights=sums.value[0] if needs.weights else out.weights,
        )
    return WitnessInputs(*[gradient.to(forward.points.dtype) for gradient in out])
