"""Periodic checks for training loops: do the codes match the prior, and is the kernel sensitive at their scale?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import FAMILIES
from ..ops.arguments import check_number, check_points
from ..ops.median import median_bandwidth
from .networks import check_module
from .regularizers import Regularizer

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
SATURATED = 0.02  # a kernel whose values all lie this near to 0 or 1 hardly varies over the data


@dataclass(frozen=True)
class CodeHealth:
    """Norm quantiles of codes and of prior draws (at QUANTILES), and what is wrong with the codes, if anything."""

    norm_quantiles: tuple[float, ...]
    prior_norm_quantiles: tuple[float, ...]
    problem: str | None


def code_health(codes: Tensor, draws: Tensor, *, factor: float = 2.0) -> CodeHealth:
    """Compare the distances of codes [N, D] and prior draws [M, D] from the draws' mean.

    Codes count as collapsed when their median distance is below 1 / factor of the draws', as escaped when their median,
    95% or 99% quantile is beyond factor times the draws'. Reads values on the host: do not call it at every step.
    """
    _check_values(codes, draws)
    factor = check_number("factor", factor)
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

    A bandwidth far below the distances gives values near 0 even between neighbors, one far above values near 1 even
    across the sample; either way the gradient vanishes. Reported when it holds for every bandwidth. Looks at the
    first 1,000 points of each; reads values on the host.
    """
    _check_values(codes, draws)
    kernel = check_module("regularizer", regularizer, Regularizer).kernel_spec()
    if kernel is None:
        return None
    codes, draws = codes[:1000].detach().float(), draws[:1000].float()
    r = torch.cdist(codes, draws).square()
    family = FAMILIES[kernel.family]
    values = [1 + family.kappa(r, s, kernel.alpha).u for s in kernel.bandwidths]
    nearest = [k.amax(1).mean().item() for k in values]
    farthest = [k.amin(1).mean().item() for k in values]
    advice = f"the median heuristic gives {median_bandwidth(codes, draws).item():.3g} (model.bandwidths)"
    scales = [float(s) for s in kernel.bandwidths]
    if all(k < SATURATED for k in nearest):
        return f"kernel saturated near 0 ({_by_scale(scales, nearest)}): bandwidths too small; {advice}"
    if all(k > 1 - SATURATED for k in farthest):
        return f"kernel saturated near 1 ({_by_scale(scales, farthest)}): bandwidths too large; {advice}"
    return None


def _check_values(codes: Tensor, draws: Tensor) -> None:
    """Points whose values can be read."""
    check_points(2, codes=codes, draws=draws)
    if codes.device.type == "meta":
        raise ValueError("codes: got a tensor on meta, which has no values; expected one on another device")


def _by_scale(scales: list[float], values: list[float]) -> str:
    shown = ", ".join(f"{value:.3g} at bandwidth {scale:g}" for scale, value in zip(scales, values, strict=True))
    return f"its value: {shown}"
