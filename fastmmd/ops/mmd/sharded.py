"""`mmd2` over the processes of a group: each computes its own rows against all.

With u = k - k(0), a and b the weights of the points, and U(P, Q) = sum_ij p_i q_j u_ij,

    MMD^2 = U(X, X) - 2 U(X, Y) + U(Y, Y) = sum_r [U(A_r, X) - U(A_r, Y)] + [U(B_r, Y) - U(B_r, X)]

where A_r and B_r are the shards of process r in X and Y. As the form is symmetric, the gradient in a point is twice
that of these terms in it as a point of its shard. The unbiased estimator multiplies U(X, X) by alpha = 1 / (1 - sum
a_i^2), and U(Y, Y) alike (u is 0 on the diagonal). `mmd2_members` with a fixed second sample gives F(A, X) =
U(A, A) - 2 U(A, X), in float64 with its gradient in A, so U(A, X) - U(A, Y) = (F(A, Y) - F(A, X)) / 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...backends import current
from ...kernels import Kernel
from ..dispatch import needs_grad
from ..labels import by_class, known_classes
from ..shards import Shards, with_gradients
from .operators import flattened, mmd2_members

F64 = torch.float64


@dataclass(frozen=True)
class Side:
    """Points [n, D] of a sample, weights [n] (uniform: None), keys [n]: the class of each, `classes` for none."""

    points: Tensor
    weights: Tensor | None
    keys: Tensor | None
    classes: int = 1

    def by_class(self, values: Tensor) -> Tensor:
        """Sums of values [n] over each class: [C] float64."""
        values = values.to(F64)
        if self.keys is None:
            return values.sum(0, keepdim=True)
        return values.new_zeros(self.classes + 1).scatter_add(0, self.keys, values)[:-1]

    def row_masses(self) -> Tensor:
        """[n]."""
        return self.points.new_ones(len(self.points)) if self.weights is None else self.weights

    def masses(self) -> Tensor:
        """Sums of weights over each class: [C] float64."""
        return self.by_class(self.row_masses())

    def leaf(self, needs: Sequence[bool]) -> Side:
        """Detached, to be differentiated in points and weights where that is needed."""
        weights = None if self.weights is None else self.weights.detach().requires_grad_(needs[1])
        return replace(self, points=self.points.detach().requires_grad_(needs[0]), weights=weights)

    def of_rows(self, values: Tensor) -> Tensor:
        """For each point the entry of values [C] for its class, 0 where it has none: [n] in the dtype of the points."""
        keys = self.points.new_zeros(len(self.points), dtype=torch.int64) if self.keys is None else self.keys
        return torch.cat([values, values.new_zeros(1)])[keys].to(self.points.dtype)

    def of_class(self, label: int) -> Side:
        """Its points by themselves."""
        assert self.keys is not None
        rows = self.keys.eq(label).nonzero().squeeze(1)
        return Side(self.points[rows], None if self.weights is None else self.weights[rows], None)

    def packed(self) -> Tensor:
        """All of it as rows [n, C]. Labels are small enough for any dtype of the points."""
        columns = [column[:, None].to(self.points) for column in (self.weights, self.keys) if column is not None]
        return torch.cat([self.points, *columns], 1)

    def unpacked(self, rows: Tensor) -> Side:
        """The same of rows of another process."""
        dim = self.points.shape[1]
        weights = None if self.weights is None else rows[:, dim].contiguous()
        keys = None if self.keys is None else rows[:, -1].to(torch.int64)
        return Side(rows[:, :dim].contiguous(), weights, keys, self.classes)


def side_of(points: Tensor, weights: Tensor | None = None, labels: Tensor | None = None, classes: int = 1) -> Side:
    return Side(points, weights, None if labels is None else known_classes(labels, classes), classes)


def sharded_mmd2(
    sides: Sequence[Side],
    kernel: Kernel,
    unbiased: bool,
    shards: Shards,
    class_weights: Sequence[float] = (1.0,),
    absent: str = "raise",
    also: str = "mmd2",
) -> Tensor:
    """The value for all points of x and y, 0-d float64, differentiable in those of this process; of x alone U(X, X).

    Args:
        also: what else has to be the same on all processes.

    Raises:
        ValueError: the arguments differ between processes; too few points on all of them, an absent class, weights
            that sum to 0.
    """
    # Not as a decorator: that would import the compiler with the package.
    run = torch.compiler.disable(_sharded_mmd2) if torch.compiler.is_compiling() else _sharded_mmd2
    value: Tensor = run(sides, kernel, unbiased, shards, class_weights, absent, also)
    return value


def _sharded_mmd2(
    sides: Sequence[Side],
    kernel: Kernel,
    unbiased: bool,
    shards: Shards,
    class_weights: Sequence[float],
    absent: str,
    also: str,
) -> Tensor:
    counts = shards.agree(
        f"{_described(sides, kernel)}, {'unbiased' if unbiased else 'biased'}, class weights {tuple(class_weights)}, "
        f"absent={absent!r}, exchange={shards.exchange!r}, {also}",
        [len(side.points) for side in sides],
        sides[0].points.device,
    )
    run = _Run(sides, kernel, unbiased, shards)
    run.check(class_weights, absent)
    with torch.set_grad_enabled(run.differentiable):
        run.add_own_pairs()
        for block in zip(*map(shards.blocks, (side.packed() for side in sides), counts), strict=True):
            run.add_pairs([side.unpacked(rows) for side, rows in zip(sides, block, strict=True)])
    return run.value()


class _Run:
    """The terms of the points of this process, [sides, C] where nothing else is said, and their gradients."""

    def __init__(self, sides: Sequence[Side], kernel: Kernel, unbiased: bool, shards: Shards) -> None:
        self.sides, self.shards, self.unbiased = sides, shards, unbiased
        of_kernel = [values if isinstance(values, Tensor) else None for values in (kernel.bandwidths, kernel.weights)]
        self.inputs = [*(tensor for side in sides for tensor in (side.points, side.weights)), *of_kernel]
        needs = needs_grad(*self.inputs)
        self.differentiable = any(needs)
        self.own = [side.leaf(needs[2 * k : 2 * k + 2]) for k, side in enumerate(sides)]
        s, w = (
            tensor if tensor is None else tensor.detach().requires_grad_(need)
            for tensor, need in zip(of_kernel, needs[-2:], strict=True)
        )
        self.kernel = replace(
            kernel, bandwidths=kernel.bandwidths if s is None else s, weights=kernel.weights if w is None else w
        )
        self.leaves = [*(tensor for side in self.own for tensor in (side.points, side.weights)), s, w]
        self.gradients = [
            torch.zeros_like(leaf) if leaf is not None and leaf.requires_grad else None for leaf in self.leaves
        ]
        sums = [
            torch.stack([number, mass, side.by_class(masses.square()), ((number > 0) & (mass == 0)).to(F64)])
            for side in sides
            for masses in [side.row_masses().detach().to(F64)]
            for number, mass in [(side.by_class(torch.ones_like(masses)), side.by_class(masses))]
        ]
        self.numbers, self.masses, squares, self.without_mass = shards.total(torch.stack(sums)).unbind(1)
        self.masses = self.masses.where(self.numbers > 0, 1.0)
        self.concentration = squares / self.masses.square()  # sum a_i^2
        self.alpha = torch.ones_like(squares)
        if unbiased:
            self.alpha = torch.where(self.numbers > 1, 1 / (1 - self.concentration), 1.0)
        self.pi = torch.ones_like(squares[0])  # [C]
        self.terms, self.inner = torch.zeros_like(squares), torch.zeros_like(squares)  # inner: of U(X, X), U(Y, Y)

    def check(self, class_weights: Sequence[float], absent: str) -> None:
        """What only the points of all processes show."""
        least = 2 if self.unbiased else 1
        labeled, numbers_of = self.sides[0].keys is not None, self.numbers.tolist()
        for name, other, numbers, others in zip("xy", "yx", numbers_of, numbers_of[::-1], strict=False):
            for label, (number, of_other) in enumerate(zip(numbers, others, strict=True)):
                if not labeled and number < least:
                    raise ValueError(f"{name}: got {number:.0f} points on all processes, expected at least {least}")
                if labeled and absent == "raise" and number < least and max(number, of_other) > 0:
                    raise ValueError(
                        f"{name}_labels: got {number:.0f} points of class {label} on all processes, of which {other} "
                        f'has {of_other:.0f}; expected at least {least}, or absent="skip"'
                    )
        for name, without, masses in zip("xy", self.without_mass.tolist(), self.masses.tolist(), strict=False):
            for label, (count, mass) in enumerate(zip(without, masses, strict=True)):
                if count or not mass:
                    where = f" in class {label}" if labeled else ""
                    raise ValueError(
                        f"{name}_weights: got weights that sum to 0{where} on a process, or on all together; expected "
                        "another sum on each that has points"
                    )
        self.pi = self.pi.new_tensor(class_weights) * (self.numbers >= least).all(0)

    def _shares(self, sides: Sequence[Side]) -> list[Tensor]:
        """Of the weights of all points those of some, for each side: [C]."""
        return [side.masses() / mass for side, mass in zip(sides, self.masses, strict=True)]

    def add_own_pairs(self) -> None:
        """U(A, A), where U(A, X) - U(A, Y) leaves some of it."""
        left = self.alpha - (len(self.own) - 1)
        if not self.unbiased and len(self.own) == 2:
            return
        sums = [
            share * _members(side, None, self.kernel) / 2
            for share, side in zip(self._shares(self.own), self.own, strict=True)
        ]
        self.inner += torch.stack(sums).detach()
        self._add(left * torch.stack(sums))

    def add_pairs(self, block: Sequence[Side]) -> None:
        """Those of the own points with a block of all."""
        terms = []
        there = self._shares(block)
        for k, (side, share) in enumerate(zip(self.own, self._shares(self.own), strict=True)):
            within = share * there[k] * _members(side, block[k], self.kernel) / 2
            self.inner[k] -= within.detach()
            term = -self.alpha[k] * within
            if len(block) == 2:
                term = term + share * there[1 - k] * _members(side, block[1 - k], self.kernel) / 2
            terms.append(term)
        self._add(torch.stack(terms))

    def _add(self, terms: Tensor) -> None:
        self.terms += terms.detach()
        if not terms.requires_grad:
            return
        pairs = [
            (leaf, gradient)
            for leaf, gradient in zip(self.leaves, self.gradients, strict=True)
            if leaf is not None and gradient is not None
        ]
        found = torch.autograd.grad((self.pi * terms).sum(), [leaf for leaf, _ in pairs], allow_unused=True)
        for (_, gradient), more in zip(pairs, found, strict=True):
            if more is not None:
                gradient += more

    def value(self) -> Tensor:
        terms, inner = self.shards.total(torch.stack([self.terms, self.inner]))
        for k, side in enumerate(self.sides):
            points, weights = self.gradients[2 * k : 2 * k + 2]
            if points is not None:
                points *= 2  # as a point of the shard and as one of all
            if weights is not None:
                # A weight takes from all others, which are normalized with it, and moves alpha.
                mass, a = self.masses[k], side.of_rows(1 / self.masses[k]) * side.row_masses()
                bend = (
                    2 * self.pi * self.alpha[k].square() * inner[k] / mass if self.unbiased else torch.zeros_like(mass)
                )
                even = 2 * self.pi * terms[k] / mass + bend * self.concentration[k]
                weights.mul_(2).add_(side.of_rows(bend) * a - side.of_rows(even))
        value = (self.pi * terms.sum(0)).sum()
        return self.shards.scaled(with_gradients(value, self.inputs, self.gradients))


def _members(own: Side, other: Side | None, kernel: Kernel) -> Tensor:
    """F(A, X) of the shard and a block of points, or U(A, A), for each class: [C] float64."""
    there = own if other is None else other
    absent = own.points.new_zeros(own.classes, dtype=F64)
    if not len(own.points) or not len(there.points):
        return absent
    if other is None and own.keys is not None:  # the operator takes classes of two samples only
        return torch.cat([_members(own.of_class(label), None, kernel) for label in range(own.classes)])
    s, w, numbers, family = flattened(kernel)
    options, needs = [False, other is not None], needs_grad(own.points, None, own.weights, None, s, w)
    a, wa, b, wb, offsets = own.points[None], _row(own.weights), there.points[None], _row(there.weights), None
    if own.keys is not None and there.keys is not None:
        common = (own.masses() != 0) & (there.masses() != 0)
        a, wa, starts = by_class(a, wa, _among(own.keys, common), own.classes)
        b, wb, others = by_class(b, wb, _among(there.keys, common), own.classes)
        offsets = torch.stack([starts, others])
    sample = (None, None) if other is None else (b, wb)
    return mmd2_members(a, sample[0], wa, sample[1], s, w, offsets, numbers, family, options, needs, current())[0]


def _among(keys: Tensor, classes: Tensor) -> Tensor:
    """The keys without those classes that are False in [C]."""
    return keys.where(torch.cat([classes, classes.new_zeros(1)])[keys], len(classes))


def _row(weights: Tensor | None) -> Tensor | None:
    return None if weights is None else weights[None]


def _described(sides: Sequence[Side], kernel: Kernel) -> str:
    """What has to be the same on all processes; not the values of tensors, which are not read."""
    bandwidths, weights = (
        f"a tensor of {list(values.shape)}" if isinstance(values, Tensor) else str(values)
        for values in (kernel.bandwidths, kernel.weights)
    )
    points = sides[0].points
    weighted = ["with" if side.weights is not None else "without" for side in sides]
    return (
        f"D={points.shape[1]}, {points.dtype}, {' and '.join(weighted)} weights of points, {kernel.family}, bandwidths "
        f"{bandwidths}, kernel_weights {weights}, alpha={kernel.alpha}"
    )
