"""oneDNN's matrix product, through a private operator of torch: the one place that uses it.

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


@cache
def product() -> Callable[[Tensor, Tensor], Tensor] | None:
    """a @ b.T of float32 matrices [n, k] and [m, k] by oneDNN; None where torch's own product serves."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return None
    # Small integers, whose products and sums are exact: any right product has the same bits.
    a, b = torch.arange(48.0).reshape(3, 16), torch.arange(80.0).reshape(5, 16)
    try:
        operator: Any = torch.ops.mkldnn._linear_pointwise

        def by_operator(a: Tensor, b: Tensor) -> Tensor:
            result: Tensor = operator(a, b, None, "none", [], "")
            return result

        works = torch.equal(by_operator(a, b), a @ b.T) and torch.equal(by_operator(a.T, b[:3].T), a.T @ b[:3])
    except Exception:  # whatever a private operator of another version does
        return None
    return by_operator if works else None


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """a @ b.T, within full_precision(): [n, k], [m, k] -> [n, m], a new tensor."""
    by_onednn = product() if a.dtype == torch.float32 else None
    return a @ b.T if by_onednn is None else by_onednn(a, b)
