"""The reference backend: plain torch, row-chunked, analytic gradients; the fallback everywhere.

Distances, products and sums are float64 whatever the dtype: slower, but no matmul setting can degrade them.
"""

from __future__ import annotations

import torch

from .fourier import (
    fourier_ascent,
    fourier_discrepancy,
    fourier_discrepancy_backward,
    fourier_frequencies,
    fourier_function,
    fourier_sum,
)
from .mmd import mmd2, witness, witness_backward
from .parzen import parzen_backward, parzen_update

__all__ = [
    "fourier_ascent",
    "fourier_discrepancy",
    "fourier_discrepancy_backward",
    "fourier_frequencies",
    "fourier_function",
    "fourier_sum",
    "mmd2",
    "parzen_backward",
    "parzen_update",
    "unavailable",
    "unsupported",
    "witness",
    "witness_backward",
]


def unavailable(device_type: str) -> str | None:
    """None where float64 exists; else why not."""
    if device_type == "mps":
        return "MPS tensors have no float64, in which this backend sums; pass CPU tensors"
    return None


def unsupported(operation: str, dtype: torch.dtype, device_type: str) -> str | None:
    """None: every operation runs in float32 and float64."""
    return None
