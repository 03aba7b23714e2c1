"""Labels of points: their checks, and points sorted by them into one segment for each class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..device_cache import constant, tracing
from .arguments import check_number, positive_floats, reject_unsupported, values_are_read

Absent = Literal["raise", "skip"]


def check_labels(labels: Tensor, count: int, num_classes: int, device: torch.device, *, name: str = "labels") -> None:
    """Labels [count] int64 on `device`, each from 0 to num_classes - 1 or -1 for none; values are read on the CPU only.

    Raises:
        ValueError, TypeError: they are something else.
    """
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        given = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"{name}: got {given}, expected an int64 tensor of shape {[count]}")
    reject_unsupported(name, labels)
    if labels.shape != (count,):
        raise ValueError(f"{name}: got shape {list(labels.shape)}, expected {[count]}")
    if labels.device != device:
        raise ValueError(f"{name}: got device {labels.device}, expected {device}")
    if values_are_read(device) and bool((unknown := unknown_labels(labels, num_classes)).any()):
        raise ValueError(
            f"{name}: got {labels[unknown][0].item()}, expected a class from 0 to {num_classes - 1}, or -1 for none"
        )


def unknown_labels(labels: Tensor, num_classes: int) -> Tensor:
    """Which labels are no class and not -1."""
    return (labels < -1) | (labels >= num_classes)


def check_classes(
    x: Tensor,
    y: Tensor,
    x_labels: Tensor | None,
    y_labels: Tensor | None,
    class_weights: Sequence[float] | None,
    unconditional_weight: float,
    absent: str,
) -> tuple[Tensor, Tensor, tuple[float, ...]]:
    """Labels and class weights, all of which there must be."""
    if not isinstance(absent, str) or absent not in ("raise", "skip"):
        raise ValueError(f'absent: got {absent!r}, expected "raise" or "skip"')
    if x_labels is None and y_labels is None:
        given = "unconditional_weight" if class_weights is None else "class_weights"
        raise ValueError(f"{given}: got one without labels; pass x_labels and y_labels too, or leave it out")
    if x_labels is None or y_labels is None:
        name, other = ("x_labels", "y_labels") if x_labels is None else ("y_labels", "x_labels")
        raise ValueError(f"{name}: got None beside {other}; expected labels for both samples, or for neither")
    if class_weights is None:
        raise ValueError(
            "class_weights: got None beside labels, expected a number for each class, such as [1 / 10] * 10 for ten "
            "classes that count alike"
        )
    pi = positive_floats("class_weights", class_weights, allow_zero=True)
    check_number("unconditional_weight", unconditional_weight, zero=True)
    for name, points, labels in (("x", x, x_labels), ("y", y, y_labels)):
        if points.ndim != 2:
            raise ValueError(f"{name}: got shape {list(points.shape)}, expected [N, D] beside labels")
        check_labels(labels, points.shape[0], len(pi), points.device, name=f"{name}_labels")
    return x_labels, y_labels, pi


def known_classes(labels: Tensor, num_classes: int) -> Tensor:
    """The labels with num_classes in place of those that are no class: [N]."""
    return labels.masked_fill((labels < 0) | (labels >= num_classes), num_classes)


def shared_classes(x_keys: Tensor, y_keys: Tensor, num_classes: int, least: int) -> tuple[Tensor, Tensor]:
    """Both `known_classes`, without those of which a side has fewer than `least` points."""
    enough = x_keys.new_ones(num_classes + 1, dtype=torch.bool)
    for keys in (x_keys, y_keys):
        counts = keys.new_zeros(num_classes + 1).scatter_add(0, keys, torch.ones_like(keys))
        enough = enough & (counts >= least)
    return x_keys.where(enough[x_keys], num_classes), y_keys.where(enough[y_keys], num_classes)


def by_class(
    points: Tensor, weights: Tensor | None, keys: Tensor, num_classes: int
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Points [1, N, D] and weights [1, N] class by class, those without one last, and the first row of each class [C],
    and of what follows: [C + 1]. keys: `known_classes`."""
    keys, order = keys.sort(stable=True)
    offsets = torch.searchsorted(keys, torch.arange(num_classes + 1, device=keys.device))
    points = points[0].index_select(0, order)[None]  # along the first dimension: along others its gradient is slow
    return points, None if weights is None else weights.index_select(1, order), offsets


def check_counts(x_offsets: Tensor, y_offsets: Tensor, unbiased: bool) -> None:
    """Every class on both sides or on neither."""
    counts = [offsets.diff().tolist() for offsets in (x_offsets, y_offsets)]
    for label, of_class in enumerate(zip(*counts, strict=True)):
        for name, other, count in zip("xy", "yx", of_class, strict=True):
            if count == 0 and any(of_class):
                raise ValueError(
                    f"{name}_labels: got no point of class {label}, of which {other} has {max(of_class)}; expected "
                    f'each class on both sides or on neither: leave its points out of {other}, or pass absent="skip"'
                )
            if count == 1 and unbiased:
                raise ValueError(
                    f"{name}_labels: got one point of class {label}, expected at least 2 for "
                    'estimator="unbiased"; leave the class out, or pass absent="skip"'
                )


def check_class_weights(name: str, weights: Tensor | None, offsets: Tensor) -> None:
    """Weights [1, N], class by class, of which those of each class have a sum that is not 0."""
    rows = int(offsets[-1])
    if weights is None or rows == 0:
        return
    sums = torch.segment_reduce(weights.detach()[0, :rows].to(torch.float64), "sum", offsets=offsets, axis=0)
    if zero := ((sums == 0) & (offsets.diff() > 0)).nonzero().flatten().tolist():
        raise ValueError(
            f"{name}: got weights that sum to 0 in class {zero[0]} and cannot be normalized; expected another sum, or "
            "-1 as the label of its points"
        )


Labeled = tuple[Tensor, Tensor | None, Tensor]  # points [1, N, D], weights [1, N], labels [N]
Weighted = tuple[Tensor, Tensor | None]


def into_classes(
    x: Labeled, y: Labeled, num_classes: int, absent: str, unbiased: bool
) -> tuple[Weighted, Weighted, Tensor]:
    """Points and weights of both samples class by class, and where each class begins in them: [2, C + 1]."""
    keys = known_classes(x[2], num_classes), known_classes(y[2], num_classes)
    if absent == "skip":
        keys = shared_classes(*keys, num_classes, least=2 if unbiased else 1)
    x_points, x_weights, x_offsets = by_class(x[0], x[1], keys[0], num_classes)
    y_points, y_weights, y_offsets = by_class(y[0], y[1], keys[1], num_classes)
    if values_are_read(x_points.device):
        check_counts(x_offsets, y_offsets, unbiased)
        check_class_weights("x_weights", x_weights, x_offsets)
        check_class_weights("y_weights", y_weights, y_offsets)
    return (x_points, x_weights), (y_points, y_weights), torch.stack([x_offsets, y_offsets])


def class_tensor(weights: tuple[float, ...], x_labels: Tensor, y_labels: Tensor) -> Tensor:
    """[C] float64; NaN where an invalid label could not raise."""
    pi = (torch.tensor if tracing() else constant)(weights, dtype=torch.float64, device=x_labels.device)
    if values_are_read(x_labels.device):
        return pi
    unknown = unknown_labels(torch.cat([x_labels, y_labels]), len(weights)).any()
    return torch.where(unknown, math.nan, pi)
