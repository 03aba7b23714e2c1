"""Matrix products tile by tile, in full precision: what the operators that go through BLAS share."""

from __future__ import annotations

import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
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


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """a @ b.T, within full_precision(): [n, k], [m, k] -> [n, m], a new tensor."""
    product = _onednn() if a.dtype == torch.float32 else None
    return a @ b.T if product is None else product(a, b, None, "none", [], "")


@cache
def _onednn() -> Any:
    """oneDNN's product, or None without it: MKL's, torch's choice, keeps to AVX2 on processors of other makers."""
    try:
        product: Any = torch.ops.mkldnn._linear_pointwise
        a, b = torch.arange(48.0).reshape(3, 16), torch.arange(80.0).reshape(5, 16)
        works = platform.machine() in ("x86_64", "AMD64") and torch.equal(product(a, b, None, "none", [], ""), a @ b.T)
    except (AttributeError, RuntimeError):
        return None
    return product if works else None


# torch 2.9 and later have settings of their own for products on the CPU and on CUDA devices; earlier ones have one for
# every device.
_MATMUL: Any = getattr(torch.backends.mkldnn, "matmul", None)
_precision_lock = threading.Lock()
_precision_users = {"cpu": 0, "cuda": 0}
_precision_saved = {"cpu": "", "cuda": ""}


def _exchange_precision(precision: str | None, device_type: str = "cpu") -> str:
    """Set the process's precision of float32 products (None: full) and return the one before."""
    if _MATMUL is None:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision or "highest")
        return before
    setting: Any = torch.backends.cuda.matmul if device_type == "cuda" else _MATMUL
    before = str(setting.fp32_precision)
    setting.fp32_precision = precision or "ieee"
    return before


@contextmanager
def full_precision(device_type: str = "cpu") -> Iterator[None]:
    """float32 products of "cpu" or "cuda" in IEEE float32, whatever autocast and the user's matmul precision say.

    The first thread to enter saves the user's choice and the last to leave restores it.
    """
    one = "cpu" if _MATMUL is None else device_type  # setting for all
    with _precision_lock:
        if _precision_users[one] == 0:
            _precision_saved[one] = _exchange_precision(None, one)
        _precision_users[one] += 1
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        with _precision_lock:
            _precision_users[one] -= 1
            if _precision_users[one] == 0:
                _exchange_precision(_precision_saved[one], one)
