"""Matrix products on the CPU."""

from __future__ import annotations

import platform
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..common.products import (
    _MATMUL,
    blocks_of,
    even_tile_size,
    full_precision,
    squared_norms,
    tile_size,
)

__all__ = ["_MATMUL", "blocks_of", "even_tile_size", "full_precision", "multiply", "squared_norms", "tile_size"]


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
