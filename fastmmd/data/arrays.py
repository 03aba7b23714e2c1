"""Images in arrays: .npy, .npz and .pt files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmmd.data.limits import check_archive, check_memory
from fastmmd.errors import UserError, first_line


def read_array(path: Path) -> tuple[Tensor, Tensor | None, tuple[int, ...]]:
    """Images [N, data_dim], their labels [N] if there are any, and the shape of an image; see `load_data`.

    Raises:
        UserError: the file holds something else.
    """
    suffix = path.suffix.lower()
    if suffix not in (".npy", ".npz", ".pt"):
        raise UserError(f"{path}: unknown kind of file (allowed: .npy, .npz, .pt, a folder of images)")
    try:
        content, labels = _arrays(path, suffix)
    except UserError:
        raise
    except Exception as error:  # the readers raise whatever the broken content leads them to
        raise UserError(
            f"{path}: cannot be read as {suffix} ({first_line(error)}); expected arrays of numbers alone, which is all "
            "that is read from a file that may be from anywhere"
        ) from error
    images = _tensor(path, content)
    if images.ndim < 2 or images.numel() == 0:
        raise UserError(f"{path}: an array [N, ...] of images expected, got shape {tuple(images.shape)}")
    check_memory(path, images.numel())
    if labels is not None:
        labels = _tensor(path, labels)
        if labels.shape != images.shape[:1] or labels.is_floating_point():
            came = f"{labels.dtype} {tuple(labels.shape)}"
            raise UserError(f"{path}: labels must be integers of shape [{images.shape[0]}], got {came}")
        labels = labels.long()
    images, shape = _channels_first(path, images)
    return scaled(images, str(path)), labels, shape


def scaled(images: Tensor, name: str) -> Tensor:
    """[N, ...] -> [N, data_dim] float32 in [0, 1].

    Raises:
        UserError: neither uint8 nor floats in 0..1.
    """
    rows = images.reshape(images.shape[0], -1)
    if rows.dtype == torch.uint8:
        return rows.float().div_(255)
    if not rows.is_floating_point():
        raise UserError(f"{name}: uint8 in 0..255 or float in 0..1 expected, got {rows.dtype}")
    rows = rows.float()
    low, high = rows.min().item(), rows.max().item()
    if not (low >= 0 and high <= 1):  # refuses NaN too
        raise UserError(f"{name}: float images must lie in 0..1, got values from {low:g} to {high:g}")
    return rows.contiguous()


def _channels_first(path: Path, images: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Images with color [N, 3, H, W], and the shape of one: without axes of length one, a flat row of a square number
    of pixels as a square.

    Raises:
        UserError: it cannot be told what the axes mean.
    """
    shape = tuple(size for size in images.shape[1:] if size > 1) or (1,)
    if len(shape) == 1:
        side = round(shape[0] ** 0.5)
        return images, (side, side) if side * side == shape[0] else shape
    if len(shape) == 2:
        return images, shape
    first, last = (len(shape) == 3 and shape[axis] == 3 for axis in (0, -1))
    if first == last:
        reason = "both may be the colors" if first else "neither has the three colors"
        raise UserError(
            f"{path}: images [N, H, W], [N, H, W, 3] or [N, 3, H, W], or rows [N, D], expected, got shape "
            f"{tuple(images.shape)}: of the first and the last axis of an image {reason}"
        )
    images = images.reshape(-1, *shape)
    if last:
        images = images.movedim(-1, 1)
    return images, tuple(images.shape[1:])


def _arrays(path: Path, suffix: str) -> tuple[Any, Any]:
    """The images in a file, and its labels or None; nothing else in it is read, and nothing executed."""
    if suffix == ".npy":
        return np.load(path, allow_pickle=False), None
    check_archive(path)
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return _named(path, archive)
    content = torch.load(path, map_location="cpu", weights_only=True)
    return _named(path, content) if isinstance(content, dict) else (content, None)


def _named(path: Path, arrays: Mapping[str, Any]) -> tuple[Any, Any]:
    """`images` and `labels` of several arrays, or the only one."""
    if "images" not in arrays and len(arrays) != 1:
        names = ", ".join(sorted(map(str, arrays)))
        raise UserError(f"{path}: no array named 'images' among {names}")
    labels = arrays["labels"] if "labels" in arrays else None
    return arrays["images"] if "images" in arrays else arrays[next(iter(arrays))], labels


def _tensor(path: Path, array: object) -> Tensor:
    """A tensor of its own: no gradient, and the byte order of this machine, the only one that torch takes.

    Raises:
        UserError: no array of real numbers that are stored one by one.
    """
    if isinstance(array, np.ndarray) and array.dtype.kind in "buif" and array.dtype.itemsize <= 8:
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    if isinstance(array, Tensor):
        plain = array.layout == torch.strided and array.device.type == "cpu" and not array.is_nested
        if plain and not array.is_quantized and not array.is_complex():
            return array.detach()
        raise UserError(f"{path}: a dense tensor of real numbers expected, got {array.dtype}, {array.layout}")
    if isinstance(array, np.ndarray):
        raise UserError(f"{path}: uint8 in 0..255 or float in 0..1 expected, got {array.dtype}")
    raise UserError(f"{path}: an array [N, ...] expected, got {type(array).__name__}")
