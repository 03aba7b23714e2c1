"""Checks that training loops run now and then: do the codes match the prior, can the kernel see them?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.arguments import check_points
from .regularizers import Regularizer

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
SATURATED = 0.02  # distance of a kernel's mean value from 0 and 1 below which it hardly varies over the data


@dataclass(frozen=True)
class CodeHealth:
    """Norm quantiles of codes and of prior draws (at QUANTILES), and what is wrong with the codes, if anything."""

    norm_quantiles: tuple[float, ...]
    prior_norm_quantiles: tuple[float, ...]
    problem: str | None


def code_health(codes: Tensor, draws: Tensor, *, factor: float = 2.0) -> CodeHealth:
    """Compare the distances of codes [N, D] and prior draws [M, D] from the draws' mean.

    Codes count as collapsed when their median distance is below 1 / factor of the draws', as escaped when their median,
    95% or 99% quantile is beyond factor times the draws'. Reads values on the host: call it every so many steps.
    """
    check_points(2, codes=codes, draws=draws)
    center = draws.float().mean(0)
    levels = torch.tensor(QUANTILES, device=codes.device)
    ours, theirs = (
        tuple((part.detach().float() - center).norm(dim=1).quantile(levels).tolist()) for part in (codes, draws)
    )
    problem = None
    if not all(q < float("inf") for q in ours):
        problem = "codes are not finite; lower model.learning_rate"
    elif ours[2] < theirs[2] / factor:
        problem = (
            f"codes collapsed: their median norm is {ours[2]:.3g}, the prior's {theirs[2]:.3g}; raise "
            "model.regularizer_weight or use smaller bandwidths"
        )
    elif far := [i for i in (2, 4, 5) if ours[i] > factor * theirs[i]]:
        problem = (
            f"codes escaped: the {QUANTILES[far[0]]:.0%} quantile of their norm is {ours[far[0]]:.3g}, the prior's "
            f"{theirs[far[0]]:.3g}; raise model.regularizer_weight, add a larger bandwidth, lower model.learning_rate "
            "or set model.warmup_steps"
        )
    return CodeHealth(ours, theirs, problem)


def kernel_problem(regularizer: Regularizer, codes: Tensor, draws: Tensor) -> str | None:
    """What is wrong with the scale of the kernel between codes [N, D] and prior draws [M, D], if anything.

    A Gaussian bandwidth far below the distances gives values near 0, one far above values near 1; either way the
    gradient vanishes. Reported when it holds for every bandwidth. Reads values on the host.
    """
    scales = regularizer.kernel_scales()
    if scales is None:
        return None
    _, bandwidths = scales
    r = torch.cdist(codes.detach().float(), draws.float()).square()
    means = [torch.exp(-r / (2 * s**2)).mean().item() for s in bandwidths]
    shown = ", ".join(f"{s:g}: {mean:.3g}" for s, mean in zip(bandwidths, means, strict=True))
    advice = f"the median heuristic gives {(r.median() / 2).sqrt().item():.3g} (model.bandwidths)"
    if all(mean < SATURATED for mean in means):
        return f"kernel saturated near 0 (mean value by bandwidth: {shown}): bandwidths too small; {advice}"
    if all(mean > 1 - SATURATED for mean in means):
        return f"kernel saturated near 1 (mean value by bandwidth: {shown}): bandwidths too large; {advice}"
    return None
