"""Matrix products on the CPU, by oneDNN through a private operator of torch: the one place that uses it.

MKL, torch's choice on x86-64, keeps to AVX2 on processors of other makers than Intel; oneDNN does not. The operator is
checked once, on first use. Where it is missing, refuses or gives another result, torch's own product serves.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """a @ b.T, within full_precision(): [n, k], [m, k] -> [n, m], a new tensor."""
    product = checked() if a.dtype == torch.float32 else None
    return a @ b.T if product is None else product(a, b)


@cache
def checked() -> Callable[[Tensor, Tensor], Tensor] | None:
    """a @ b.T of float32 matrices by oneDNN; None where torch's own product serves."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return None
    # Small integers, whose products and sums are exact: any right product has the same bits.
    a, b = torch.arange(48.0).reshape(3, 16), torch.arange(80.0).reshape(5, 16)
    try:
        operator: Any = torch.ops.mkldnn._linear_pointwise

        def product(a: Tensor, b: Tensor) -> Tensor:
            result: Tensor = operator(a, b, None, "none", [], "")
            return result

        works = torch.equal(product(a, b), a @ b.T) and torch.equal(product(a.T, b[:3].T), a.T @ b[:3])
    except Exception:  # whatever a private operator of another version does
        return None
    return product if works else None
