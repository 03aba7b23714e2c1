"""The compiled C++ kernels: loads the module on first use and passes addresses and sizes.

torch is imported before the module, so that the module finds torch's OpenMP runtime loaded and shares it.
Matrix products are torch's; csrc holds what is fused around them.

A forked process has none of OpenMP's threads and waits for ever on entering it, so from the import of this module on
a forked child computes on one thread, torch's own operations included (torch.set_num_threads(1), as in the workers of
a DataLoader).
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
from .library import capability, unavailable, unsupported
from .mmd import mmd2, witness, witness_backward
from .parzen import parzen_backward, parzen_update

__all__ = [
    "capability",
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
