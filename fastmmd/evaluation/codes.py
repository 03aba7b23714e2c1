"""How well the codes of a model match its prior, and in which part of it they lie."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

import fastmmd
from fastmmd.evaluation.neighbors import check_finite, nearest_neighbors
from fastmmd.evaluation.walks import roll_walk
from fastmmd.ops.arguments import check_points
from fastmmd.priors import MixturePrior, Prior, SwissRoll

QUANTILES = (0.05, 0.5, 0.95, 0.99)
NEAR = 0.99  # of draws from a prior have a draw near, by definition
SCALES = (0.5, 1.0, 2.0, 4.0)  # bandwidths in units of the prior's standard deviation
ROLL_POINTS = 400  # in which each part of a swiss roll is looked up: 0.004 apart at the prior's radius of 3


@dataclass(frozen=True)
class CodeStatistics:
    """Codes against as many draws from the prior.

    Attributes:
        mean, std: per code dimension.
        prior_mean, prior_std: of the draws.
        norm_quantiles, prior_norm_quantiles: of |z|, at `QUANTILES`.
        mmd2: biased MMD^2 of codes and draws; Gaussian kernels at `SCALES` times the prior's std.
        mmd2_null: the same between two independent sets of draws: what a perfect match gives.
        count: number of codes.
        holes: see `prior_holes`; None in the record of a run that an earlier version evaluated.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    prior_mean: tuple[float, ...]
    prior_std: tuple[float, ...]
    norm_quantiles: tuple[float, ...]
    prior_norm_quantiles: tuple[float, ...]
    mmd2: float
    mmd2_null: float
    count: int
    holes: float | None = None


def code_statistics(codes: Tensor, draws: Tensor, more_draws: Tensor) -> CodeStatistics:
    """Compare codes [N, D] with two independent sets of draws from the prior, each [N, D], N >= 2."""
    for name, other in (("draws", draws), ("more_draws", more_draws)):
        if other.shape != codes.shape or codes.ndim != 2 or len(codes) < 2:
            shapes = f"{tuple(codes.shape)} and {tuple(other.shape)}"
            raise ValueError(f"codes and {name} must have one shape [N >= 2, D], got {shapes}")
    codes, draws, more_draws = (part.detach().float() for part in (codes, draws, more_draws))
    scale = draws.std().item()
    bandwidths = [factor * scale for factor in SCALES]
    quantiles = torch.tensor(QUANTILES, device=codes.device)
    return CodeStatistics(
        mean=_floats(codes.mean(0)),
        std=_floats(codes.std(0)),
        prior_mean=_floats(draws.mean(0)),
        prior_std=_floats(draws.std(0)),
        norm_quantiles=_floats(codes.norm(dim=1).quantile(quantiles)),
        prior_norm_quantiles=_floats(draws.norm(dim=1).quantile(quantiles)),
        mmd2=fastmmd.mmd2(codes, draws, bandwidths).item(),
        mmd2_null=fastmmd.mmd2(more_draws, draws, bandwidths).item(),
        count=len(codes),
        holes=prior_holes(codes, draws, more_draws),
    )


def prior_holes(codes: Tensor, draws: Tensor, more_draws: Tensor) -> float:
    """The share of a prior that has no code near: of `more_draws` [M, D], those that lie in holes of the codes [N, D].

    A draw lies in a hole if it is farther from every code than `NEAR` of the draws are from the nearest of `draws`
    [N, D], as many as codes. Codes that match the prior have holes of 1 - NEAR = 1%, up to chance. Unlike MMD^2 this
    does not see codes where the prior has no mass. Linear memory.

    Raises:
        TypeError, ValueError: no floating tensors, shapes that do not fit, no draws, or NaN or infinity.
    """
    check_points(2, empty=True, codes=codes, draws=draws, more_draws=more_draws)
    for name, other, rows in (("draws", draws, len(codes)), ("more_draws", more_draws, len(more_draws))):
        if other.shape != (rows, codes.shape[1]) or not rows:
            raise ValueError(f"{name}: got shape {list(other.shape)} for codes of shape {list(codes.shape)}")
    check_finite(codes=codes, draws=draws, more_draws=more_draws)
    near = nearest_neighbors(more_draws, draws).squared_distances
    far = nearest_neighbors(more_draws, codes).squared_distances
    radius = near.sort().values[math.ceil(NEAR * len(near)) - 1]  # `quantile` takes 16 million numbers at most
    return (far > radius).double().mean().item()


def prior_parts(prior: Prior, codes: Tensor) -> Tensor:
    """The part of the prior in which each code lies, numbered as the labels of `Prior.sample`: [N, D] -> [N] int64.

    Of a mixture the component with the largest responsibility for the code, w_k N(z; m_k, C_k); of a swiss roll the
    part to which the nearest point of its middle line belongs. Every code has a part, far from the prior too.

    Raises:
        ValueError: `codes` is no matrix of the prior's dimension.
        TypeError: the prior has no parts.
    """
    if codes.ndim != 2 or codes.shape[1] != prior.dim:
        raise ValueError(f"codes: got shape {list(codes.shape)}, expected [N, {prior.dim}]")
    if isinstance(prior, MixturePrior) and prior.num_classes:
        components = prior.components(codes.device)
        offset = codes.double()[:, None] - components.means  # [N, K, D]
        if components.eigenvectors is not None:
            offset = torch.einsum("nkd,kde->nke", offset, components.eigenvectors)
        squares = offset.square() / components.eigenvalues + components.eigenvalues.log()
        return (components.weights.log() - 0.5 * squares.sum(2)).argmax(1)
    if isinstance(prior, SwissRoll):
        line = roll_walk(prior, ROLL_POINTS * prior.num_classes).to(codes)
        nearest = [torch.cdist(some, line).argmin(1) for some in codes.split(1_000)]
        return torch.cat(nearest) // ROLL_POINTS
    raise TypeError(f"prior: got {type(prior).__name__}, expected GaussianMixture or SwissRoll, which have parts")


def _floats(values: Tensor) -> tuple[float, ...]:
    return tuple(values.cpu().tolist())
