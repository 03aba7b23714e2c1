"""Fidelity and variety of samples apart: balls around real and generated points in a space of features.

A likelihood by Parzen windows says neither: it rewards the means of clusters of images (Theis, van den Oord and Bethge
2016). Here a ball reaches from a point to its k-th nearest neighbor in its own set, and the balls around a set stand
for its support.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastmmd.evaluation.neighbors import check_finite, distance_tiles
from fastmmd.ops.arguments import check_int, check_points

_SLACK = 1e-12  # of the mean squared norm: above what float64 rounds off, so that a point at the border is inside


class PrecisionRecall(NamedTuple):
    """`precision`: share of the samples inside a real point's ball; `recall`: of the real points inside a sample's."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """`density`: how many real points' balls a sample lies in, over k; `coverage`: share of these balls with a sample.

    For samples of the real distribution the expected density is 1; coverage is about 1 - 2^-k where there are as many
    samples as real points.
    """

    density: float
    coverage: float


@torch.no_grad()
def precision_recall(real: Tensor, samples: Tensor, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019, equations 1 and 2), in memory linear in both sets.

    Args:
        real: [N, D] features of real images, N > k; samples: [M, D] those of samples, M > k. Use as many of both. They
            are compared in float64.
        k: a ball's radius is the distance of its center to the k-th nearest of the other points of its set.

    Raises:
        ValueError, TypeError: naming the argument; also NaN or infinity.
    """
    real, samples, slack = _prepared(real, samples, k)
    inside_real, _ = _inside(real, _radii(real, k) + slack, samples)
    inside_samples, _ = _inside(samples, _radii(samples, k) + slack, real)
    return PrecisionRecall((inside_real > 0).double().mean().item(), (inside_samples > 0).double().mean().item())


@torch.no_grad()
def density_coverage(real: Tensor, samples: Tensor, k: int = 5) -> DensityCoverage:
    """Density and coverage (Naeem et al. 2020, equations 3 and 4), in memory linear in both sets.

    Outliers among the real points widen precision by their large balls, and density hardly; coverage has balls around
    real points only, and none around outliers among the samples.

    Args:
        real, samples, k: see `precision_recall`.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    real, samples, slack = _prepared(real, samples, k)
    count, hit = _inside(real, _radii(real, k) + slack, samples)
    return DensityCoverage(count.double().mean().item() / k, hit.double().mean().item())


def _prepared(real: Tensor, samples: Tensor, k: int) -> tuple[Tensor, Tensor, float]:
    """Both sets in float64 about the mean of the real points, and what counts as no distance between two squares."""
    check_int("k", k)
    check_points(2, empty=True, real=real, samples=samples)
    for name, points in (("real", real), ("samples", samples)):
        if len(points) <= k:
            raise ValueError(f"{name}: got {len(points)} points, expected more than k = {k}")
    check_finite(real=real, samples=samples)
    center = real.double().mean(0)
    real, samples = real.double() - center, samples.double() - center
    largest = max(points.square().sum(1).mean().item() for points in (real, samples))
    return real, samples, _SLACK * largest


def _radii(points: Tensor, k: int) -> Tensor:
    """The squared distance of each point [N, D] to the k-th nearest of the others: [N]."""
    nearest = points.new_full((len(points), k + 1), torch.inf)
    for rows, _, squared in distance_tiles(points, points, points.new_zeros(points.shape[1])):
        nearest[rows] = torch.cat([nearest[rows], squared], 1).topk(k + 1, largest=False).values
    return nearest[:, k]  # the nearest of all is the point itself


def _inside(centers: Tensor, radii: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Of balls about centers [N, D], squared radii [N]: how many contain each point, [M]; which contain one, [N]."""
    count = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    hit = torch.zeros(len(centers), dtype=torch.bool, device=points.device)
    for rows, columns, squared in distance_tiles(centers, points, points.new_zeros(points.shape[1])):
        inside = squared <= radii[rows, None]
        count[columns] += inside.sum(0)
        hit[rows] |= inside.any(1)
    return count, hit
