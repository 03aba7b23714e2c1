"""The compiled CUDA C++ kernels: as the parent package, for CUDA tensors.

Kernels run on torch's current stream in memory of torch's allocator; nothing waits for the device or reads from it.
"""

from __future__ import annotations

from .fourier import (
    fourier_ascent,
    fourier_discrepancy,
    fourier_discrepancy_backward,
    fourier_frequencies,
    fourier_function,
    fourier_sum,
)
from .library import unavailable, unsupported
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
