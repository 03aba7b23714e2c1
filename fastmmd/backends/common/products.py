"""Matrix products tile by tile, in full precision: what the backends that go through BLAS share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def tile_size(count: int, most: int) -> int:
    return min(most, max(16, -(-count // 16) * 16))


def even_tile_size(count: int, most: int) -> int:
    """Rows per tile so that `count` of them fill the fewest tiles evenly, a multiple of 16."""
    return tile_size(-(-count // max(1, -(-count // most))), most)


def blocks_of(points: Tensor, size: int) -> Iterator[tuple[slice, Tensor]]:
    """Consecutive blocks of `size` rows; the last one is filled up with zeros."""
    for first in range(0, len(points), size):
        rows = slice(first, min(first + size, len(points)))
        block = points[rows]
        if len(block) < size:
            block = torch.cat([block, block.new_zeros((size - len(block), block.shape[1]))])
        yield rows, block


def squared_norms(points: Tensor) -> Tensor:
    """[N]; NaN for a point with an infinity, which would be far from everything and so disappear."""
    norms: Tensor = torch.linalg.vector_norm(points, dim=1, dtype=torch.float64)
    return norms.square_().to(points.dtype).masked_fill_(~points.isfinite().all(1), torch.nan)


_precision_lock = threading.Lock()
_precision_users = {"cpu": 0, "cuda": 0}
_precision_saved = {"cpu": "", "cuda": ""}


def _exchange_precision(precision: str, device_type: str) -> str:
    """Set the process's precision of float32 products on one kind of device and return the one before."""
    on_cpu: Any = torch.backends.mkldnn  # whose attributes mypy does not see
    setting: Any = torch.backends.cuda.matmul if device_type == "cuda" else on_cpu.matmul
    before = str(setting.fp32_precision)
    setting.fp32_precision = precision
    return before


@contextmanager
def full_precision(device_type: str = "cpu") -> Iterator[None]:
    """float32 products of "cpu" or "cuda" in IEEE float32, whatever autocast and the user's matmul precision say.

    The first thread to enter saves the user's choice and the last to leave restores it.
    """
    with _precision_lock:
        if _precision_users[device_type] == 0:
            _precision_saved[device_type] = _exchange_precision("ieee", device_type)
        _precision_users[device_type] += 1
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        with _precision_lock:
            _precision_users[device_type] -= 1
            if _precision_users[device_type] == 0:
                _exchange_precision(_precision_saved[device_type], device_type)
