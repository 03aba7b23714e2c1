"""Dense float64 formulas straight from the definitions, differentiated by autograd: what every backend is held to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Some dimensions at a time: all of few points, one of many."""
    dims = max(1, 2**18 // max(1, x.shape[-2] * y.shape[-2]))
    pairs = zip(x.split(dims, -1), y.split(dims, -1), strict=True)
    return sum((a[..., :, None, :] - b[..., None, :, :]).square().sum(-1) for a, b in pairs)


def kappa(r: Tensor, kernel: str, s, alpha: float) -> Tensor:
    safe = torch.where(r == 0, 1.0, r)  # a square root with gradient zero at the origin
    root = torch.where(r == 0, 0.0, safe.sqrt())
    return {
        "gaussian": lambda: torch.exp(-r / (2 * s**2)),
        "laplacian": lambda: torch.exp(-root / s),
        "imq": lambda: s**2 / (s**2 + r),
        "rational_quadratic": lambda: (1 + r / (2 * alpha * s**2)) ** -alpha,
        "energy": lambda: -root,
    }[kernel]()


def gram(x: Tensor, y: Tensor, bandwidths, kernel: str = "gaussian", kernel_weights=None, alpha: float = 1.0) -> Tensor:
    r = squared_distances(x, y)
    weights = [1.0] * len(bandwidths) if kernel_weights is None else kernel_weights
    return sum(w * kappa(r, kernel, s, alpha) for s, w in zip(bandwidths, weights, strict=True))


def mmd2(
    x: Tensor,
    y: Tensor,
    bandwidths=(2.0, 5.0, 10.0, 20.0, 40.0, 80.0),
    kernel: str = "gaussian",
    estimator: str = "biased",
    kernel_weights=None,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    alpha: float = 1.0,
) -> Tensor:
    xx, yy, xy = means(x, y, bandwidths, kernel, estimator, kernel_weights, x_weights, y_weights, alpha)
    return xx + yy - 2 * xy


def class_parts(x_labels: Tensor, y_labels: Tensor, class_weights, unconditional_weight: float = 0.0, least: int = 0):
    """The weight of each term of mmd2 with labels and its points in x and y; the last is the unconditional one.

    least: fewer points of a class in x or y, and it is skipped.
    """
    for label, weight in enumerate(class_weights):
        in_x, in_y = x_labels == label, y_labels == label
        if in_x.any() and min(in_x.sum(), in_y.sum()) >= least:
            yield weight, x_labels == label, y_labels == label
    if unconditional_weight:
        yield unconditional_weight, torch.ones_like(x_labels, dtype=bool), torch.ones_like(y_labels, dtype=bool)


def mmd2_by_class(x, y, parts, *description, x_weights=None, y_weights=None, cross: float = -2.0) -> Tensor:
    """sum_c weight_c MMD^2(x|c, y|c); `description` is bandwidths, kernel, estimator, kernel_weights, alpha."""
    *spec, alpha = description
    total = x.new_zeros(())
    for weight, in_x, in_y in parts:
        weights = (None if w is None else w[rows] for w, rows in ((x_weights, in_x), (y_weights, in_y)))
        xx, yy, xy = means(x[in_x], y[in_y], *spec, *weights, alpha)
        total = total + weight * (xx + yy + cross * xy)
    return total


def means(x, y, bandwidths, kernel, estimator, kernel_weights, x_weights, y_weights, alpha) -> tuple[Tensor, ...]:
    """The mean of k(x, x'), k(y, y') and k(x, y)."""
    if kernel == "energy":
        bandwidths = (1.0,)
    wx, wy = normalized(x, x_weights), normalized(y, y_weights)

    def mean(a: Tensor, b: Tensor, wa: Tensor, wb: Tensor, same: bool) -> Tensor:
        k = gram(a, b, bandwidths, kernel, kernel_weights, alpha)
        w = wa[..., :, None] * wb[..., None, :]
        if same and estimator == "unbiased":
            w = w * (1 - torch.eye(w.shape[-1], dtype=w.dtype))
            return (w * k).sum((-2, -1)) / (1 - (wa**2).sum(-1))
        return (w * k).sum((-2, -1))

    return mean(x, x, wx, wx, True), mean(y, y, wy, wy, True), mean(x, y, wx, wy, False)


def witness(
    points: Tensor,
    x: Tensor,
    y: Tensor,
    bandwidths,
    kernel="gaussian",
    kernel_weights=None,
    alpha=1.0,
    x_weights=None,
    y_weights=None,
) -> Tensor:
    if kernel == "energy":
        bandwidths = (1.0,)
    over_x = gram(points, x, bandwidths, kernel, kernel_weights, alpha) @ normalized(x, x_weights)
    return over_x - gram(points, y, bandwidths, kernel, kernel_weights, alpha) @ normalized(y, y_weights)


def normalized(points: Tensor, weights: Tensor | None) -> Tensor:
    w = points.new_ones(points.shape[:-1]) if weights is None else weights
    return w / w.sum(-1, keepdim=True)


def phi(x: Tensor, frequencies: Tensor, scale: Tensor) -> Tensor:
    angle = x @ frequencies.mT
    return torch.cat([angle.cos() * scale, angle.sin() * scale], -1)


def parzen_log_likelihood(points: Tensor, samples: Tensor, sigmas: Sequence[float]) -> Tensor:
    r = squared_distances(points, samples)
    n, d = samples.shape
    return torch.stack(
        [torch.logsumexp(-r / (2 * s**2), 1) - math.log(n) - d / 2 * math.log(2 * math.pi * s**2) for s in sigmas]
    )
