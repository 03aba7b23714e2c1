"""Labels of points: their checks, and points sorted by them into one segment for each class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .arguments import check_number, positive_floats
from .device_cache import DeviceCache, tracing


def check_labels(labels: Tensor, count: int, num_classes: int, device: torch.device, *, name: str = "labels") -> None:
    """Labels [count] int64 on `device`, each from 0 to num_classes - 1 or -1 for none; values are read on the CPU only.

    Raises:
        ValueError, TypeError: they are something else.
    """
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        given = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"{name}: got {given}, expected an int64 tensor of shape {[count]}")
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


def values_are_read(device: torch.device) -> bool:
    """Whether values may decide an error: not where reading them waits for the device, nor where a compiler traces."""
    return device.type == "cpu" and not tracing()


def check_classes(
    x: Tensor,
    y: Tensor,
    x_labels: Tensor | None,
    y_labels: Tensor | None,
    class_weights: Sequence[float] | None,
    unconditional_weight: float,
) -> tuple[Tensor, Tensor, tuple[float, ...]]:
    """Labels and class weights, all of which there must be."""
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


def by_class(
    points: Tensor, weights: Tensor | None, labels: Tensor, num_classes: int
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Points [1, N, D] and weights [1, N] class by class, those without one last, and the first row of each class [C],
    and of what follows: [C + 1]."""
    keys = labels.masked_fill((labels < 0) | (labels >= num_classes), num_classes)
    keys, order = keys.sort(stable=True)
    offsets = torch.searchsorted(keys, torch.arange(num_classes + 1, device=labels.device))
    points = points[0].index_select(0, order)[None]  # along the first dimension: along others its gradient is slow
    return points, None if weights is None else weights.index_select(1, order), offsets


def check_counts(x_offsets: Tensor, y_offsets: Tensor, x: Tensor, y: Tensor, unbiased: bool, all_points: bool) -> None:
    """Every class on both sides or on neither, and every point somewhere."""
    samples = (("x", x, x_offsets), ("y", y, y_offsets))
    counts = [offsets.diff().tolist() for *_, offsets in samples]
    for label, of_class in enumerate(zip(*counts, strict=True)):
        for (name, *_), (other, *_), count in zip(samples, samples[::-1], of_class, strict=True):
            if count == 0 and any(of_class):
                raise ValueError(
                    f"{name}_labels: got no point of class {label}, of which {other} has {max(of_class)}; expected "
                    f"each class on both sides or on neither: leave its points out of {other}"
                )
            if count == 1 and unbiased:
                raise ValueError(
                    f'{name}_labels: got one point of class {label}, expected at least 2 for estimator="unbiased"'
                )
    for (name, points, _), of_classes in zip(samples, counts, strict=True):
        if not all_points and sum(of_classes) < len(points):
            raise ValueError(
                f"{name}_labels: got {len(points) - sum(of_classes)} unlabeled points (-1), which count in the "
                "unconditional term alone: pass unconditional_weight above 0, or leave them out"
            )


def class_tensor(weights: tuple[float, ...], x_labels: Tensor, y_labels: Tensor) -> Tensor:
    """[C] float64; NaN where an invalid label could not raise."""
    cache = _new if torch.compiler.is_compiling() else _kept
    pi: Tensor = cache(weights).get(x_labels.device)
    if values_are_read(x_labels.device):
        return pi
    unknown = unknown_labels(torch.cat([x_labels, y_labels]), len(weights)).any()
    return torch.where(unknown, math.nan, pi)


def _new(weights: tuple[float, ...]) -> DeviceCache[Tensor]:
    return DeviceCache(lambda device: torch.tensor(weights, dtype=torch.float64, device=device))


_kept = lru_cache(maxsize=64)(_new)
