"""The backend "reference": plain torch, row-chunked, analytic gradients; the fallback everywhere.

Distances, products and sums are float64 whatever the dtype: slower, but no matmul setting can degrade them.
"""

from __future__ import annotations


def unavailable(device_type: str) -> str | None:
    """None where float64 exists; else why not."""
    if device_type == "mps":
        return "MPS tensors have no float64, in which this backend sums; pass CPU tensors"
    return None
